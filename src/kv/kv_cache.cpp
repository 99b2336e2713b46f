#include "kv/kv_cache.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "kv/kv_state.h"

namespace witan {
namespace {

// A sequence's id is its serial number and its place: ids are never used again, and finding one is an index.
constexpr int kSlotBits = 20;

// New entries come one by one.
void check_cache_codec(const KvLayerSpec& spec, KvCodec codec) {
  if (kv_codec_is_blockwise(codec)) {
    fail(
        ErrorCode::kInvalidArgument,
        "a KV cache cannot be of type {}: its entries are written in whole blocks of {}, and new ones come one by one; "
        "a KV policy can demote older entries to it",
        kv_codec_name(codec), kKvBlockSize);
  }
  check_kv_codec(spec, codec);
}

int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

KvBlockFormat format_of(const KvCacheConfig& config, size_t layer) {
  const KvLayerSpec& spec = config.layers[layer];
  if (spec.window < 0) fail(ErrorCode::kInvalidArgument, "KV layer {}: a window of {} entries", layer, spec.window);
  if (spec.num_kv_heads < 1 || spec.key_dim < 1 || spec.value_dim < 1 ||
      (spec.value_in_key && spec.value_dim > spec.key_dim)) {
    fail(ErrorCode::kInvalidArgument, "KV layer {}: {} kv heads with keys of {} and values of {}{}", layer,
         spec.num_kv_heads, spec.key_dim, spec.value_dim, spec.value_in_key ? " within the key" : "");
  }
  check_cache_codec(spec, config.codec);
  return {config.codec, spec.key_dim, spec.value_dim, spec.value_in_key};
}

int64_t count_tables(const KvCacheConfig& config) {
  int64_t num_tables = 0;
  for (const KvLayerSpec& spec : config.layers) num_tables += std::max(spec.num_kv_heads, 0);
  return num_tables;
}

uint64_t root_hash(const KvCacheConfig& config) {
  std::vector<uint64_t> facts = {config.content_salt, kKvBlockSize, static_cast<uint64_t>(config.codec)};
  for (const KvLayerSpec& spec : config.layers) {
    for (int32_t fact : {spec.num_kv_heads, spec.key_dim, spec.value_dim, spec.value_in_key ? 1 : 0, spec.window}) {
      facts.push_back(static_cast<uint64_t>(fact));
    }
  }
  return PrefixIndex::default_hash(facts.data(), facts.size() * sizeof(uint64_t));
}

// Places that a window table holds at most while a text of num_tokens is computed in chunks.
int64_t window_places(int64_t window, int64_t num_tokens, int64_t chunk_tokens) {
  const int64_t chunk = std::min(chunk_tokens, num_tokens);
  return std::min(num_blocks_for(num_tokens), num_blocks_for(window - 1 + chunk) + 1);
}

}  // namespace

// Latents are keys and values in one: few codecs are for both.
void check_kv_codec(const KvLayerSpec& spec, KvCodec codec) {
  if (kv_codec_fits(codec, spec.value_in_key)) return;
  if (spec.value_in_key) {
    fail(ErrorCode::kInvalidArgument,
         "KV entries of type {} are not for models whose layers cache latents (MLA): use int8-latent, int4-latent, "
         "q8_0, bf16, f16 or f32",
         kv_codec_name(codec));
  }
  fail(ErrorCode::kInvalidArgument,
       "KV entries of type {} are only for models whose layers cache latents (MLA): use q8_0, bf16, f16, f32 or a "
       "hadamard type",
       kv_codec_name(codec));
}

int64_t kv_bytes_for_tokens(std::span<const KvLayerSpec> layers, KvCodec codec, int64_t num_tokens,
                            int64_t chunk_tokens) {
  int32_t window = 0;
  for (const KvLayerSpec& layer : layers) window = std::max(window, layer.window);
  int64_t bytes = 0;
  for (const KvLayerSpec& layer : layers) {
    check_cache_codec(layer, codec);
    const KvBlockFormat format{codec, layer.key_dim, layer.value_dim, layer.value_in_key};
    const int64_t num_places =
        layer.window > 0 ? window_places(window, num_tokens, chunk_tokens) : num_blocks_for(num_tokens);
    bytes += num_places * layer.num_kv_heads * format.block_bytes();
  }
  return bytes;
}

void BlockTables::grow_rows(int64_t num_blocks) {
  if (num_blocks <= stride_) return;
  constexpr int64_t kLeastStride = 8;
  const int64_t stride = std::max({num_blocks, 2 * stride_, kLeastStride});
  const auto num_tables = std::ssize(tables_);
  std::vector<BlockId> ids(num_tables * stride);
  std::vector<std::byte*> blocks(num_tables * stride);
  for (int64_t table = 0; table < num_tables; ++table) {
    std::copy_n(ids_.begin() + table * stride_, tables_[table].num_blocks, ids.begin() + table * stride);
    std::copy_n(blocks_.begin() + table * stride_, tables_[table].num_blocks, blocks.begin() + table * stride);
  }
  stride_ = stride;
  ids_ = std::move(ids);
  blocks_ = std::move(blocks);
}

KvCache::State::State(MemoryPool& pool, KvCacheConfig cache_config)
    : memory(pool),
      config(std::move(cache_config)),
      capacity_bytes(
          static_cast<int64_t>(std::min<size_t>(config.capacity_bytes, std::numeric_limits<int64_t>::max()))),
      index(count_tables(config), root_hash(config)) {
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    const KvBlockFormat format = format_of(config, layer);
    const int32_t pool_index = pool_for(format);
    layers.push_back({format, pool_index, num_tables()});
    const int32_t num_heads = config.layers[layer].num_kv_heads;
    const bool windowed = config.layers[layer].window > 0;
    window = std::max(window, config.layers[layer].window);
    (windowed ? pools[pool_index].num_window_tables : pools[pool_index].num_full_tables) += num_heads;
    (windowed ? window_set_bytes : full_set_bytes) += num_heads * format.block_bytes();
    pool_of_table.insert(pool_of_table.end(), num_heads, pool_index);
    layer_of_table.insert(layer_of_table.end(), num_heads, static_cast<int32_t>(layer));
    is_window_table.insert(is_window_table.end(), num_heads, windowed);
  }
  if (layers.empty()) fail(ErrorCode::kInvalidArgument, "a KV cache needs at least one layer");
  if (capacity_bytes < set_bytes()) {
    fail(ErrorCode::kOutOfMemory, "the KV cache may hold {} bytes, but one block of each of {} tables takes {}",
         capacity_bytes, num_tables(), set_bytes());
  }
  add_input_layers();
}

