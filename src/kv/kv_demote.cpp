// Rounding a sequence's older entries, or those that a policy does not keep as they are, to fewer bits, and leaving out
// components of their keys, in blocks of their own.
#include <algorithm>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "kernels/attention/kv_block.h"
#include "kv/kv_state.h"

namespace witan {
namespace {

// Blocks of entries of one table, as they were written, to become as many demoted ones.
struct Demotion {
  int64_t table;
  int64_t first_place;  // of those blocks
  int64_t num_blocks;
  std::vector<BlockId> blocks = {};  // that the table gets
};

// Up to 32 entries, in float32.
class BlockFloats {
 public:
  // Of the keys these components alone, side by side; all if there are none.
  BlockFloats(const KvBlockFormat& format, std::span<const int32_t> channels)
      : format_(format),
        channels_(channels),
        keys_(static_cast<size_t>(kKvBlockSize) * static_cast<size_t>(format.key_dim)),
        values_(format.value_in_key ? 0 : static_cast<size_t>(kKvBlockSize) * static_cast<size_t>(format.value_dim)) {}

  void load(const std::byte* block) {
    for (int32_t i = 0; i < kKvBlockSize; ++i) load(i, block, i);
  }
  void load(int32_t i, const std::byte* block, int32_t slot) {
    float* of_value = values_.empty() ? nullptr : values_.data() + int64_t{i} * format_.value_dim;
    float* of_key = keys_.data() + int64_t{i} * format_.key_dim;
    kv_load(format_, block, slot, of_key, of_value);
    std::ranges::transform(channels_, of_key, [&](int32_t channel) { return of_key[channel]; });  // they ascend
  }

  const float* key(int32_t slot) const { return keys_.data() + int64_t{slot} * format_.key_dim; }
  const float* value(int32_t slot) const {
    return values_.empty() ? nullptr : values_.data() + int64_t{slot} * format_.value_dim;
  }
  KvRows rows() const {
    return {.keys = keys_.data(),
            .key_stride = format_.key_dim,
            .values = values_.data(),
            .value_stride = format_.value_dim};
  }

