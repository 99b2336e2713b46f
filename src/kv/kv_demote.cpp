// Rounding a sequence's older entries to fewer bits, and leaving out components of their keys, in blocks that replace
// those that they were in.
#include <algorithm>
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

// A block's entries, in float32.
class BlockFloats {
 public:
  explicit BlockFloats(const KvBlockFormat& format)
      : format_(format),
        keys_(static_cast<size_t>(kKvBlockSize) * static_cast<size_t>(format.key_dim)),
        values_(format.value_in_key ? 0 : static_cast<size_t>(kKvBlockSize) * static_cast<size_t>(format.value_dim)) {}

  // Of the keys these components alone, side by side; all if there are none.
  void load(const std::byte* block, std::span<const int32_t> channels) {
    for (int32_t i = 0; i < kKvBlockSize; ++i) {
      float* of_value = values_.empty() ? nullptr : values_.data() + int64_t{i} * format_.value_dim;
      float* of_key = keys_.data() + int64_t{i} * format_.key_dim;
      kv_load(format_, block, i, of_key, of_value);
      std::ranges::transform(channels, of_key, [&](int32_t channel) { return of_key[channel]; });  // they ascend
    }
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
  WITAN_CHECK(demotion.codecs.size() == state.layers.size(), "codecs of {} layers", demotion.codecs.size());
  std::vector<int32_t> pools(state.layers.size());
  for (int32_t layer = 0; layer < std::ssize(pools); ++layer) {
    const bool stays = state.config.layers[layer].window > 0;
    pools[layer] = stays ? state.layers[layer].pool : state.pool_for(state.demoted_format(demotion, layer));
  }
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
    const std::span<const int32_t> channels = state.demoted_channels(sequence, change.table);
    BlockFloats floats(state.format_of_table(change.table));
    for (int64_t block = 0; block < change.num_blocks; ++block) {
      floats.load(sequence.tables.block(change.table, change.first_place + block), channels);
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

}  // namespace witan