int32_t KvCache::State::pool_for(const KvBlockFormat& format) {
  const auto same = std::ranges::find(pools, format, &Pool::format);
  if (same != pools.end()) return static_cast<int32_t>(same - pools.begin());
  pools.push_back({format, BlockPool(memory, format.block_bytes())});
  needed_blocks.resize(pools.size());
  dropped_blocks.resize(pools.size());
  return static_cast<int32_t>(pools.size()) - 1;
}

int64_t KvCache::State::table_of(int32_t layer, int32_t head) const {
  WITAN_CHECK(layer >= 0 && layer < std::ssize(layers), "layer {} of {}", layer, layers.size());
  WITAN_CHECK(head >= 0 && head < config.layers[layer].num_kv_heads, "kv head {} of {} in layer {}", head,
              config.layers[layer].num_kv_heads, layer);
  return layers[layer].first_table + head;
}

KvSequence& KvCache::State::at(SequenceId id) const {
  const auto slot = static_cast<size_t>(id & ((SequenceId{1} << kSlotBits) - 1));
  WITAN_CHECK(id >= 0 && slot < slots.size() && slots[slot].id == id, "sequence {} does not exist", id);
  return *slots[slot].sequence;
}

bool KvCache::State::make_room(std::span<const int64_t> needed) {
  int64_t missing_bytes = stats.block_bytes_held - capacity_bytes;
  for (size_t i = 0; i < pools.size(); ++i) missing_bytes += needed[i] * pools[i].blocks.block_bytes();
  std::ranges::fill(dropped_blocks, 0);
  int64_t num_windows = 0;
  int64_t num_entries = 0;
  PrefixId window_part = index.oldest_passed();
  PrefixId entry = index.oldest_unreferenced();
  std::vector<InputId> dropped_inputs;
  const std::vector<InputId> candidates = cached_inputs();
  std::vector<CompressedId> compressed_left = droppable_compressed();
  std::ranges::reverse(compressed_left);
  std::vector<CompressedId> dropped_compressed;
  bool is_last_try = false;  // memory is short, of which other pools may give slabs back once all is dropped
  // Frames that others leave are used before anything is dropped. Slabs come first, as another thread may take the
  // memory pool's last frames at any time, and what is dropped cannot be brought back.
  while (missing_bytes > 0 || !take_slabs(needed, dropped_blocks)) {
    bool drops_full = false;
    bool drops_window = true;
    if (window_part != kNoPrefix) {
      window_part = index.newer_passed(window_part);
      ++num_windows;
    } else if (entry != kNoPrefix) {
      drops_full = true;
      drops_window = index.has_window(entry) && !index.is_passed(entry);
      entry = index.newer_unreferenced(entry);
      ++num_entries;
    } else if (dropped_inputs.size() < candidates.size()) {
      const KvInput& input = inputs.at(candidates[dropped_inputs.size()]);
      dropped_inputs.push_back(candidates[dropped_inputs.size()]);
      missing_bytes -= input_bytes(input);
      for (size_t i = 0; i < pools.size(); ++i) dropped_blocks[i] += input.num_blocks * pools[i].num_input_tables;
      continue;
    } else if (!compressed_left.empty()) {
      const KvSequence& sequence = compressed.at(compressed_left.back()).sequence;
      missing_bytes -= sequence.block_bytes;
      count_blocks(sequence, dropped_blocks);
      dropped_compressed.push_back(compressed_left.back());
      compressed_left.pop_back();
      continue;
    } else if (missing_bytes > 0 || pools.size() == 1) {
      return false;
    } else {
      is_last_try = true;
      break;
    }
    missing_bytes -= (drops_full ? full_set_bytes : 0) + (drops_window ? window_set_bytes : 0);
    for (size_t i = 0; i < pools.size(); ++i) {
      dropped_blocks[i] +=
          (drops_full ? pools[i].num_full_tables : 0) + (drops_window ? pools[i].num_window_tables : 0);
    }
  }
  for (int64_t i = 0; i < num_windows; ++i) drop_oldest_window();
  for (int64_t i = 0; i < num_entries; ++i) evict_oldest();
  for (const InputId id : dropped_inputs) drop_input(id);
  for (const CompressedId id : dropped_compressed) drop_compressed(id);
  stats.prefix_evicted_blocks += num_entries;
  if (!is_last_try) return true;
  trim();
  std::ranges::fill(dropped_blocks, 0);
  return take_slabs(needed, dropped_blocks);
}