 private:
  KvBlockFormat format_;
  std::span<const int32_t> channels_;
  std::vector<float> keys_;    // [32][key_dim]
  std::vector<float> values_;  // [32][value_dim]
};

// Whether keys can lose components.
void check_channels(int32_t layer, const KvBlockFormat& demoted, const KvBlockFormat& written) {
  if (written.value_in_key) {
    fail(ErrorCode::kUnsupported,
         "layer {}: keys cannot lose channels: they are latents, keys and values of all heads in one (MLA)", layer);
  }
  if (demoted.codec == written.codec && written.turned_key_dim() != 0) {
    fail(ErrorCode::kUnsupported,
         "layer {}: the KV cache is of type {}, whose keys are turned: each component is of all channels, and none can "
         "be left out; demote them to a smaller type as well, or give the cache another --kv-type",
         layer, kv_codec_name(written.codec));
  }
}

}  // namespace

KvBlockFormat KvCache::State::demoted_format(const KvDemotion& demotion, int32_t layer) const {
  KvBlockFormat format = layers[layer].format;
  format.codec = demotion.codecs[layer];
  if (!demotion.key_dims.empty()) format.key_dim = demotion.key_dims[layer];
  return format;
}

std::vector<int32_t> KvCache::State::pools_for(const KvDemotion& demotion) {
  WITAN_CHECK(demotion.codecs.size() == layers.size(), "codecs of {} layers", demotion.codecs.size());
  std::vector<int32_t> of_layers(layers.size());
  for (int32_t layer = 0; layer < std::ssize(of_layers); ++layer) {
    const bool stays = config.layers[layer].window > 0;
    of_layers[layer] = stays ? layers[layer].pool : pool_for(demoted_format(demotion, layer));
  }
  return of_layers;
}

void KvCache::check_demotion(const KvDemotion& demotion) const {
  const State& state = *state_;
  if (demotion.codecs.size() != state.layers.size()) {
    fail(ErrorCode::kInvalidArgument, "types of KV entries for {} layers; the model has {}", demotion.codecs.size(),
         state.layers.size());
  }
  for (int32_t layer = 0; layer < std::ssize(state.layers); ++layer) {
    const KvLayerSpec& spec = state.config.layers[layer];
    if (spec.window > 0) continue;
    check_kv_codec(spec, demotion.codecs[layer]);
    const KvBlockFormat demoted = state.demoted_format(demotion, layer);
    const KvBlockFormat& written = state.layers[layer].format;
    if (demoted.key_dim < written.key_dim) check_channels(layer, demoted, written);
    if (demoted == written || demoted.block_bytes() < written.block_bytes()) continue;
    fail(ErrorCode::kInvalidArgument,
         "layer {}: KV entries of type {} are not smaller than the cache's own, of type {}: {} and {} bytes a block",
         layer, kv_codec_name(demoted.codec), kv_codec_name(written.codec), demoted.block_bytes(),
         written.block_bytes());
  }
}

int64_t KvCache::demoted_bytes(const KvDemotion& demotion, int64_t num_entries) const {
  int64_t set_bytes = 0;
  for (int32_t layer = 0; layer < std::ssize(state_->layers); ++layer) {
    const KvLayerSpec& spec = state_->config.layers[layer];
    if (spec.window == 0) set_bytes += spec.num_kv_heads * state_->demoted_format(demotion, layer).block_bytes();
  }
  return num_blocks_for(num_entries) * set_bytes;
}

void KvCache::choose_channels(SequenceId id, std::vector<std::vector<int32_t>> channels) {
  const State& state = *state_;
  KvSequence& sequence = state.at(id);
  WITAN_CHECK(sequence.channels.empty() && sequence.demoted_pools.empty(), "sequence {} has its channels", id);
  WITAN_CHECK(std::ssize(channels) == state.num_tables(), "channels of {} tables, there are {}", channels.size(),
              state.num_tables());
  for (int64_t table = 0; table < state.num_tables(); ++table) {
    const std::vector<int32_t>& chosen = channels[table];
    const auto rises = [](int32_t a, int32_t b) { return a >= b; };
    WITAN_CHECK(std::ranges::adjacent_find(chosen, rises) == chosen.end(), "table {}: not ascending", table);
    WITAN_CHECK(chosen.empty() || (chosen.front() >= 0 && chosen.back() < state.format_of_table(table).key_dim),
                "table {}: channels {} to {} of {}", table, chosen.front(), chosen.back(),
                state.format_of_table(table).key_dim);
  }
  sequence.channels = std::move(channels);
}

bool KvCache::has_channels(SequenceId id) const { return !state_->at(id).channels.empty(); }

bool KvCache::demote(SequenceId id, const KvDemotion& demotion, Isa isa, ThreadPool& threads) {
  State& state = *state_;
  KvSequence& sequence = state.at(id);
  WITAN_CHECK(sequence.num_reserved == 0, "{} entries are reserved", sequence.num_reserved);
  WITAN_CHECK(sequence.aside == nullptr, "sequence {} has entries aside", id);
  std::vector<int32_t> pools = state.pools_for(demotion);
  WITAN_CHECK(sequence.demoted_pools.empty() || sequence.demoted_pools == pools, "sequence {} has other formats", id);

  const auto num_shared = std::ssize(sequence.prefix);
  std::vector<Demotion> changes;
  std::ranges::fill(state.needed_blocks, 0);
  for (int64_t table = 0; table < state.num_tables(); ++table) {
    const int32_t pool = pools[state.layer_of_table[table]];
    const BlockTable& entries = sequence.tables[table];
    const int64_t num_older = int64_t{entries.num_entries} - entries.num_demoted - demotion.num_recent;
    const bool stays = pool == state.pool_of_table[table] || num_older < kKvBlockSize;
    const int64_t num_blocks = stays ? 0 : num_older / kKvBlockSize;
    if (num_blocks > 0) {
      changes.push_back({.table = table, .first_place = entries.num_demoted_blocks(), .num_blocks = num_blocks});
      state.needed_blocks[pool] += num_blocks;
    }
    const int64_t num_copies = state.is_window_table[table] ? state.num_copies(sequence, table, 0, num_shared)
                                                            : std::max<int64_t>(0, num_shared - num_blocks);
    state.needed_blocks[state.pool_of_table[table]] += num_copies;
  }
  if (changes.empty()) return true;
  if (!state.make_room(state.needed_blocks)) return false;
  for (Demotion& change : changes) {
    const int32_t pool = pools[state.layer_of_table[change.table]];
    const BlockId last = change.first_place == 0 ? kNoBlock : sequence.tables.id(change.table, change.first_place - 1);
    change.blocks.resize(change.num_blocks);
    state.pools[pool].blocks.allocate(last, change.first_place, change.blocks);
    state.stats.block_bytes_held += change.num_blocks * state.pools[pool].blocks.block_bytes();
  }
  state.stats.peak_block_bytes_held = std::max(state.stats.peak_block_bytes_held, state.stats.block_bytes_held);
  sequence.demoted_pools = std::move(pools);

  // Entries go behind those that were demoted before, whose last block may have room.
  threads.parallel_for(std::ssize(changes), [&](int64_t i, int) {
    const Demotion& change = changes[i];
    const BlockTable& entries = sequence.tables[change.table];
    const State::Pool& pool = state.pools[sequence.demoted_pools[state.layer_of_table[change.table]]];
    const auto block_at = [&](int64_t place) {
      return place < change.first_place ? sequence.tables.block(change.table, place)
                                        : pool.blocks.data(change.blocks[place - change.first_place]);
    };
    BlockFloats floats(state.format_of_table(change.table), state.demoted_channels(sequence, change.table));
    for (int64_t block = 0; block < change.num_blocks; ++block) {
      floats.load(sequence.tables.block(change.table, change.first_place + block));
      const int64_t first = entries.num_demoted + block * kKvBlockSize;
      if (first % kKvBlockSize == 0) {
        kv_store_block(isa, pool.format, block_at(first / kKvBlockSize), kKvBlockSize, floats.rows());
        continue;
      }
      for (int32_t slot = 0; slot < kKvBlockSize; ++slot) {
        const int64_t entry = first + slot;
        kv_store(pool.format, block_at(entry / kKvBlockSize), static_cast<int>(entry % kKvBlockSize), floats.key(slot),
                 floats.value(slot));
      }
    }
  });
  for (const Demotion& change : changes) state.place_demoted(sequence, change.table, change.blocks);
  for (int64_t table = 0; table < state.num_tables(); ++table) {
    const int64_t first = sequence.tables[table].num_demoted_blocks();
    if (state.is_window_table[table]) {
      state.copy_window(sequence, table);
    } else if (first < num_shared) {
      state.copy_shared(sequence, table, first, num_shared - first);
    }
  }
  state.stats.peak_block_bytes_held = std::max(state.stats.peak_block_bytes_held, state.stats.block_bytes_held);
  state.detach(sequence);
  state.trim();
  return true;
}

std::span<const int32_t> KvCache::State::demoted_channels(const KvSequence& sequence, int64_t table) const {
  const int32_t key_dim = pools[sequence.demoted_pools[layer_of_table[table]]].format.key_dim;
  if (key_dim == format_of_table(table).key_dim) return {};
  WITAN_CHECK(!sequence.channels.empty() && std::cmp_equal(sequence.channels[table].size(), key_dim),
              "table {}: not the channels for keys of {}", table, key_dim);
  return sequence.channels[table];
}

// The blocks of the demoted entries take the places of those that these were in.
void KvCache::State::place_demoted(KvSequence& sequence, int64_t table, std::span<const BlockId> blocks) {
  BlockTable& entries = sequence.tables[table];
  BlockPool& from = pool(table);
  BlockPool& to = pools[sequence.demoted_pools[layer_of_table[table]]].blocks;
  int64_t place = entries.num_demoted_blocks();
  for (const BlockId block : blocks) {
    if (place >= std::ssize(sequence.prefix)) {
      from.release(sequence.tables.id(table, place));
      stats.block_bytes_held -= from.block_bytes();
    }
    sequence.tables.set(table, place++, block, to.data(block));
  }
  entries.num_demoted += static_cast<int32_t>(std::ssize(blocks)) * kKvBlockSize;
  sequence.block_bytes += std::ssize(blocks) * (to.block_bytes() - from.block_bytes());
}

// Of each table the entries that are not in `kept`, rounded, in new blocks; those are stored, but of no table yet.
std::vector<KvCache::State::Rounded> KvCache::State::round_others(const KvSequence& sequence,
                                                                  std::span<const std::vector<int32_t>> kept, Isa isa,
                                                                  ThreadPool& threads) {
  std::vector<Rounded> all(num_tables());
  for (int64_t table = 0; table < num_tables(); ++table) {
    Rounded& rounded = all[table];
    if (is_window_table[table]) continue;
    for (int32_t entry = 0, next = 0; entry < sequence.tables[table].num_entries; ++entry) {
      if (next < std::ssize(kept[table]) && kept[table][next] == entry) {
        ++next;
      } else {
        rounded.entries.push_back(entry);
      }
    }
    rounded.blocks.resize(num_blocks_for(std::ssize(rounded.entries)));
    BlockPool& to = pools[sequence.demoted_pools[layer_of_table[table]]].blocks;
    to.allocate(kNoBlock, 0, rounded.blocks);
    stats.block_bytes_held += std::ssize(rounded.blocks) * to.block_bytes();
  }
  stats.peak_block_bytes_held = std::max(stats.peak_block_bytes_held, stats.block_bytes_held);
  threads.parallel_for(num_tables(), [&](int64_t table, int) {
    const Rounded& rounded = all[table];
    if (rounded.blocks.empty()) return;
    const Pool& pool = pools[sequence.demoted_pools[layer_of_table[table]]];
    BlockFloats floats(format_of_table(table), demoted_channels(sequence, table));
    for (int64_t block = 0; block < std::ssize(rounded.blocks); ++block) {
      const int64_t last = std::ssize(rounded.entries) - 1;
      for (int32_t slot = 0; slot < kKvBlockSize; ++slot) {
        // What is left of the last block is of its last entry again, which no range of a whole block changes by.
        const KvCache::Slot from =
            sequence.tables.slot(table, rounded.entries[std::min(block * kKvBlockSize + slot, last)]);
        floats.load(slot, from.block, from.slot);
      }
      kv_store_block(isa, pool.format, pool.blocks.data(rounded.blocks[block]), kKvBlockSize, floats.rows());
    }
  });
  return all;
}

// They come before the entries that were kept.
void KvCache::State::place_rounded(KvSequence& sequence, int64_t table, const Rounded& rounded,
                                   std::span<const int32_t> kept) {
  BlockTable& entries = sequence.tables[table];
  BlockPool& to = pools[sequence.demoted_pools[layer_of_table[table]]].blocks;
  const auto num_blocks = static_cast<int32_t>(std::ssize(rounded.blocks));
  for (int64_t place = entries.num_blocks - 1; place >= 0; --place) {
    const BlockId block = sequence.tables.id(table, place);
    sequence.tables.set(table, place + num_blocks, block, pool(table).data(block));
  }
  for (int64_t place = 0; const BlockId block : rounded.blocks) {
    sequence.tables.set(table, place++, block, to.data(block));
  }
  entries.num_blocks += num_blocks;
  entries.num_demoted = static_cast<int32_t>(std::ssize(rounded.entries));
  entries.num_entries += entries.num_demoted;
  entries.lost_entries = true;
  entries.positions = rounded.entries;
  entries.positions.insert(entries.positions.end(), kept.begin(), kept.end());
  sequence.block_bytes += num_blocks * to.block_bytes();
}

bool KvCache::demote_others(SequenceId id, std::span<const std::vector<int32_t>> kept, const KvDemotion& demotion,
                            Isa isa, ThreadPool& threads) {
  State& state = *state_;
  KvSequence& sequence = state.at(id);
  WITAN_CHECK(sequence.num_reserved == 0, "{} entries are reserved", sequence.num_reserved);
  WITAN_CHECK(sequence.aside == nullptr, "sequence {} has entries aside", id);
  WITAN_CHECK(sequence.demoted_pools.empty(), "sequence {} has demoted entries", id);
  const std::vector<int32_t> pools = state.pools_for(demotion);
  std::vector<std::vector<int32_t>> stays(kept.begin(), kept.end());
  std::vector<int64_t> needed(state.pools.size());
  int64_t longest = 0;
  WITAN_CHECK(std::ssize(kept) == state.num_tables(), "entries of {} tables, there are {}", kept.size(),
              state.num_tables());
  for (int64_t table = 0; table < state.num_tables(); ++table) {
    if (state.is_window_table[table]) continue;
    const BlockTable& entries = sequence.tables[table];
    WITAN_CHECK(!entries.lost_entries, "table {} has lost entries", table);
    const int32_t pool = pools[state.layer_of_table[table]];
    if (pool == state.pool_of_table[table]) {
      stays[table].resize(entries.num_entries);
      std::iota(stays[table].begin(), stays[table].end(), 0);
    }
    const int64_t num_blocks = num_blocks_for(entries.num_entries - std::ssize(stays[table]));
    needed[pool] += num_blocks;
    longest = std::max(longest, num_blocks + num_blocks_for(std::ssize(stays[table])));
  }
  if (!state.check_kept(stays, [&](int64_t table) { return sequence.tables[table].num_entries; })) return true;
  if (!state.make_room_to_keep(sequence, stays, needed)) return false;
  sequence.demoted_pools = pools;
  const std::vector<State::Rounded> rounded = state.round_others(sequence, stays, isa, threads);
  sequence.tables.grow_rows(longest);
  for (int64_t table = 0; table < state.num_tables(); ++table) {
    if (state.is_window_table[table]) {
      state.copy_window(sequence, table);
    } else {
      state.keep_entries(sequence, table, stays[table], {});
      if (!rounded[table].blocks.empty()) state.place_rounded(sequence, table, rounded[table], stays[table]);
    }
    state.stats.peak_block_bytes_held = std::max(state.stats.peak_block_bytes_held, state.stats.block_bytes_held);
  }
  state.detach(sequence);
  state.trim();
  return true;
}

}  // namespace witan
