#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kv/block_pool.h"
#include "kv/kv_cache.h"
#include "kv/prefix_index.h"

namespace witan {

// The block tables of one sequence, one per (layer, kv head). Tables may come to differ in length, once entries are
// dropped from some: nothing here takes them to be equally long.
struct BlockTable {
  int32_t num_blocks = 0;
  int32_t num_entries = 0;         // committed
  std::vector<int32_t> positions;  // [num_entries] of a table that lost entries; empty: entry i is at position i
};

class BlockTables {
 public:
  explicit BlockTables(int64_t num_tables) : tables_(num_tables) {}

  BlockTable& operator[](int64_t table) { return tables_[table]; }
  const BlockTable& operator[](int64_t table) const { return tables_[table]; }

  BlockId id(int64_t table, int64_t index) const { return ids_[table * stride_ + index]; }
  const std::byte* const* blocks(int64_t table) const { return blocks_.data() + table * stride_; }
  std::byte* block(int64_t table, int64_t index) const { return blocks_[table * stride_ + index]; }
  void set(int64_t table, int64_t index, BlockId id, std::byte* data) {
    ids_[table * stride_ + index] = id;
    blocks_[table * stride_ + index] = data;
  }

  // Makes every row at least num_blocks long.
  void grow_rows(int64_t num_blocks);

 private:
  std::vector<BlockTable> tables_;
  int64_t stride_ = 0;
  std::vector<BlockId> ids_;        // [num_tables][stride]
  std::vector<std::byte*> blocks_;  // [num_tables][stride]
};

// A sequence's blocks: the first prefix.size() of every table belong to those prefix blocks, the rest to it alone.
struct KvSequence {
  explicit KvSequence(int64_t num_tables) : tables(num_tables) {}

  int32_t num_tokens = 0;    // committed
  int32_t num_reserved = 0;  // entries, in every table
  int64_t block_bytes = 0;   // of all its blocks
  BlockTables tables;
  std::vector<PrefixId> prefix;      // its prefix blocks from the beginning, all referenced
  std::vector<TokenId> tail_tokens;  // committed tokens behind them; empty with the prefix cache off
  std::vector<TokenRole> tail_roles;
};

struct KvCache::State {
  struct Layer {
    KvBlockFormat format;
    int32_t pool = 0;
    int64_t first_table = 0;  // its tables are [first_table, first_table + num_kv_heads)
  };
  struct Pool {
    BlockPool blocks;
    int64_t num_tables = 0;
  };
  struct Slot {
    SequenceId id = -1;
    std::unique_ptr<KvSequence> sequence;
  };

  State(MemoryPool& pool, KvCacheConfig cache_config);

  int64_t num_tables() const { return static_cast<int64_t>(pool_of_table.size()); }
  int64_t table_of(int32_t layer, int32_t head) const;
  KvSequence& at(SequenceId id) const;

  BlockPool& pool(int64_t table) { return pools[pool_of_table[table]].blocks; }

  // Room for the blocks needed of each pool: slabs taken, prefix blocks dropped. False, and nothing changed, if none.
  bool make_room(std::span<const int64_t> needed);
  bool take_slabs(std::span<const int64_t> needed, int64_t num_evicted);
  // Whether num_evicted dropped prefix blocks and what the memory pool has would give the blocks needed.
  bool slabs_suffice(std::span<const int64_t> needed, int64_t num_evicted) const;
  void evict_oldest();

  // Appends blocks to a table, whose row is long enough, or frees its last ones.
  void resize(KvSequence& sequence, int64_t table, int64_t num_blocks);
  void publish_block(KvSequence& sequence);
  void trim();
  int64_t evictable_bytes() const { return index.num_unreferenced() * set_bytes; }

  MemoryPool& memory;
  KvCacheConfig config;
  int64_t capacity_bytes;  // config's, at most what fits
  std::vector<Layer> layers;
  std::vector<Pool> pools;             // one per block format
  std::vector<int32_t> pool_of_table;  // tables by layer, then head
  int64_t set_bytes = 0;               // of one block of every table
  PrefixIndex index;

  std::vector<Slot> slots;
  std::vector<int32_t> vacant_slots;
  SequenceId next_serial = 1;

  KvCacheStats stats;  // block_bytes_cached is counted when asked for
  std::vector<int64_t> needed_blocks;
  std::vector<BlockId> new_blocks;
};

}  // namespace witan