bool KvCache::State::slabs_suffice(std::span<const int64_t> needed, std::span<const int64_t> dropped) const {
  int64_t bytes = 0;
  for (size_t i = 0; i < pools.size(); ++i) {
    const BlockPool& blocks = pools[i].blocks;
    const int64_t missing = needed[i] - dropped[i] - blocks.num_free();
    if (missing > 0) bytes += ceil_div(missing, blocks.blocks_per_slab()) * blocks.slab_bytes();
  }
  return std::cmp_less_equal(bytes, memory.free_bytes());
}

bool KvCache::State::take_slabs(std::span<const int64_t> needed, std::span<const int64_t> dropped) {
  if (!slabs_suffice(needed, dropped)) return false;
  for (size_t i = 0; i < pools.size(); ++i) {
    if (pools[i].blocks.ensure_free(needed[i] - dropped[i])) continue;
    trim();
    return false;
  }
  return true;
}

// Of one block per table, those of window tables or those of full ones.
void KvCache::State::release_blocks(std::span<const BlockId> blocks, bool of_window_tables) {
  for (int64_t table = 0; table < num_tables(); ++table) {
    if (is_window_table[table] == of_window_tables) pool(table).release(blocks[table]);
  }
  stats.block_bytes_held -= of_window_tables ? window_set_bytes : full_set_bytes;
}

