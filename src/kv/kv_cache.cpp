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

int64_t num_blocks_for(int64_t num_entries) { return (num_entries + kKvBlockSize - 1) / kKvBlockSize; }

int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

bool same_format(const KvBlockFormat& a, const KvBlockFormat& b) {
  return a.codec == b.codec && a.key_dim == b.key_dim && a.value_dim == b.value_dim && a.value_in_key == b.value_in_key;
}

KvBlockFormat format_of(const KvCacheConfig& config, size_t layer) {
  const KvLayerSpec& spec = config.layers[layer];
  if (spec.num_kv_heads < 1 || spec.key_dim < 1 || spec.value_dim < 1 ||
      (spec.value_in_key && spec.value_dim > spec.key_dim)) {
    fail(ErrorCode::kInvalidArgument, "KV layer {}: {} kv heads with keys of {} and values of {}{}", layer,
         spec.num_kv_heads, spec.key_dim, spec.value_dim, spec.value_in_key ? " within the key" : "");
  }
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
    for (int32_t fact : {spec.num_kv_heads, spec.key_dim, spec.value_dim, spec.value_in_key ? 1 : 0}) {
      facts.push_back(static_cast<uint64_t>(fact));
    }
  }
  return PrefixIndex::default_hash(facts.data(), facts.size() * sizeof(uint64_t));
}

}  // namespace

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
    const auto same = std::ranges::find_if(layers, [&](const Layer& l) { return same_format(l.format, format); });
    const auto pool_index = same != layers.end() ? same->pool : static_cast<int32_t>(pools.size());
    if (same == layers.end()) pools.push_back({BlockPool(memory, format.block_bytes())});
    layers.push_back({format, pool_index, num_tables()});
    const int32_t num_heads = config.layers[layer].num_kv_heads;
    pools[pool_index].num_tables += num_heads;
    pool_of_table.insert(pool_of_table.end(), num_heads, pool_index);
    set_bytes += num_heads * format.block_bytes();
  }
  if (layers.empty()) fail(ErrorCode::kInvalidArgument, "a KV cache needs at least one layer");
  if (capacity_bytes < set_bytes) {
    fail(ErrorCode::kOutOfMemory, "the KV cache may hold {} bytes, but one block of each of {} tables takes {}",
         capacity_bytes, num_tables(), set_bytes);
  }
  needed_blocks.resize(pools.size());
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
  int64_t needed_bytes = 0;
  for (size_t i = 0; i < pools.size(); ++i) needed_bytes += needed[i] * pools[i].blocks.block_bytes();
  const int64_t room_bytes = capacity_bytes - stats.block_bytes_held;
  int64_t num_evicted = ceil_div(std::max<int64_t>(needed_bytes - room_bytes, 0), set_bytes);
  // Frames that others leave are used before any prefix block is dropped. Slabs come first, as another thread may take
  // the memory pool's last frames at any time, and what is dropped cannot be brought back.
  for (; num_evicted <= index.num_unreferenced(); ++num_evicted) {
    if (!take_slabs(needed, num_evicted)) continue;
    for (int64_t i = 0; i < num_evicted; ++i) evict_oldest();
    stats.prefix_evicted_blocks += num_evicted;
    return true;
  }
  return false;
}

bool KvCache::State::slabs_suffice(std::span<const int64_t> needed, int64_t num_evicted) const {
  int64_t bytes = 0;
  for (size_t i = 0; i < pools.size(); ++i) {
    const BlockPool& blocks = pools[i].blocks;
    const int64_t missing = needed[i] - num_evicted * pools[i].num_tables - blocks.num_free();
    if (missing > 0) bytes += ceil_div(missing, blocks.blocks_per_slab()) * blocks.slab_bytes();
  }
  return std::cmp_less_equal(bytes, memory.free_bytes());
}

bool KvCache::State::take_slabs(std::span<const int64_t> needed, int64_t num_evicted) {
  if (!slabs_suffice(needed, num_evicted)) return false;
  for (size_t i = 0; i < pools.size(); ++i) {
    if (pools[i].blocks.ensure_free(needed[i] - num_evicted * pools[i].num_tables)) continue;
    trim();
    return false;
  }
  return true;
}

void KvCache::State::evict_oldest() {
  const PrefixId entry = index.oldest_unreferenced();
  WITAN_CHECK(entry != kNoPrefix, "no prefix block to drop");
  const std::span<const BlockId> blocks = index.blocks(entry);
  for (int64_t table = 0; table < num_tables(); ++table) pool(table).release(blocks[table]);
  stats.block_bytes_held -= set_bytes;
  index.erase(entry);
}

void KvCache::State::resize(KvSequence& sequence, int64_t table, int64_t num_blocks) {
  BlockTable& blocks = sequence.tables[table];
  BlockPool& from = pool(table);
  const int64_t num_new = num_blocks - blocks.num_blocks;
  if (num_new == 0) return;
  if (num_new > 0) {
    const BlockId last = blocks.num_blocks > 0 ? sequence.tables.id(table, blocks.num_blocks - 1) : kNoBlock;
    new_blocks.resize(num_new);
    from.allocate(last, blocks.num_blocks, new_blocks);
    for (BlockId block : new_blocks) sequence.tables.set(table, blocks.num_blocks++, block, from.data(block));
  }
  while (blocks.num_blocks > num_blocks) from.release(sequence.tables.id(table, --blocks.num_blocks));
  sequence.block_bytes += num_new * from.block_bytes();
  stats.block_bytes_held += num_new * from.block_bytes();
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
    const std::span<const BlockId> blocks = index.blocks(entry);
    for (int64_t table = 0; table < num_tables(); ++table) {
      pool(table).release(sequence.tables.id(table, place));
      sequence.tables.set(table, place, blocks[table], pool(table).data(blocks[table]));
    }
    stats.block_bytes_held -= set_bytes;
  }
  sequence.prefix.push_back(entry);
  sequence.tail_tokens.erase(sequence.tail_tokens.begin(), sequence.tail_tokens.begin() + kKvBlockSize);
  sequence.tail_roles.erase(sequence.tail_roles.begin(), sequence.tail_roles.begin() + kKvBlockSize);
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

