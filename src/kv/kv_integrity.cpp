#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "kv/kv_state.h"

namespace witan {
namespace {

// The blocks of one pool that an owner was found for.
struct OwnedBlocks {
  std::vector<bool> owned;
  int64_t count = 0;

  void add(const BlockPool& pool, BlockId block) {
    WITAN_CHECK(pool.is_used(block), "block {} is held, but free", block);
    if (static_cast<size_t>(block) >= owned.size()) owned.resize(block + 1);
    WITAN_CHECK(!owned[block], "block {} is held twice", block);
    owned[block] = true;
    ++count;
  }
};

}  // namespace

// own(pool, block) is told of the blocks that are the sequence's.
void KvCache::State::check_aside(const KvSequence& sequence, FunctionRef<void(int32_t pool, BlockId block)> own) const {
  const AsideEntries& aside = *sequence.aside;
  WITAN_CHECK(sequence.is_detached && sequence.demoted_pools.empty(),
              "entries aside of one that has all or demoted ones");
  WITAN_CHECK(aside.num_tokens <= sequence.num_tokens && num_blocks_for(aside.num_tokens) <= aside.num_blocks,
              "{} entries aside in {} blocks, of {} tokens", aside.num_tokens, aside.num_blocks, sequence.num_tokens);
  const bool is_in_file = aside.file != nullptr;
  WITAN_CHECK(aside.block_bytes == (is_in_file ? 0 : aside.num_blocks * full_set_bytes), "{} bytes of {} blocks aside",
              aside.block_bytes, aside.num_blocks);
  WITAN_CHECK(!is_in_file || (aside.prefix.empty() && aside.file->num_bytes() >= aside.num_blocks * full_set_bytes),
              "{} blocks aside in a file", aside.num_blocks);
  for (int64_t table = 0; table < num_tables(); ++table) {
    if (is_window_table[table]) continue;
    const BlockTable& entries = aside.tables[table];
    WITAN_CHECK(entries.num_blocks == aside.num_blocks && entries.num_entries == aside.num_tokens,
                "table {}: {} entries aside in {} blocks", table, entries.num_entries, entries.num_blocks);
    for (int64_t place = 0; !is_in_file && place < aside.num_blocks; ++place) {
      const BlockId block = aside.tables.id(table, place);
      if (place < std::ssize(aside.prefix)) {
        WITAN_CHECK(block == index.blocks(aside.prefix[place])[table], "block {} in place of the prefix's", block);
      } else {
        own(pool_of_table[table], block);
      }
      WITAN_CHECK(aside.tables.block(table, place) == pools[pool_of_table[table]].blocks.data(block),
                  "block {} has moved", block);
    }
  }
}

void KvCache::check_integrity() const {
  State& state = *state_;
  std::vector<OwnedBlocks> owned(state.pools.size());
  const auto own = [&](int32_t pool, BlockId block) { owned[pool].add(state.pools[pool].blocks, block); };
  state.index.for_each([&](PrefixId entry) {
    for (int64_t table = 0; table < state.num_tables(); ++table) {
      if (state.is_window_table[table] && !state.index.has_window(entry)) continue;
      own(state.pool_of_table[table], state.index.blocks(entry)[table]);
    }
  });

  std::vector<int64_t> num_references;
  std::vector<int64_t> num_window_references;
  size_t num_vacant = 0;
  for (const State::Slot& slot : state.slots) {
    if (!slot.sequence) {
      ++num_vacant;
      continue;
    }
    const KvSequence& sequence = *slot.sequence;
    const auto count_reference = [&](PrefixId entry) {
      if (entry >= std::ssize(num_references)) num_references.resize(entry + 1);
      num_window_references.resize(num_references.size());
      ++num_references[entry];
    };
    if (sequence.aside != nullptr) {
      std::ranges::for_each(sequence.aside->prefix, count_reference);
      state.check_aside(sequence, own);
    }
    for (int64_t place = 0; place < std::ssize(sequence.prefix); ++place) {
      const PrefixId entry = sequence.prefix[place];
      count_reference(entry);
      if (state.window > 0 && place >= sequence.first_window_block) ++num_window_references[entry];
    }
    WITAN_CHECK(sequence.first_window_block == state.first_window_block(sequence.num_tokens),
                "sequence {} of {} tokens holds its window from block {}", slot.id, sequence.num_tokens,
                sequence.first_window_block);
    int64_t block_bytes = 0;
    for (int64_t table = 0; table < state.num_tables(); ++table) {
      const BlockTable& blocks = sequence.tables[table];
      const int64_t num_entries = static_cast<int64_t>(blocks.num_entries) + sequence.num_reserved;
      WITAN_CHECK(blocks.num_blocks == blocks.num_blocks_of(num_entries), "{} blocks for {} entries, {} demoted",
                  blocks.num_blocks, num_entries, blocks.num_demoted);
      WITAN_CHECK(blocks.num_demoted <= blocks.num_entries && (blocks.num_demoted == 0 || sequence.is_detached),
                  "{} of {} entries are demoted", blocks.num_demoted, blocks.num_entries);
      if (blocks.num_demoted > 0) (void)state.demoted_channels(sequence, table);  // as many as there should be
      WITAN_CHECK(!blocks.lost_entries || std::ssize(blocks.positions) == num_entries, "{} positions for {} entries",
                  blocks.positions.size(), num_entries);
      WITAN_CHECK(blocks.lost_entries || blocks.num_entries == sequence.num_tokens, "{} entries for {} tokens",
                  blocks.num_entries, sequence.num_tokens);
      const int64_t first = state.first_block(sequence, table);
      block_bytes += state.table_bytes(sequence, table);
      for (int64_t place = 0; place < first; ++place) {
        WITAN_CHECK(sequence.tables.id(table, place) == kNoBlock && sequence.tables.block(table, place) == nullptr,
                    "a block in the place {} that the window has passed", place);
      }
      for (int64_t place = first; place < blocks.num_blocks; ++place) {
        const BlockId block = sequence.tables.id(table, place);
        if (place < std::ssize(sequence.prefix)) {
          const BlockId shared = state.index.blocks(sequence.prefix[place])[table];
          WITAN_CHECK(block == shared, "block {} in place of the prefix's {}", block, shared);
        } else {
          own(state.pool_of_place(sequence, table, place), block);
        }
        const BlockPool& pool = state.pools[state.pool_of_place(sequence, table, place)].blocks;
        WITAN_CHECK(sequence.tables.block(table, place) == pool.data(block), "block {} has moved", block);
      }
    }
    WITAN_CHECK(block_bytes == sequence.block_bytes, "sequence {} holds {} bytes, {} counted", slot.id, block_bytes,
                sequence.block_bytes);
  }
  std::map<InputId, int64_t> num_input_references;
  for (const State::Slot& slot : state.slots) {
    if (slot.sequence && slot.sequence->input != kNoInput) ++num_input_references[slot.sequence->input];
  }
  state.check_inputs(num_input_references);
  for (const auto& [id, input] : state.inputs) {
    for (size_t i = 0; i < input.ids.size(); ++i) {
      const int32_t pool = state.pool_of_input_table[i / static_cast<size_t>(input.num_blocks)];
      owned[pool].add(state.pools[pool].blocks, input.ids[i]);
    }
  }
  int64_t compressed_bytes = 0;
  for (const auto& [id, prefix] : state.compressed) {
    const KvSequence& sequence = prefix.sequence;
    WITAN_CHECK(
        sequence.num_reserved == 0 && sequence.prefix.empty() && sequence.num_tokens == std::ssize(prefix.tokens),
        "compressed prefix {} of {} tokens has {}", id, prefix.tokens.size(), sequence.num_tokens);
    int64_t block_bytes = 0;
    for (int64_t table = 0; table < state.num_tables(); ++table) {
      block_bytes += state.table_bytes(sequence, table);
      for (int64_t place = state.first_block(sequence, table); place < sequence.tables[table].num_blocks; ++place) {
        own(state.pool_of_place(sequence, table, place), sequence.tables.id(table, place));
      }
    }
    WITAN_CHECK(block_bytes == sequence.block_bytes, "compressed prefix {} holds {} bytes, {} counted", id, block_bytes,
                sequence.block_bytes);
    compressed_bytes += block_bytes;
  }
  WITAN_CHECK(compressed_bytes == state.compressed_bytes, "{} bytes of compressed prefixes, {} counted",
              compressed_bytes, state.compressed_bytes);
  WITAN_CHECK(num_vacant == state.vacant_slots.size(), "{} vacant slots, {} counted", num_vacant,
              state.vacant_slots.size());
  state.index.check_integrity(num_references, num_window_references);

  int64_t block_bytes = 0;
  size_t slab_bytes = 0;
  for (size_t i = 0; i < state.pools.size(); ++i) {
    const BlockPool& blocks = state.pools[i].blocks;
    blocks.check_integrity();
    WITAN_CHECK(owned[i].count == blocks.num_used(), "{} blocks have owners, {} are used", owned[i].count,
                blocks.num_used());
    block_bytes += blocks.num_used() * blocks.block_bytes();
    slab_bytes += static_cast<size_t>(blocks.num_slabs() * blocks.slab_bytes());
  }
  WITAN_CHECK(block_bytes == state.stats.block_bytes_held, "{} bytes of blocks held, {} counted", block_bytes,
              state.stats.block_bytes_held);
  WITAN_CHECK(block_bytes <= state.stats.peak_block_bytes_held, "{} bytes held above the peak of {}", block_bytes,
              state.stats.peak_block_bytes_held);
  WITAN_CHECK(block_bytes <= state.capacity_bytes, "{} bytes held of {} allowed", block_bytes, state.capacity_bytes);
  state.memory.check_integrity();
  WITAN_CHECK(slab_bytes <= state.memory.held_bytes(MemoryTag::kKvCache), "{} bytes of slabs, {} held by the pool",
              slab_bytes, state.memory.held_bytes(MemoryTag::kKvCache));
}

}  // namespace witan