void KvCache::State::drop_oldest_window() {
  const PrefixId entry = index.oldest_passed();
  WITAN_CHECK(entry != kNoPrefix, "no window part to drop");
  release_blocks(index.blocks(entry), true);
  index.drop_window(entry);
}

void KvCache::State::evict_oldest() {
  const PrefixId entry = index.oldest_unreferenced();
  WITAN_CHECK(entry != kNoPrefix, "no prefix block to drop");
  release_blocks(index.blocks(entry), false);
  if (index.has_window(entry)) release_blocks(index.blocks(entry), true);
  index.erase(entry);
}

void KvCache::State::drop_unreferenced() {
  while (index.num_passed() > 0) drop_oldest_window();
  while (index.num_unreferenced() > 0) evict_oldest();
}

void KvCache::State::resize(KvSequence& sequence, int64_t table, int64_t num_blocks) {
  BlockTable& blocks = sequence.tables[table];
  BlockPool& from = pool(table);
  const int64_t first = first_block(sequence, table);
  const int64_t num_new = num_blocks - blocks.num_blocks;
  if (num_new == 0) return;
  if (num_new > 0) {
    const int64_t last = blocks.num_blocks - 1;
    const bool goes_on = last >= first && pool_of_place(sequence, table, last) == pool_of_table[table];
    new_blocks.resize(num_new);
    from.allocate(goes_on ? sequence.tables.id(table, last) : kNoBlock, blocks.num_blocks - first, new_blocks);
    for (BlockId block : new_blocks) sequence.tables.set(table, blocks.num_blocks++, block, from.data(block));
  }
  int64_t num_bytes = std::max<int64_t>(0, num_new) * from.block_bytes();
  while (blocks.num_blocks > num_blocks) {
    const int64_t place = --blocks.num_blocks;
    BlockPool& of_place = pools[pool_of_place(sequence, table, place)].blocks;
    of_place.release(sequence.tables.id(table, place));
    num_bytes -= of_place.block_bytes();
  }
  sequence.block_bytes += num_bytes;
  stats.block_bytes_held += num_bytes;
}

// Turns the first full block behind the sequence's prefix into a prefix block, or exchanges it for an equal one.
void KvCache::State::publish_block(KvSequence& sequence) {
  const std::span tokens = std::span<const TokenId>(sequence.tail_tokens).first(kKvBlockSize);
  const std::span roles = std::span<const TokenRole>(sequence.tail_roles).first(kKvBlockSize);
  const PrefixId parent = sequence.prefix.empty() ? kNoPrefix : sequence.prefix.back();
  const auto place = std::ssize(sequence.prefix);
  PrefixId entry = index.find(parent, tokens, roles);
  if (entry == kNoPrefix) {
    new_blocks.resize(num_tables());
    for (int64_t table = 0; table < num_tables(); ++table) new_blocks[table] = sequence.tables.id(table, place);
    entry = index.insert(parent, tokens, roles, new_blocks);
  } else {
    index.reference(entry);
    adopt_block(sequence, entry);
  }
  if (window > 0) index.reference_window(entry);
  sequence.prefix.push_back(entry);
  sequence.tail_tokens.erase(sequence.tail_tokens.begin(), sequence.tail_tokens.begin() + kKvBlockSize);
  sequence.tail_roles.erase(sequence.tail_roles.begin(), sequence.tail_roles.begin() + kKvBlockSize);
}