int64_t KvCache::bytes_per_token() const { return ceil_div(state_->set_bytes, kKvBlockSize); }

int64_t KvCache::bytes_for_tokens(int64_t num_tokens) const { return num_blocks_for(num_tokens) * state_->set_bytes; }

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

  PrefixId parent = kNoPrefix;
  for (size_t begin = 0; begin + kKvBlockSize < tokens.size(); begin += kKvBlockSize) {
    parent = state_->index.find(parent, tokens.subspan(begin, kKvBlockSize), roles.subspan(begin, kKvBlockSize));
    if (parent == kNoPrefix) break;
    sequence.prefix.push_back(parent);
  }

  const auto num_blocks = static_cast<int32_t>(sequence.prefix.size());
  sequence.num_tokens = num_blocks * kKvBlockSize;
  sequence.block_bytes = num_blocks * state_->set_bytes;
  sequence.tables.grow_rows(num_blocks);
  for (int32_t place = 0; place < num_blocks; ++place) {
    state_->index.reference(sequence.prefix[place]);
    const std::span<const BlockId> blocks = state_->index.blocks(sequence.prefix[place]);
    for (int64_t table = 0; table < state_->num_tables(); ++table) {
      sequence.tables.set(table, place, blocks[table], state_->pool(table).data(blocks[table]));
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
    return num_blocks_for(static_cast<int64_t>(sequence.tables[table].num_entries) + num_tokens);
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
    state_->resize(sequence, table, num_blocks_for(entries.num_entries));
  }
  if (state_->config.prefix_cache) {
    sequence.tail_tokens.insert(sequence.tail_tokens.end(), tokens.begin(), tokens.end());
    sequence.tail_roles.insert(sequence.tail_roles.end(), roles.begin(), roles.end());
    while (sequence.tail_tokens.size() >= kKvBlockSize) state_->publish_block(sequence);
  }
  state_->trim();
}

void KvCache::release(SequenceId id) {
  KvSequence& sequence = state_->at(id);
  for (int64_t table = 0; table < state_->num_tables(); ++table) {
    state_->resize(sequence, table, std::ssize(sequence.prefix));
  }
  for (auto entry = sequence.prefix.rbegin(); entry != sequence.prefix.rend(); ++entry) {
    state_->index.unreference(*entry);
  }
  const auto slot = static_cast<int32_t>(id & ((SequenceId{1} << kSlotBits) - 1));
  state_->slots[slot] = State::Slot();
  state_->vacant_slots.push_back(slot);
  state_->trim();
}

int32_t KvCache::num_tokens(SequenceId id) const { return state_->at(id).num_tokens; }

int32_t KvCache::num_entries(SequenceId id, int32_t layer, int32_t head) const {
  return state_->at(id).tables[state_->table_of(layer, head)].num_entries;
}

int64_t KvCache::held_bytes(SequenceId id) const { return state_->at(id).block_bytes; }

KvCache::Slot KvCache::slot(SequenceId id, int32_t layer, int32_t head, int32_t entry) {
  const KvSequence& sequence = state_->at(id);
  const int64_t table = state_->table_of(layer, head);
  const int32_t committed = sequence.tables[table].num_entries;
  WITAN_CHECK(entry >= committed && entry - committed < sequence.num_reserved,
              "entry {} to write, with {} committed and {} reserved", entry, committed, sequence.num_reserved);
  return {sequence.tables.block(table, entry / kKvBlockSize), entry % kKvBlockSize};
}

KvView KvCache::view(SequenceId id, int32_t layer, int32_t head, int32_t num_entries) const {
  const KvSequence& sequence = state_->at(id);
  const int64_t table = state_->table_of(layer, head);
  const BlockTable& entries = sequence.tables[table];
  WITAN_CHECK(num_entries >= 0 && num_entries <= entries.num_entries + sequence.num_reserved,
              "{} entries to view, with {} committed and {} reserved", num_entries, entries.num_entries,
              sequence.num_reserved);
  return {state_->layers[layer].format, sequence.tables.blocks(table), num_entries,
          entries.positions.empty() ? nullptr : entries.positions.data()};
}

int64_t KvCache::available_bytes() const {
  const State& state = *state_;
  // Blocks are needed in sets, one of every table. The most sets that both bounds allow:
  const int64_t num_evictable = state.index.num_unreferenced();
  const int64_t free_bytes = state.capacity_bytes - state.stats.block_bytes_held;
  int64_t least = 0;
  int64_t most = (free_bytes + state.evictable_bytes()) / state.set_bytes;
  std::vector<int64_t> needed(state.pools.size());
  while (least < most) {
    const int64_t middle = least + (most - least + 1) / 2;
    for (size_t i = 0; i < needed.size(); ++i) needed[i] = middle * state.pools[i].num_tables;
    if (state.slabs_suffice(needed, num_evictable)) {
      least = middle;
    } else {
      most = middle - 1;
    }
  }
  return least * state.set_bytes;
}

KvCacheStats KvCache::stats() const {
  KvCacheStats stats = state_->stats;
  stats.block_bytes_cached = state_->evictable_bytes();
  return stats;
}

void KvCache::clear_prefix_cache() {
  while (state_->index.num_unreferenced() > 0) state_->evict_oldest();
  state_->trim();
}

}  // namespace witan
