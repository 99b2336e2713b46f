#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/function_ref.h"
#include "kv/block_file.h"
#include "kv/block_pool.h"
#include "kv/kv_cache.h"
#include "kv/prefix_index.h"

namespace witan {

// Blocks that hold so many entries.
inline int64_t num_blocks_for(int64_t num_entries) { return (num_entries + kKvBlockSize - 1) / kKvBlockSize; }

// Throws Error(kInvalidArgument) for a codec that a layer cannot have.
void check_kv_codec(const KvLayerSpec& spec, KvCodec codec);

// The block tables of one sequence, one per (layer, kv head). Tables may come to differ in length, once entries are
// dropped from some: nothing here takes them to be equally long.
//
// In the tables of layers with a sliding window, window tables, blocks keep their places and the first ones are
// gone:
//
//   blocks of a full table     [0 ........................................ num_blocks)
//   of a window table          [gone ........ first_window_block) [held .. num_blocks)
//   of them, shared            [0 ................................ prefix.size())
//
// A place that is gone has no block: its pointer is null, and attention never looks there.
//
// Demoted entries come first, in blocks of their own, the older ones or those that a policy did not keep as they were:
//
//   blocks of a full table     [demoted .. num_demoted_blocks)[as written .. num_blocks)
struct BlockTable {
  int32_t num_blocks = 0;
  int32_t num_entries = 0;         // committed
  int32_t num_demoted = 0;         // of them
  bool lost_entries = false;       // or has them in another order; false: entry i is at position i
  std::vector<int32_t> positions;  // [num_entries + reserved] of a table that did

  int64_t num_demoted_blocks() const { return num_blocks_for(num_demoted); }
  int64_t place_of(int64_t entry) const {
    return entry < num_demoted ? entry / kKvBlockSize : num_demoted_blocks() + (entry - num_demoted) / kKvBlockSize;
  }
  int32_t slot_of(int64_t entry) const {
    return static_cast<int32_t>((entry < num_demoted ? entry : entry - num_demoted) % kKvBlockSize);
  }
  // Blocks for so many entries, the demoted ones among them.
  int64_t num_blocks_of(int64_t entries) const { return num_demoted_blocks() + num_blocks_for(entries - num_demoted); }
};

class BlockTables {
 public:
  explicit BlockTables(int64_t num_tables) : tables_(num_tables) {}

  BlockTable& operator[](int64_t table) { return tables_[table]; }
  const BlockTable& operator[](int64_t table) const { return tables_[table]; }

  BlockId id(int64_t table, int64_t index) const { return ids_[table * stride_ + index]; }
  const std::byte* const* blocks(int64_t table) const { return blocks_.data() + table * stride_; }
  std::byte* block(int64_t table, int64_t index) const { return blocks_[table * stride_ + index]; }
  KvCache::Slot slot(int64_t table, int64_t entry) const {
    return {block(table, tables_[table].place_of(entry)), tables_[table].slot_of(entry)};
  }
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

// An input and its blocks, one table per (input layer, kv head), all of num_blocks.
struct KvInput {
  std::vector<TokenId> tokens;
  int64_t num_references = 0;
  bool encoded = false;
  int64_t released_at = 0;  // when it lost its last reference, by State::clock
  int64_t num_blocks = 0;
  std::vector<BlockId> ids;        // [num_input_tables][num_blocks]
  std::vector<std::byte*> blocks;  // [num_input_tables][num_blocks]
};

// All entries of a sequence that reads fewer, in tables without a window: entry i is at position i.
struct AsideEntries {
  explicit AsideEntries(int64_t num_tables) : tables(num_tables) {}