// Exchanges the first block behind the sequence's prefix for the equal one of `entry`; where that has lost its window
// part, gives it the sequence's.
void KvCache::State::adopt_block(KvSequence& sequence, PrefixId entry) {
  const auto place = std::ssize(sequence.prefix);
  new_blocks.resize(num_tables());
  for (int64_t table = 0; table < num_tables(); ++table) new_blocks[table] = sequence.tables.id(table, place);
  release_blocks(new_blocks, false);
  if (index.has_window(entry)) {
    release_blocks(new_blocks, true);
  } else {
    index.restore_window(entry, new_blocks, is_window_table);
  }
  const std::span<const BlockId> blocks = index.blocks(entry);
  for (int64_t table = 0; table < num_tables(); ++table) {
    sequence.tables.set(table, place, blocks[table], pool(table).data(blocks[table]));
  }
}

void KvCache::State::pass_window(KvSequence& sequence) {
  if (window == 0) return;
  const int64_t end = first_window_block(sequence.num_tokens);
  for (int64_t place = sequence.first_window_block; place < end; ++place) {
    const bool shared = place < std::ssize(sequence.prefix);
    if (shared) index.unreference_window(sequence.prefix[place], PrefixIndex::WindowEnd::kPassed);
    for (int64_t table = 0; table < num_tables(); ++table) {
      if (!is_window_table[table]) continue;
      if (!shared) pool(table).release(sequence.tables.id(table, place));
      sequence.tables.set(table, place, kNoBlock, nullptr);
    }
    if (!shared) stats.block_bytes_held -= window_set_bytes;
    sequence.block_bytes -= window_set_bytes;
  }
  sequence.first_window_block = std::max(sequence.first_window_block, end);
}

// The longest cached chain that leaves a token to compute, and whose end has the window parts that this token needs.
std::vector<PrefixId> KvCache::State::find_prefix(std::span<const TokenId> tokens,
                                                  std::span<const TokenRole> roles) const {
  std::vector<PrefixId> chain;
  size_t num_usable = 0;
  int64_t num_with_window = 0;  // at the chain's end
  PrefixId parent = kNoPrefix;
  for (size_t begin = 0; begin + kKvBlockSize < tokens.size(); begin += kKvBlockSize) {
    parent = index.find(parent, tokens.subspan(begin, kKvBlockSize), roles.subspan(begin, kKvBlockSize));
    if (parent == kNoPrefix) break;
    chain.push_back(parent);
    num_with_window = index.has_window(parent) ? num_with_window + 1 : 0;
    const auto length = std::ssize(chain);
    if (length - first_window_block(length * kKvBlockSize) <= num_with_window) num_usable = chain.size();
  }
  chain.resize(num_usable);
  return chain;
}

// The entries to be written follow the sequence's tokens, in tables that lost some.
void KvCache::State::place_reserved(KvSequence& sequence) {
  for (int64_t table = 0; table < num_tables(); ++table) {
    BlockTable& entries = sequence.tables[table];
    if (!entries.lost_entries) continue;
    entries.positions.resize(static_cast<size_t>(entries.num_entries));
    for (int32_t i = 0; i < sequence.num_reserved; ++i) entries.positions.push_back(sequence.num_tokens + i);
  }
}

void KvCache::State::trim() {
  for (Pool& pool : pools) pool.blocks.trim();
}

KvCache::KvCache(MemoryPool& pool, KvCacheConfig config) : state_(std::make_unique<State>(pool, std::move(config))) {}

KvCache::~KvCache() = default;

const KvCacheConfig& KvCache::config() const { return state_->config; }

KvBlockFormat KvCache::block_format(int32_t layer) const {
  WITAN_CHECK(layer >= 0 && layer < std::ssize(state_->layers), "layer {} of {}", layer, state_->layers.size());
  return state_->layers[layer].format;
}

