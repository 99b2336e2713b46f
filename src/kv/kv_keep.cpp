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

// Of float16 entries; sums may go beyond it.
constexpr float kLargestF16 = 65504.0f;

// Gives the kept entries of a table the values of the dropped ones. source(entry) is where a dropped one lies, and
// target(j) where the j-th kept one does.
template <typename SourceOf, typename TargetOf>
void merge_values(const KvBlockFormat& format, const KvMerge& merge, const SourceOf& source, const TargetOf& target) {
  const auto dim = static_cast<size_t>(format.value_dim);
  const auto reach = static_cast<size_t>(merge.reach);
  std::vector<float> sums(reach * dim);  // of the last groups: that of group j is at j % reach
  std::vector<bool> has_sum(reach);
  std::vector<float> value(dim);
  std::vector<float> total(dim);
  int32_t begin = 0;
  for (size_t j = 0; j < merge.group_ends.size(); ++j) {
    float* sum = sums.data() + j % reach * dim;
    std::fill_n(sum, dim, 0.0f);
    has_sum[j % reach] = begin < merge.group_ends[j];
    for (; begin < merge.group_ends[j]; ++begin) {
      const KvCache::Slot from = source(merge.sources[begin]);
      kv_load_value(format, from.block, from.slot, value.data());
      for (size_t d = 0; d < dim; ++d) sum[d] += merge.weights[begin] * value[d];
    }
    if (std::ranges::find(has_sum, true) == has_sum.end()) continue;
    const KvCache::Slot to = target(j);
    kv_load_value(format, to.block, to.slot, total.data());
    for (float& x : total) x *= merge.own[j];
    for (size_t group = j + 1 - std::min(j + 1, reach); group <= j; ++group) {
      if (!has_sum[group % reach]) continue;
      for (size_t d = 0; d < dim; ++d) total[d] += sums[group % reach * dim + d];
    }
    if (format.codec == KvCodec::kF16) {
      for (float& x : total) x = std::clamp(x, -kLargestF16, kLargestF16);
    }
    kv_store_value(format, to.block, to.slot, total.data());
  }
}

}  // namespace

int64_t KvCache::State::num_copies(const KvSequence& sequence, int64_t table, int64_t num_kept) const {
  const auto num_shared = std::ssize(sequence.prefix);
  if (is_window_table[table]) return num_shared - std::min<int64_t>(num_shared, sequence.first_window_block);
  return std::min(num_shared, num_blocks_for(num_kept));
}

// What stays of shared blocks is copied first, so that values can be merged while all that was there still is: into
// copies, and into entries of the sequence's own blocks where they are. Then these are moved forward one by one, so
// that a place is read before it is written again.
void KvCache::State::keep_entries(KvSequence& sequence, int64_t table, std::span<const int32_t> kept,
                                  const KvMerge& merge) {
  BlockTable& entries = sequence.tables[table];
  BlockPool& from = pool(table);
  const auto num_shared = std::ssize(sequence.prefix);
  const int64_t num_new = num_copies(sequence, table, std::ssize(kept));
  const int64_t num_after = num_blocks_for(std::ssize(kept));
  const KvBlockFormat& format = format_of_table(table);
  std::vector<BlockId> copies(num_new);
  from.allocate(kNoBlock, 0, copies);
  const auto is_shared = [&](int32_t entry) { return entry / kKvBlockSize < num_shared; };
  const auto slot_of = [&](int32_t entry) {
    return KvCache::Slot{sequence.tables.block(table, entry / kKvBlockSize), entry % kKvBlockSize};
  };
  const auto target = [&](int64_t i) {
    const int64_t place = i / kKvBlockSize;
    return KvCache::Slot{place < num_new ? from.data(copies[place]) : sequence.tables.block(table, place),
                         static_cast<int32_t>(i % kKvBlockSize)};
  };
  const auto move = [&](int32_t entry, const KvCache::Slot& to) {
    const KvCache::Slot at = slot_of(entry);
    kv_copy(format, at.block, at.slot, to.block, to.slot);
  };
  const auto num_copied = std::ranges::find_if_not(kept, is_shared) - kept.begin();
  for (int64_t i = 0; i < num_copied; ++i) move(kept[i], target(i));
  if (!merge.empty()) {
    WITAN_CHECK(merge.own.size() == kept.size() && merge.group_ends.size() == kept.size(),
                "table {}: values of {} groups for {} entries", table, merge.group_ends.size(), kept.size());
    merge_values(format, merge, slot_of,
                 [&](size_t j) { return std::cmp_less(j, num_copied) ? target(j) : slot_of(kept[j]); });
  }
  std::vector<int32_t> positions(kept.size());
  for (int64_t i = 0; i < std::ssize(kept); ++i) {
    const int32_t entry = kept[i];
    positions[i] = entries.lost_entries ? entries.positions[entry] : entry;
    const bool stays = entry == i && i / kKvBlockSize >= num_shared;
    if (i >= num_copied && !stays) move(entry, target(i));
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

bool KvCache::keep(SequenceId id, std::span<const std::vector<int32_t>> kept, std::span<const KvMerge> merges) {
  State& state = *state_;
  KvSequence& sequence = state.at(id);
  WITAN_CHECK(sequence.num_reserved == 0, "{} entries are reserved", sequence.num_reserved);
  WITAN_CHECK(std::ssize(kept) == state.num_tables(), "entries of {} tables, there are {}", kept.size(),
              state.num_tables());
  WITAN_CHECK(merges.empty() || std::ssize(merges) == state.num_tables(), "values of {} tables, there are {}",
              merges.size(), state.num_tables());
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
  const KvMerge nothing;
  for (int64_t table = 0; table < state.num_tables(); ++table) {
    if (state.is_window_table[table]) {
      state.copy_window(sequence, table);
    } else {
      state.keep_entries(sequence, table, kept[table], merges.empty() ? nothing : merges[table]);
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