  int32_t num_tokens = 0;           // whose entries lie here
  int64_t num_blocks = 0;           // of every table without a window
  BlockTables tables;               // those with one have none
  std::vector<PrefixId> prefix;     // whose blocks are the first of every table; all referenced
  int64_t block_bytes = 0;          // of all blocks that are of the pools
  std::unique_ptr<BlockFile> file;  // where the blocks are, if they are not
};

// A sequence's blocks: the first prefix.size() of every table belong to those prefix blocks, the rest to it alone.
struct KvSequence {
  explicit KvSequence(int64_t num_tables) : tables(num_tables) {}

  int32_t num_tokens = 0;          // committed
  int32_t num_reserved = 0;        // entries, in every table
  int64_t block_bytes = 0;         // of all its blocks
  int64_t first_window_block = 0;  // of window tables: the places before it are gone
  InputId input = kNoInput;
  bool is_detached = false;  // keep() or demote() changed it: its blocks are its own, and none become prefix blocks
  std::vector<int32_t> demoted_pools;          // by layer, once some of its entries are demoted
  std::vector<std::vector<int32_t>> channels;  // by table, once they are chosen: KvCache::choose_channels
  std::unique_ptr<AsideEntries> aside;         // nullptr: it reads all that it has
  bool is_private = false;                     // some tokens are: no more of its blocks become prefix blocks
  BlockTables tables;
  std::vector<PrefixId> prefix;      // its prefix blocks from the beginning, all referenced
  std::vector<TokenId> tail_tokens;  // committed tokens behind them; empty with the prefix cache off
  std::vector<TokenRole> tail_roles;
};

// The beginning of a text as a KV policy left it, kept for later sequences, which copy its blocks.
struct CompressedPrefix {
  CompressedPrefix(std::string policy_name, std::span<const TokenId> of, int64_t num_tables)
      : policy(std::move(policy_name)), tokens(of.begin(), of.end()), sequence(num_tables) {}

  std::string policy;
  std::vector<TokenId> tokens;
  KvSequence sequence;
  int64_t used_at = 0;  // by State::clock
};

// Compressed prefixes together take at most this part of the capacity.
inline constexpr int64_t kCompressedShare = 4;

struct KvCache::State {
  struct Layer {
    KvBlockFormat format;
    int32_t pool = 0;
    int64_t first_table = 0;  // its tables are [first_table, first_table + num_kv_heads)
  };
  struct Pool {
    KvBlockFormat format;
    BlockPool blocks;
    int64_t num_full_tables = 0;
    int64_t num_window_tables = 0;
    int64_t num_input_tables = 0;
  };
  struct Slot {
    SequenceId id = -1;
    std::unique_ptr<KvSequence> sequence;
  };

  State(MemoryPool& pool, KvCacheConfig cache_config);

  int64_t num_tables() const { return static_cast<int64_t>(pool_of_table.size()); }
  int64_t set_bytes() const { return full_set_bytes + window_set_bytes; }
  int64_t table_of(int32_t layer, int32_t head) const;
  const KvBlockFormat& format_of_table(int64_t table) const { return pools[pool_of_table[table]].format; }
  KvSequence& at(SequenceId id) const;

  BlockPool& pool(int64_t table) { return pools[pool_of_table[table]].blocks; }
  // Of the block in a place of a sequence's table.
  int32_t pool_of_place(const KvSequence& sequence, int64_t table, int64_t place) const {
    const bool is_demoted = place < sequence.tables[table].num_demoted_blocks();
    return is_demoted ? sequence.demoted_pools[layer_of_table[table]] : pool_of_table[table];
  }

  // The first place that a window table needs for the entry after num_entries.
  int64_t first_window_block(int64_t num_entries) const {
    return window == 0 ? 0 : std::max<int64_t>(0, num_entries + 1 - window) / kKvBlockSize;
  }
  int64_t first_block(const KvSequence& sequence, int64_t table) const {
    return is_window_table[table] ? sequence.first_window_block : 0;
  }