int64_t KvCache::bytes_per_token() const { return ceil_div(state_->full_set_bytes, kKvBlockSize); }

int64_t KvCache::bytes_for_tokens(int64_t num_tokens, int64_t chunk_tokens) const {
  return bytes_for_entries(num_tokens, num_tokens, chunk_tokens);
}

int64_t KvCache::bytes_for_entries(int64_t num_entries, int64_t num_tokens, int64_t chunk_tokens) const {
  const int64_t full_bytes = num_blocks_for(num_entries) * state_->full_set_bytes;
  if (state_->window == 0) return full_bytes;
  return full_bytes + window_places(state_->window, num_tokens, chunk_tokens) * state_->window_set_bytes;
}

SequenceId KvCache::create() {
  int32_t slot;
  if (state_->vacant_slots.empty()) {
    slot = static_cast<int32_t>(state_->slots.size());
    WITAN_CHECK(slot < 1 << kSlotBits, "{} sequences at once", slot);
    state_->slots.emplace_back();
  } else {
    slot = state_->vacant_slots.back();
    state_->vacant_slots.pop_back();
  }
  State::Slot& place = state_->slots[slot];
  place.id = (state_->next_serial++ << kSlotBits) + slot;
  place.sequence = std::make_unique<KvSequence>(state_->num_tables());
  return place.id;
}

int32_t KvCache::attach_prefix(SequenceId id, std::span<const TokenId> tokens, std::span<const TokenRole> roles) {
  KvSequence& sequence = state_->at(id);
  WITAN_CHECK(sequence.num_tokens == 0 && sequence.block_bytes == 0, "sequence {} is not empty", id);
  WITAN_CHECK(tokens.size() == roles.size(), "{} tokens with {} roles", tokens.size(), roles.size());
  state_->stats.prefix_lookup_tokens += std::ssize(tokens);

  sequence.prefix = state_->find_prefix(tokens, roles);
  const auto num_blocks = static_cast<int32_t>(sequence.prefix.size());
  sequence.num_tokens = num_blocks * kKvBlockSize;
  sequence.first_window_block = state_->first_window_block(sequence.num_tokens);
  sequence.block_bytes =
      num_blocks * state_->full_set_bytes + (num_blocks - sequence.first_window_block) * state_->window_set_bytes;
  sequence.tables.grow_rows(num_blocks);
  for (int32_t place = 0; place < num_blocks; ++place) {
    const PrefixId entry = sequence.prefix[place];
    const bool in_window = place >= sequence.first_window_block;
    state_->index.reference(entry);
    if (state_->window > 0 && in_window) state_->index.reference_window(entry);
    const std::span<const BlockId> blocks = state_->index.blocks(entry);
    for (int64_t table = 0; table < state_->num_tables(); ++table) {
      const bool gone = state_->is_window_table[table] && !in_window;
      sequence.tables.set(table, place, gone ? kNoBlock : blocks[table],
                          gone ? nullptr : state_->pool(table).data(blocks[table]));
    }
  }
  for (int64_t table = 0; table < state_->num_tables(); ++table) {
    sequence.tables[table].num_blocks = num_blocks;
    sequence.tables[table].num_entries = sequence.num_tokens;
  }
  state_->stats.prefix_hit_tokens += sequence.num_tokens;
  return sequence.num_tokens;
}

