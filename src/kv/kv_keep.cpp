// Dropping entries: what stays of a table moves together, and the rest is free.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "kernels/attention/kv_block.h"
#include "kv/kv_state.h"

namespace witan {
namespace {

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

int64_t KvCache::State::num_shared_with_others(const KvSequence& sequence) const {
  const auto is_shared = [&](PrefixId entry) { return index.num_references(entry) > 1; };
  return std::ranges::partition_point(sequence.prefix, is_shared) - sequence.prefix.begin();
}

int64_t KvCache::State::num_copies(const KvSequence& sequence, int64_t table, int64_t num_kept,
                                   int64_t num_shared) const {
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
  const int64_t num_new = num_copies(sequence, table, std::ssize(kept), num_shared);
  const auto num_demoted =
      static_cast<int32_t>(std::ranges::lower_bound(kept, entries.num_demoted) - kept.begin());  // that stay
  const int64_t first_written = entries.num_demoted_blocks();  // the place of the first block of entries as written
  const int64_t num_written = num_blocks_for(std::ssize(kept) - num_demoted);
  WITAN_CHECK(merge.empty() || entries.num_demoted == 0, "table {}: values of demoted entries", table);
  std::vector<BlockId> copies(num_new);
  from.allocate(kNoBlock, 0, copies);
  const auto is_shared = [&](int32_t entry) { return entries.place_of(entry) < num_shared; };
  const auto slot_of = [&](int32_t entry) { return sequence.tables.slot(table, entry); };
  const auto target = [&](int64_t i) {
    if (i < num_demoted) {
      return KvCache::Slot{sequence.tables.block(table, i / kKvBlockSize), static_cast<int32_t>(i % kKvBlockSize)};
    }
    const int64_t place = first_written + (i - num_demoted) / kKvBlockSize;
    return KvCache::Slot{place < num_new ? from.data(copies[place]) : sequence.tables.block(table, place),
                         static_cast<int32_t>((i - num_demoted) % kKvBlockSize)};
  };
  const auto move = [&](int32_t entry, const KvCache::Slot& to) {
    const KvCache::Slot at = slot_of(entry);
    if (at.block == to.block && at.slot == to.slot) return;
    kv_copy(pools[pool_of_place(sequence, table, entries.place_of(entry))].format, at.block, at.slot, to.block,
            to.slot);
  };
  const auto num_copied = std::ranges::find_if_not(kept, is_shared) - kept.begin();
  for (int64_t i = 0; i < num_copied; ++i) move(kept[i], target(i));
  if (!merge.empty()) {
    WITAN_CHECK(merge.own.size() == kept.size() && merge.group_ends.size() == kept.size(),
                "table {}: values of {} groups for {} entries", table, merge.group_ends.size(), kept.size());
    merge_values(format_of_table(table), merge, slot_of,
                 [&](size_t j) { return std::cmp_less(j, num_copied) ? target(j) : slot_of(kept[j]); });
  }
  std::vector<int32_t> positions(kept.size());
  for (int64_t i = 0; i < std::ssize(kept); ++i) {
    const int32_t entry = kept[i];
    positions[i] = entries.lost_entries ? entries.positions[entry] : entry;
    if (i >= num_copied) move(entry, target(i));
  }
  const auto release = [&](int64_t place) {
    BlockPool& of_place = pools[pool_of_place(sequence, table, place)].blocks;
    of_place.release(sequence.tables.id(table, place));
    stats.block_bytes_held -= of_place.block_bytes();
  };
  const int64_t bytes_before = table_bytes(sequence, table);
  for (int64_t place = num_blocks_for(num_demoted); place < first_written; ++place) release(place);
  for (int64_t place = std::max(first_written + num_written, num_shared); place < entries.num_blocks; ++place) {
    release(place);
  }
  for (int64_t i = 0; i < num_written; ++i) {
    const int64_t place = first_written + i;
    const BlockId block = place < num_new ? copies[place] : sequence.tables.id(table, place);
    sequence.tables.set(table, num_blocks_for(num_demoted) + i, block, from.data(block));
  }
  entries.num_demoted = num_demoted;
  entries.num_blocks = static_cast<int32_t>(num_blocks_for(num_demoted) + num_written);
  entries.num_entries = static_cast<int32_t>(kept.size());
  entries.lost_entries = std::ssize(kept) < sequence.num_tokens;
  if (entries.lost_entries) entries.positions = std::move(positions);
  stats.block_bytes_held += num_new * from.block_bytes();
  sequence.block_bytes += table_bytes(sequence, table) - bytes_before;
}

int64_t KvCache::State::table_bytes(const KvSequence& sequence, int64_t table) const {
  const BlockTable& entries = sequence.tables[table];
  const int64_t num_demoted = entries.num_demoted_blocks();
  const int64_t num_written = entries.num_blocks - num_demoted - first_block(sequence, table);
  int64_t bytes = num_written * pools[pool_of_table[table]].blocks.block_bytes();
  if (num_demoted > 0) bytes += num_demoted * pools[pool_of_place(sequence, table, 0)].blocks.block_bytes();
  return bytes;
}

void KvCache::State::copy_shared(KvSequence& sequence, int64_t table, int64_t first, int64_t count) {
  BlockPool& from = pool(table);
  std::vector<BlockId> copies(count);
  from.allocate(kNoBlock, 0, copies);
  for (int64_t place = first; const BlockId copy : copies) {
    std::memcpy(from.data(copy), sequence.tables.block(table, place), static_cast<size_t>(from.block_bytes()));
    sequence.tables.set(table, place++, copy, from.data(copy));
  }
  stats.block_bytes_held += count * from.block_bytes();
}

void KvCache::State::copy_window(KvSequence& sequence, int64_t table) {
  const auto num_shared = std::ssize(sequence.prefix);
  copy_shared(sequence, table, sequence.first_window_block, num_copies(sequence, table, 0, num_shared));
}

bool KvCache::State::make_room_for_copies(const KvSequence& sequence, std::span<const std::vector<int32_t>> kept,
                                          int64_t num_shared, std::span<const int64_t> beside) {
  std::ranges::fill(needed_blocks, 0);
  std::ranges::copy(beside, needed_blocks.begin());
  for (int64_t table = 0; table < num_tables(); ++table) {
    needed_blocks[pool_of_table[table]] += num_copies(sequence, table, std::ssize(kept[table]), num_shared);
  }
  return make_room(needed_blocks);
}

bool KvCache::State::make_room_to_keep(KvSequence& sequence, std::span<const std::vector<int32_t>> kept,
                                       std::span<const int64_t> beside) {
  if (make_room_for_copies(sequence, kept, std::ssize(sequence.prefix), beside)) return true;
  const int64_t num_shared = num_shared_with_others(sequence);
  if (!make_room_for_copies(sequence, kept, num_shared, beside)) return false;
  take_prefix(sequence, num_shared);
  return true;
}

// What continues its text goes first: nobody has it who does not have all of the text.
void KvCache::State::take_prefix(KvSequence& sequence, int64_t num_shared) {
  drop_unreferenced();
  while (std::ssize(sequence.prefix) > num_shared) {
    const PrefixId entry = sequence.prefix.back();
    const bool is_in_window = std::ssize(sequence.prefix) > sequence.first_window_block;
    if (window > 0 && !is_in_window && index.has_window(entry)) release_blocks(index.blocks(entry), true);
    index.take(entry);
    sequence.prefix.pop_back();
  }
}

void KvCache::State::detach(KvSequence& sequence) {
  leave_prefix(sequence);
  sequence.is_detached = true;
  sequence.tail_tokens.clear();
  sequence.tail_roles.clear();
}

void KvCache::State::leave_windows(KvSequence& sequence, PrefixIndex::WindowEnd end) {
  for (int64_t place = sequence.first_window_block; window > 0 && place < std::ssize(sequence.prefix); ++place) {
    index.unreference_window(sequence.prefix[place], end);
  }
}

void KvCache::State::leave_prefix(KvSequence& sequence) {
  leave_windows(sequence, PrefixIndex::WindowEnd::kKept);
  for (auto entry = sequence.prefix.rbegin(); entry != sequence.prefix.rend(); ++entry) index.unreference(*entry);
  sequence.prefix.clear();
}

bool KvCache::State::check_kept(std::span<const std::vector<int32_t>> kept,
                                FunctionRef<int64_t(int64_t table)> num_entries_of) const {
  WITAN_CHECK(std::ssize(kept) == num_tables(), "entries of {} tables, there are {}", kept.size(), num_tables());
  bool drops = false;
  for (int64_t table = 0; table < num_tables(); ++table) {
    if (is_window_table[table]) continue;
    const int64_t num_entries = num_entries_of(table);
    const auto rises = [](int32_t a, int32_t b) { return a >= b; };
    WITAN_CHECK(std::ranges::adjacent_find(kept[table], rises) == kept[table].end(), "table {}: not ascending", table);
    WITAN_CHECK(kept[table].empty() || (kept[table].front() >= 0 && kept[table].back() < num_entries),
                "table {}: entries {} to {} of {}", table, kept[table].front(), kept[table].back(), num_entries);
    drops |= std::ssize(kept[table]) < num_entries;
  }
  return drops;
}

bool KvCache::keep(SequenceId id, std::span<const std::vector<int32_t>> kept, std::span<const KvMerge> merges) {
  State& state = *state_;
  KvSequence& sequence = state.at(id);
  WITAN_CHECK(sequence.num_reserved == 0, "{} entries are reserved", sequence.num_reserved);
  WITAN_CHECK(sequence.aside == nullptr, "sequence {} has entries aside", id);
  WITAN_CHECK(merges.empty() || std::ssize(merges) == state.num_tables(), "values of {} tables, there are {}",
              merges.size(), state.num_tables());
  if (!state.check_kept(kept, [&](int64_t table) { return sequence.tables[table].num_entries; })) return true;
  if (!state.make_room_to_keep(sequence, kept)) return false;
  const KvMerge nothing;
  for (int64_t table = 0; table < state.num_tables(); ++table) {
    if (state.is_window_table[table]) {
      state.copy_window(sequence, table);
    } else {
      state.keep_entries(sequence, table, kept[table], merges.empty() ? nothing : merges[table]);
    }
    state.stats.peak_block_bytes_held = std::max(state.stats.peak_block_bytes_held, state.stats.block_bytes_held);
  }
  state.detach(sequence);
  state.trim();
  return true;
}

int64_t KvCache::bytes_freed_by_keeping(SequenceId id, int64_t num_kept) const {
  const State& state = *state_;
  const KvSequence& sequence = state.at(id);
  const int64_t num_shared = state.num_shared_with_others(sequence);
  int64_t bytes = 0;
  for (int64_t table = 0; table < state.num_tables(); ++table) {
    if (state.is_window_table[table]) {
      bytes -= state.num_copies(sequence, table, 0, num_shared) * state.format_of_table(table).block_bytes();
      continue;
    }
    const BlockTable& entries = sequence.tables[table];
    const int64_t num_own = entries.num_blocks_of(entries.num_entries) - num_shared;
    const int64_t num_left = num_blocks_for(std::min<int64_t>(num_kept, entries.num_entries));
    bytes += (num_own - num_left) * state.format_of_table(table).block_bytes();
  }
  return bytes;
}

}  // namespace witan