  // The index of the pool for blocks of this format; a new one if there is none.
  int32_t pool_for(const KvBlockFormat& format);
  void add_input_layers();
  int64_t num_input_tables() const { return static_cast<int64_t>(pool_of_input_table.size()); }
  const KvInput& input_of(SequenceId sequence) const;
  InputId find_input(std::span<const TokenId> tokens) const;
  int64_t input_bytes(const KvInput& input) const { return input.num_blocks * input_set_bytes; }
  void release_input(InputId id);
  void drop_input(InputId id);
  std::vector<InputId> cached_inputs() const;  // oldest first
  void check_inputs(const std::map<InputId, int64_t>& num_references) const;

  // Adds the sequence's blocks, shared ones included, by pool.
  void count_blocks(const KvSequence& sequence, std::span<int64_t> blocks) const;
  void copy_sequence(const KvSequence& from, KvSequence& to);
  std::vector<CompressedId> droppable_compressed() const;  // least recently used first
  void drop_compressed(CompressedId id);

  // Room for the blocks needed of each pool: slabs taken, prefix blocks dropped. False, and no sequence changed, if
  // none.
  bool make_room(std::span<const int64_t> needed);
  bool take_slabs(std::span<const int64_t> needed, std::span<const int64_t> dropped);
  // Whether `dropped` blocks of each pool and what the memory pool has would give the blocks needed.
  bool slabs_suffice(std::span<const int64_t> needed, std::span<const int64_t> dropped) const;
  void evict_oldest();
  void drop_unreferenced();  // everything of the prefix cache that no sequence has
  void drop_oldest_window();
  void release_blocks(std::span<const BlockId> blocks, bool of_window_tables);

  std::vector<PrefixId> find_prefix(std::span<const TokenId> tokens, std::span<const TokenRole> roles) const;

  // Appends blocks to a table, whose row is long enough, or frees its last ones.
  void resize(KvSequence& sequence, int64_t table, int64_t num_blocks);
  void publish_block(KvSequence& sequence);
  void adopt_block(KvSequence& sequence, PrefixId entry);
  // Of the sequence's prefix blocks, those that other sequences have too: the first ones.
  int64_t num_shared_with_others(const KvSequence& sequence) const;
  // Blocks that a table needs for these entries in the places of the first num_shared blocks, which are not its own.
  int64_t num_copies(const KvSequence& sequence, int64_t table, int64_t num_kept, int64_t num_shared) const;
  // Aborts unless `kept` are ascending entries of every table without a window, of num_entries(table); says whether
  // they are not all of them.
  bool check_kept(std::span<const std::vector<int32_t>> kept, FunctionRef<int64_t(int64_t table)> num_entries) const;
  // Whether there is room for the copies of what is kept of shared blocks, made if need be, and for other blocks
  // beside them: by pool, or none.
  bool make_room_for_copies(const KvSequence& sequence, std::span<const std::vector<int32_t>> kept, int64_t num_shared,
                            std::span<const int64_t> beside);
  // The room that keep() needs, be it of prefix blocks that become the sequence's own.
  bool make_room_to_keep(KvSequence& sequence, std::span<const std::vector<int32_t>> kept,
                         std::span<const int64_t> beside = {});
  // All prefix blocks of the sequence but the first num_shared, which others have, are its own from now on.
  void take_prefix(KvSequence& sequence, int64_t num_shared);
  void keep_entries(KvSequence& sequence, int64_t table, std::span<const int32_t> kept, const KvMerge& merge);
  void copy_window(KvSequence& sequence, int64_t table);
  int64_t table_bytes(const KvSequence& sequence, int64_t table) const;
  KvBlockFormat demoted_format(const KvDemotion& demotion, int32_t layer) const;
  std::vector<int32_t> pools_for(const KvDemotion& demotion);  // by layer, of its demoted entries
  // Of a table of a sequence that was demoted: the components that keys then have, ascending; none: all.
  std::span<const int32_t> demoted_channels(const KvSequence& sequence, int64_t table) const;
  void place_demoted(KvSequence& sequence, int64_t table, std::span<const BlockId> blocks);
  // What demote_others() rounds of a table.
  struct Rounded {
    std::vector<int32_t> entries;
    std::vector<BlockId> blocks;
  };
  std::vector<Rounded> round_others(const KvSequence& sequence, std::span<const std::vector<int32_t>> kept, Isa isa,
                                    ThreadPool& threads);
  void place_rounded(KvSequence& sequence, int64_t table, const Rounded& rounded, std::span<const int32_t> kept);
  // Gives a table blocks of its own in the places [first, first + count), where the sequence has shared ones now.
  void copy_shared(KvSequence& sequence, int64_t table, int64_t first, int64_t count);
  // Nothing of it is shared any more, or will be.
  void detach(KvSequence& sequence);
  void leave_prefix(KvSequence& sequence);
  void leave_windows(KvSequence& sequence, PrefixIndex::WindowEnd end);  // of its prefix
  // What set_aside() does: to a sequence that has nothing aside, once there is room, and to one that has.
  bool has_room_to_begin(const KvSequence& sequence, std::span<const std::vector<int32_t>> kept, int64_t num_blocks);
  void begin_aside_in_blocks(KvSequence& sequence, int64_t num_blocks);
  std::unique_ptr<AsideEntries> copy_to_file(const KvSequence& sequence, int64_t num_blocks);
  bool read_anew(KvSequence& sequence, std::span<const std::vector<int32_t>> kept, int64_t num_blocks);
  void extend_aside(AsideEntries& aside, int64_t num_blocks);
  void read_from_aside(KvSequence& sequence, std::span<const std::vector<int32_t>> kept);
  void release_aside(KvSequence& sequence);
  void check_aside(const KvSequence& sequence, FunctionRef<void(int32_t pool, BlockId block)> own) const;
  void place_reserved(KvSequence& sequence);
  // Gives up the places of window tables that no later entry of the sequence sees.
  void pass_window(KvSequence& sequence);
  void trim();
  int64_t evictable_bytes() const {
    return index.num_unreferenced() * full_set_bytes + (index.num_kept() + index.num_passed()) * window_set_bytes +
           cached_input_bytes + compressed_bytes;
  }