bool KvCache::reserve(SequenceId id, int32_t num_tokens) {
  State& state = *state_;
  KvSequence& sequence = state.at(id);
  WITAN_CHECK(num_tokens >= 0, "{} tokens to reserve", num_tokens);
  const auto num_blocks_after = [&](int64_t table) {
    const BlockTable& entries = sequence.tables[table];
    return entries.num_blocks_of(static_cast<int64_t>(entries.num_entries) + num_tokens);
  };
  std::ranges::fill(state.needed_blocks, 0);
  int64_t longest = 0;
  bool grows = false;
  bool shrinks = false;
  for (int64_t table = 0; table < state.num_tables(); ++table) {
    const int64_t num_blocks = num_blocks_after(table);
    const int64_t num_new = num_blocks - sequence.tables[table].num_blocks;
    if (num_new > 0) state.needed_blocks[state.pool_of_table[table]] += num_new;
    grows |= num_new > 0;
    shrinks |= num_new < 0;
    longest = std::max(longest, num_blocks);
  }
  if (grows && !state.make_room(state.needed_blocks)) return false;

  sequence.num_reserved = num_tokens;
  if (sequence.is_detached) state.place_reserved(sequence);
  if (!grows && !shrinks) return true;  // most decode steps
  sequence.tables.grow_rows(longest);
  for (int64_t table = 0; table < state.num_tables(); ++table) {
    state.resize(sequence, table, num_blocks_after(table));
  }
  state.stats.peak_block_bytes_held = std::max(state.stats.peak_block_bytes_held, state.stats.block_bytes_held);
  state.trim();
  return true;
}

void KvCache::commit(SequenceId id, std::span<const TokenId> tokens, std::span<const TokenRole> roles) {
  KvSequence& sequence = state_->at(id);
  WITAN_CHECK(tokens.size() == roles.size(), "{} tokens with {} roles", tokens.size(), roles.size());
  WITAN_CHECK(std::cmp_less_equal(tokens.size(), sequence.num_reserved), "{} tokens committed, {} reserved",
              tokens.size(), sequence.num_reserved);
  const auto num_new = static_cast<int32_t>(tokens.size());
  sequence.num_tokens += num_new;
  sequence.num_reserved = 0;
  for (int64_t table = 0; table < state_->num_tables(); ++table) {
    BlockTable& entries = sequence.tables[table];
    entries.num_entries += num_new;
    if (entries.lost_entries) entries.positions.resize(static_cast<size_t>(entries.num_entries));
    state_->resize(sequence, table, entries.num_blocks_of(entries.num_entries));
  }
  if (state_->config.prefix_cache && !sequence.is_detached && !sequence.is_private) {
    const auto end = std::ranges::find(roles, TokenRole::kPrivate) - roles.begin();
    sequence.tail_tokens.insert(sequence.tail_tokens.end(), tokens.begin(), tokens.begin() + end);
    sequence.tail_roles.insert(sequence.tail_roles.end(), roles.begin(), roles.begin() + end);
    while (sequence.tail_tokens.size() >= kKvBlockSize) state_->publish_block(sequence);
    sequence.is_private = end < std::ssize(roles);
  }
  state_->pass_window(sequence);
  state_->trim();
}

void KvCache::release(SequenceId id) {
  KvSequence& sequence = state_->at(id);
  const auto num_shared = std::ssize(sequence.prefix);
  for (int64_t table = 0; table < state_->num_tables(); ++table) {
    state_->resize(sequence, table, std::max<int64_t>(num_shared, state_->first_block(sequence, table)));
  }
  state_->leave_prefix(sequence);
  state_->release_aside(sequence);
  if (sequence.input != kNoInput) state_->release_input(sequence.input);
  const auto slot = static_cast<int32_t>(id & ((SequenceId{1} << kSlotBits) - 1));
  state_->slots[slot] = State::Slot();
  state_->vacant_slots.push_back(slot);
  state_->trim();
}

int32_t KvCache::num_tokens(SequenceId id) const { return state_->at(id).num_tokens; }

int32_t KvCache::num_entries(SequenceId id, int32_t layer, int32_t head) const {
  return state_->at(id).tables[state_->table_of(layer, head)].num_entries;
}

int32_t KvCache::num_demoted(SequenceId id, int32_t layer, int32_t head) const {
  return state_->at(id).tables[state_->table_of(layer, head)].num_demoted;
}

int64_t KvCache::held_bytes(SequenceId id) const { return state_->at(id).block_bytes + aside_block_bytes(id); }

