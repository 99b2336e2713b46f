// Dropping entries: what stays of a table moves together, and the rest is free.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "kernels/attention/kv_block.h"
#include "kv/kv_state.h"

namespace witan {
namespace {

int64_t num_blocks_for(int64_t num_entries) { return (num_entries + kKvBlockSize - 1) / kKvBlockSize; }

}  // namespace

int64_t KvCache::State::num_copies(const KvSequence& sequence, int64_t table, int64_t num_kept) const {
  const auto num_shared = std::ssize(sequence.prefix);
  if (is_window_table[table]) return num_shared - std::min<int64_t>(num_shared, sequence.first_window_block);
  return std::min(num_shared, num_blocks_for(num_kept));
}

// Entries are moved forward one by one, so that a place is read before it is written again.
void KvCache::State::keep_entries(KvSequence& sequence, int64_t table, std::span<const int32_t> kept) {
  BlockTable& entries = sequence.tables[table];
  BlockPool& from = pool(table);
  const auto num_shared = std::ssize(sequence.prefix);
  const int64_t num_new = num_copies(sequence, table, std::ssize(kept));
  const int64_t num_after = num_blocks_for(std::ssize(kept));
  const KvBlockFormat& format = format_of_table(table);
  std::vector<BlockId> copies(num_new);
  from.allocate(kNoBlock, 0, copies);
  const auto target = [&](int64_t place) {
    return place < num_new ? from.data(copies[place]) : sequence.tables.block(table, place);
  };
  std::vector<int32_t> positions(kept.size());
  for (int64_t i = 0; i < std::ssize(kept); ++i) {
    const int32_t entry = kept[i];
    positions[i] = entries.lost_entries ? entries.positions[entry] : entry;
    if (entry == i && i / kKvBlockSize >= num_shared) continue;  // stays where it is
    kv_copy(format, sequence.tables.block(table, entry / kKvBlockSize), entry % kKvBlockSize, target(i / kKvBlockSize),
            static_cast<int>(i % kKvBlockSize));
  }
  for (int64_t place = std::max(num_after, num_shared); place < entries.num_blocks; ++place) {
    from.release(sequence.tables.id(table, place));
    stats.block_bytes_held -= from.block_bytes();
  }
  for (int64_t place = 0; place < num_new; ++place) {
    sequence.tables.set(table, place, copies[place], from.data(copies[place]));
  }
  stats.block_bytes_held += num_new * from.block_bytes();
  sequence.block_bytes += (num_after - entries.num_blocks) * from.block_bytes();
  entries.num_blocks = static_cast<int32_t>(num_after);
  entries.num_entries = static_cast<int32_t>(kept.size());
  entries.lost_entries = std::ssize(kept) < sequence.num_tokens;
  if (entries.lost_entries) entries.positions = std::move(positions);
}

void KvCache::State::copy_window(KvSequence& sequence, int64_t table) {
  BlockPool& from = pool(table);
  std::vector<BlockId> copies(num_copies(sequence, table, 0));
  from.allocate(kNoBlock, 0, copies);
  int64_t place = sequence.first_window_block;
  for (const BlockId copy : copies) {
    std::memcpy(from.data(copy), sequence.tables.block(table, place), static_cast<size_t>(from.block_bytes()));
    sequence.tables.set(table, place++, copy, from.data(copy));
  }
  stats.block_bytes_held += std::ssize(copies) * from.block_bytes();
}

void KvCache::State::leave_prefix(KvSequence& sequence) {
  for (int64_t place = sequence.first_window_block; window > 0 && place < std::ssize(sequence.prefix); ++place) {
    index.unreference_window(sequence.prefix[place], PrefixIndex::WindowEnd::kKept);
  }
  for (auto entry = sequence.prefix.rbegin(); entry != sequence.prefix.rend(); ++entry) index.unreference(*entry);
  sequence.prefix.clear();
}

bool KvCache::keep(SequenceId id, std::span<const std::vector<int32_t>> kept) {
  State& state = *state_;
  KvSequence& sequence = state.at(id);
  WITAN_CHECK(sequence.num_reserved == 0, "{} entries are reserved", sequence.num_reserved);
  WITAN_CHECK(std::ssize(kept) == state.num_tables(), "entries of {} tables, there are {}", kept.size(),
              state.num_tables());
  bool drops = false;
  std::ranges::fill(state.needed_blocks, 0);
  for (int64_t table = 0; table < state.num_tables(); ++table) {
    const int64_t num_entries = sequence.tables[table].num_entries;
    const auto num_kept = std::ssize(kept[table]);
    state.needed_blocks[state.pool_of_table[table]] += state.num_copies(sequence, table, num_kept);
    if (state.is_window_table[table]) continue;
    const auto rises = [](int32_t a, int32_t b) { return a >= b; };
    WITAN_CHECK(std::ranges::adjacent_find(kept[table], rises) == kept[table].end(), "table {}: not ascending", table);
    WITAN_CHECK(kept[table].empty() || (kept[table].front() >= 0 && kept[table].back() < num_entries),
                "table {}: entries {} to {} of {}", table, kept[table].front(), kept[table].back(), num_entries);
    drops |= num_kept < num_entries;
  }
  if (!drops) return true;
  if (!state.make_room(state.needed_blocks)) return false;
  for (int64_t table = 0; table < state.num_tables(); ++table) {
    if (state.is_window_table[table]) {
      state.copy_window(sequence, table);
    } else {
      state.keep_entries(sequence, table, kept[table]);
    }
    state.stats.peak_block_bytes_held = std::max(state.stats.peak_block_bytes_held, state.stats.block_bytes_held);
  }
  state.leave_prefix(sequence);
  sequence.lost_entries = true;
  sequence.tail_tokens.clear();
  sequence.tail_roles.clear();
  state.trim();
  return true;
}

}  // namespace witan
