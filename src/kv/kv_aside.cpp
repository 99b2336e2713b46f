// Entries that a sequence does not read, and that may come back: all of them lie aside, and what it reads is a copy.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "kernels/attention/kv_block.h"
#include "kv/kv_state.h"

namespace witan {

// Blocks for what is read, for the windows' copies, and for more than there is to lie aside.
bool KvCache::State::has_room_to_begin(const KvSequence& sequence, std::span<const std::vector<int32_t>> kept,
                                       int64_t num_blocks) {
  std::ranges::fill(needed_blocks, 0);
  for (int64_t table = 0; table < num_tables(); ++table) {
    int64_t& needed = needed_blocks[pool_of_table[table]];
    if (is_window_table[table]) {
      needed += num_copies(sequence, table, 0, std::ssize(sequence.prefix));
    } else {
      needed += num_blocks_for(std::ssize(kept[table])) + num_blocks - sequence.tables[table].num_blocks;
    }
  }
  return make_room(needed_blocks);
}

// Makes every table without a window so long.
void KvCache::State::extend_aside(AsideEntries& aside, int64_t num_blocks) {
  if (num_blocks <= aside.num_blocks) return;
  const int64_t num_new = num_blocks - aside.num_blocks;
  std::byte* next = aside.file == nullptr ? nullptr : aside.file->extend(num_new * full_set_bytes);
  aside.tables.grow_rows(num_blocks);
  new_blocks.resize(num_new);
  for (int64_t table = 0; table < num_tables(); ++table) {
    if (is_window_table[table]) continue;
    BlockTable& entries = aside.tables[table];
    BlockPool& from = pool(table);
    if (next == nullptr) {
      const BlockId last = aside.num_blocks > 0 ? aside.tables.id(table, aside.num_blocks - 1) : kNoBlock;
      from.allocate(last, aside.num_blocks, new_blocks);
    }
    for (int64_t i = 0; i < num_new; ++i) {
      const BlockId block = next == nullptr ? new_blocks[i] : kNoBlock;
      aside.tables.set(table, entries.num_blocks++, block, next == nullptr ? from.data(block) : next);
      if (next != nullptr) next += from.block_bytes();
    }
  }
  aside.num_blocks = num_blocks;
  if (aside.file != nullptr) return;
  aside.block_bytes += num_new * full_set_bytes;
  stats.block_bytes_held += num_new * full_set_bytes;
}

// The sequence's blocks lie aside from now on, those of prefix blocks among them, and it has none but its windows'.
void KvCache::State::begin_aside_in_blocks(KvSequence& sequence, int64_t num_blocks) {
  sequence.aside = std::make_unique<AsideEntries>(num_tables());
  AsideEntries& aside = *sequence.aside;
  aside.num_tokens = sequence.num_tokens;
  aside.num_blocks = num_blocks_for(sequence.num_tokens);
  aside.tables.grow_rows(aside.num_blocks);
  for (int64_t table = 0; table < num_tables(); ++table) {
    if (is_window_table[table]) {
      copy_window(sequence, table);
      continue;
    }
    aside.block_bytes += table_bytes(sequence, table);
    for (int64_t place = 0; place < aside.num_blocks; ++place) {
      aside.tables.set(table, place, sequence.tables.id(table, place), sequence.tables.block(table, place));
    }
    aside.tables[table].num_blocks = std::exchange(sequence.tables[table].num_blocks, 0);
    aside.tables[table].num_entries = std::exchange(sequence.tables[table].num_entries, 0);
  }
  sequence.block_bytes -= aside.block_bytes;
  leave_windows(sequence, PrefixIndex::WindowEnd::kPassed);  // may be dropped, although their prefix blocks stay
  aside.prefix = std::exchange(sequence.prefix, {});
  detach(sequence);
  extend_aside(aside, num_blocks);
}

// All entries of a sequence, which stay where they are, in a file with room for more.
std::unique_ptr<AsideEntries> KvCache::State::copy_to_file(const KvSequence& sequence, int64_t num_blocks) {
  auto aside = std::make_unique<AsideEntries>(num_tables());
  aside->file = std::make_unique<BlockFile>(config.aside_directory);
  extend_aside(*aside, num_blocks);
  aside->num_tokens = sequence.num_tokens;
  for (int64_t table = 0; table < num_tables(); ++table) {
    if (is_window_table[table]) continue;
    aside->tables[table].num_entries = sequence.num_tokens;
    for (int64_t place = 0; place < sequence.tables[table].num_blocks; ++place) {
      std::memcpy(aside->tables.block(table, place), sequence.tables.block(table, place),
                  static_cast<size_t>(pool(table).block_bytes()));
    }
  }
  aside->file->leave_memory();
  return aside;
}

// Every table has copies of the kept entries, in blocks that there are enough of.
void KvCache::State::read_from_aside(KvSequence& sequence, std::span<const std::vector<int32_t>> kept) {
  const AsideEntries& aside = *sequence.aside;
  for (int64_t table = 0; table < num_tables(); ++table) {
    if (is_window_table[table]) continue;
    const std::vector<int32_t>& read = kept[table];
    BlockTable& entries = sequence.tables[table];
    const int64_t num_blocks = num_blocks_for(std::ssize(read));
    sequence.tables.grow_rows(num_blocks);
    resize(sequence, table, num_blocks);
    for (int64_t i = 0; i < std::ssize(read); ++i) {
      const KvCache::Slot from = aside.tables.slot(table, read[i]);
      kv_copy(format_of_table(table), from.block, from.slot, sequence.tables.block(table, i / kKvBlockSize),
              static_cast<int32_t>(i % kKvBlockSize));
    }
    entries.num_entries = static_cast<int32_t>(read.size());
    entries.lost_entries = std::ssize(read) < sequence.num_tokens;
    entries.positions.clear();
    if (entries.lost_entries) entries.positions = read;
  }
  if (aside.file != nullptr) aside.file->leave_memory();
}

// Other entries are read, and what lies aside has so many blocks. What shrinks makes room for what grows. False, and
// nothing changed, when that does not suffice; nor is anything changed where the file cannot grow.
bool KvCache::State::read_anew(KvSequence& sequence, std::span<const std::vector<int32_t>> kept, int64_t num_blocks) {
  AsideEntries& aside = *sequence.aside;
  WITAN_CHECK(aside.num_tokens == sequence.num_tokens, "{} of {} tokens are gathered", aside.num_tokens,
              sequence.num_tokens);
  const bool is_in_file = aside.file != nullptr;
  std::ranges::fill(needed_blocks, 0);
  for (int64_t table = 0; table < num_tables(); ++table) {
    if (is_window_table[table]) continue;
    needed_blocks[pool_of_table[table]] += num_blocks_for(std::ssize(kept[table])) - sequence.tables[table].num_blocks;
    if (!is_in_file) needed_blocks[pool_of_table[table]] += std::max<int64_t>(0, num_blocks - aside.num_blocks);
  }
  if (!make_room(needed_blocks)) return false;
  if (is_in_file) extend_aside(aside, num_blocks);
  for (int64_t table = 0; table < num_tables(); ++table) {
    const int64_t num_read = num_blocks_for(std::ssize(kept[table]));
    if (!is_window_table[table] && num_read < sequence.tables[table].num_blocks) resize(sequence, table, num_read);
  }
  if (!is_in_file) extend_aside(aside, num_blocks);
  read_from_aside(sequence, kept);
  return true;
}

void KvCache::State::release_aside(KvSequence& sequence) {
  if (sequence.aside == nullptr) return;
  AsideEntries& aside = *sequence.aside;
  if (aside.file == nullptr) {
    const auto num_shared = std::ssize(aside.prefix);
    // Who continues the text finds it, where its windows are still there.
    for (int64_t place = first_window_block(num_shared * kKvBlockSize); window > 0 && place < num_shared; ++place) {
      if (!index.has_window(aside.prefix[place])) continue;
      index.reference_window(aside.prefix[place]);
      index.unreference_window(aside.prefix[place], PrefixIndex::WindowEnd::kKept);
    }
    for (int64_t table = 0; table < num_tables(); ++table) {
      if (is_window_table[table]) continue;
      for (int64_t place = num_shared; place < aside.num_blocks; ++place) {
        pool(table).release(aside.tables.id(table, place));
      }
    }
    stats.block_bytes_held -= (aside.num_blocks - num_shared) * full_set_bytes;
    for (auto entry = aside.prefix.rbegin(); entry != aside.prefix.rend(); ++entry) index.unreference(*entry);
  }
  sequence.aside.reset();
}

bool KvCache::set_aside(SequenceId id, std::span<const std::vector<int32_t>> kept, KvAside where, int32_t num_tokens) {
  State& state = *state_;
  KvSequence& sequence = state.at(id);
  WITAN_CHECK(sequence.num_reserved == 0, "{} entries are reserved", sequence.num_reserved);
  WITAN_CHECK(sequence.demoted_pools.empty(), "sequence {} has demoted entries", id);
  WITAN_CHECK(num_tokens >= sequence.num_tokens, "room for {} of {} tokens", num_tokens, sequence.num_tokens);
  const bool drops = state.check_kept(kept, [&](int64_t) { return sequence.num_tokens; });
  const int64_t num_blocks = num_blocks_for(num_tokens);
  if (sequence.aside != nullptr) {
    if (!state.read_anew(sequence, kept, num_blocks)) return false;
  } else {
    WITAN_CHECK(!sequence.is_detached, "sequence {} has lost entries", id);
    if (!drops) return true;
    if (where == KvAside::kFile) {
      if (!state.make_room_to_keep(sequence, kept)) return false;
      std::unique_ptr<AsideEntries> aside = state.copy_to_file(sequence, num_blocks);
      if (!keep(id, kept)) return false;
      sequence.aside = std::move(aside);
      return true;
    }
    if (!state.has_room_to_begin(sequence, kept, num_blocks)) return false;
    state.begin_aside_in_blocks(sequence, num_blocks);
    state.read_from_aside(sequence, kept);
  }
  state.stats.peak_block_bytes_held = std::max(state.stats.peak_block_bytes_held, state.stats.block_bytes_held);
  state.trim();
  return true;
}

void KvCache::gather_aside(SequenceId id) {
  State& state = *state_;
  KvSequence& sequence = state.at(id);
  if (sequence.aside == nullptr) return;
  AsideEntries& aside = *sequence.aside;
  const int32_t num_new = sequence.num_tokens - aside.num_tokens;
  WITAN_CHECK(num_blocks_for(sequence.num_tokens) <= aside.num_blocks, "{} blocks aside for {} tokens",
              aside.num_blocks, sequence.num_tokens);
  for (int64_t table = 0; table < state.num_tables(); ++table) {
    if (state.is_window_table[table]) continue;
    const int32_t num_entries = sequence.tables[table].num_entries;
    aside.tables[table].num_entries = sequence.num_tokens;
    for (int32_t i = 0; i < num_new; ++i) {
      const KvCache::Slot from = sequence.tables.slot(table, num_entries - num_new + i);
      const KvCache::Slot to = aside.tables.slot(table, aside.num_tokens + i);
      kv_copy(state.format_of_table(table), from.block, from.slot, to.block, to.slot);
    }
  }
  aside.num_tokens = sequence.num_tokens;
}

void KvCache::drop_aside(SequenceId id) {
  state_->release_aside(state_->at(id));
  state_->trim();
}

bool KvCache::has_aside(SequenceId id) const { return state_->at(id).aside != nullptr; }

KvView KvCache::all_entries(SequenceId id, int32_t layer, int32_t head) const {
  const KvSequence& sequence = state_->at(id);
  const int64_t table = state_->table_of(layer, head);
  if (sequence.aside == nullptr || state_->is_window_table[table]) {
    return view(id, layer, head, sequence.tables[table].num_entries);
  }
  return {.format = state_->layers[layer].format,
          .blocks = sequence.aside->tables.blocks(table),
          .num_entries = sequence.aside->num_tokens,
          .positions = nullptr};
}

int64_t KvCache::aside_block_bytes(SequenceId id) const {
  const AsideEntries* aside = state_->at(id).aside.get();
  return aside == nullptr ? 0 : aside->block_bytes;
}

int64_t KvCache::aside_file_bytes(SequenceId id) const {
  const AsideEntries* aside = state_->at(id).aside.get();
  return aside == nullptr || aside->file == nullptr ? 0 : aside->file->num_bytes();
}

}  // namespace witan