KvCache::Slot KvCache::slot(SequenceId id, int32_t layer, int32_t head, int32_t entry) {
  const KvSequence& sequence = state_->at(id);
  const int64_t table = state_->table_of(layer, head);
  const int32_t committed = sequence.tables[table].num_entries;
  WITAN_CHECK(entry >= committed && entry - committed < sequence.num_reserved,
              "entry {} to write, with {} committed and {} reserved", entry, committed, sequence.num_reserved);
  return sequence.tables.slot(table, entry);
}

KvView KvCache::view(SequenceId id, int32_t layer, int32_t head, int32_t num_entries) const {
  const KvSequence& sequence = state_->at(id);
  const int64_t table = state_->table_of(layer, head);
  const BlockTable& entries = sequence.tables[table];
  WITAN_CHECK(num_entries >= 0 && num_entries <= entries.num_entries + sequence.num_reserved,
              "{} entries to view, with {} committed and {} reserved", num_entries, entries.num_entries,
              sequence.num_reserved);
  KvView view{.format = state_->layers[layer].format,
              .blocks = sequence.tables.blocks(table),
              .num_entries = num_entries,
              .positions = entries.lost_entries ? entries.positions.data() : nullptr};
  if (entries.num_demoted > 0) {
    WITAN_CHECK(num_entries >= entries.num_demoted, "{} entries to view, {} are demoted", num_entries,
                entries.num_demoted);
    view.num_demoted = entries.num_demoted;
    view.demoted_format = state_->pools[sequence.demoted_pools[layer]].format;
    const std::span<const int32_t> channels = state_->demoted_channels(sequence, table);
    view.demoted_channels = channels.empty() ? nullptr : channels.data();
  }
  return view;
}

int64_t KvCache::available_memory_bytes() const {
  const State& state = *state_;
  const auto frame_bytes = static_cast<int64_t>(state.memory.held_bytes(MemoryTag::kKvCache));
  return static_cast<int64_t>(state.memory.free_bytes()) + frame_bytes - state.stats.block_bytes_held +
         state.evictable_bytes();
}

int64_t KvCache::available_bytes() const {
  const State& state = *state_;
  // Blocks are needed in sets, one of every table. The most sets that both bounds allow:
  const int64_t free_bytes = state.capacity_bytes - state.stats.block_bytes_held;
  const int64_t num_windows = state.index.num_kept() + state.index.num_passed();
  int64_t least = 0;
  int64_t most = (free_bytes + state.evictable_bytes()) / state.set_bytes();
  std::vector<int64_t> needed(state.pools.size());
  std::vector<int64_t> dropped(state.pools.size());
  for (size_t i = 0; i < dropped.size(); ++i) {
    dropped[i] = state.index.num_unreferenced() * state.pools[i].num_full_tables +
                 num_windows * state.pools[i].num_window_tables;
    if (state.input_set_bytes > 0) {
      dropped[i] += state.cached_input_bytes / state.input_set_bytes * state.pools[i].num_input_tables;
    }
  }
  for (const auto& [id, prefix] : state.compressed) state.count_blocks(prefix.sequence, dropped);
  while (least < most) {
    const int64_t middle = least + (most - least + 1) / 2;
    for (size_t i = 0; i < needed.size(); ++i) {
      needed[i] = middle * (state.pools[i].num_full_tables + state.pools[i].num_window_tables);
    }
    if (state.slabs_suffice(needed, dropped)) {
      least = middle;
    } else {
      most = middle - 1;
    }
  }
  return least * state.set_bytes();
}

KvCacheStats KvCache::stats() const {
  KvCacheStats stats = state_->stats;
  stats.block_bytes_cached = state_->evictable_bytes();
  stats.compressed_bytes = state_->compressed_bytes;
  return stats;
}

void KvCache::clear_prefix_cache() {
  state_->drop_unreferenced();
  for (const InputId id : state_->cached_inputs()) state_->drop_input(id);
  for (const CompressedId id : state_->droppable_compressed()) state_->drop_compressed(id);
  state_->trim();
}

}  // namespace witan