  MemoryPool& memory;
  KvCacheConfig config;
  int64_t capacity_bytes;  // config's, at most what fits
  std::vector<Layer> layers;
  std::vector<Pool> pools;             // one per block format
  std::vector<int32_t> pool_of_table;  // tables by layer, then head
  std::vector<int32_t> layer_of_table;
  std::vector<Layer> input_layers;
  std::vector<int32_t> pool_of_input_table;  // by layer, then head
  int64_t input_set_bytes = 0;               // of one block of every input table
  std::map<InputId, KvInput> inputs;
  InputId next_input = 1;
  int64_t clock = 0;
  int64_t cached_input_bytes = 0;  // of inputs without a reference
  bool caches_inputs = false;
  std::map<CompressedId, CompressedPrefix> compressed;
  CompressedId next_compressed = 1;
  CompressedId attached_compressed = kNoCompressed;  // the one that is being copied, which stays
  int64_t compressed_bytes = 0;
  std::vector<bool> is_window_table;
  int64_t full_set_bytes = 0;    // of one block of every full table
  int64_t window_set_bytes = 0;  // and of every window table
  // Entries that window tables hold back: the largest of the layers' windows, so that all have the same places; 0:
  // none.
  int32_t window = 0;
  PrefixIndex index;

  std::vector<Slot> slots;
  std::vector<int32_t> vacant_slots;
  SequenceId next_serial = 1;

  KvCacheStats stats;                   // block_bytes_cached is counted when asked for
  std::vector<int64_t> needed_blocks;   // [pools]
  std::vector<int64_t> dropped_blocks;  // [pools]
  std::vector<BlockId> new_blocks;
};

}  // namespace witan
