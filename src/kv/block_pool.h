#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kv/ordered_id_set.h"
#include "memory/memory_pool.h"

namespace witan {

// A block of one BlockPool.
using BlockId = int32_t;
inline constexpr BlockId kNoBlock = -1;

// KV blocks of one format, carved from frames of the memory pool. A format has a pool of its own, so a block's bytes
// are zeros or were written in that very format: entries not yet written never read as NaN.
//
//   slab   a region of the memory pool: taken when needed, given back by trim() once none of its blocks is used
//   run    16 neighbouring blocks (512 entries, an attention split), the most that is worth having in one piece
//   group  2^k neighbouring blocks at a multiple of 2^k within a run
//
// Runs grow with the table, by preference and not by reservation. A table's next block follows its last one where that
// is free. Where a new group may begin, one of 2^k blocks is looked for when the table fills it at once or is four
// times as long already; so what a table leaves free in its groups is under a quarter of its own blocks, and a short
// table leaves nothing. A run serves groups of one size until it is wholly free again, so that blocks of short tables
// gather and leave the groups of long ones alone. When memory ends, any free block serves any table.
//
// Thread safety: none.
class BlockPool {
 public:
  static constexpr int32_t kRunBlocks = 16;

  BlockPool(MemoryPool& memory, int64_t block_bytes);

  int64_t block_bytes() const { return block_bytes_; }
  int64_t slab_bytes() const { return slab_bytes_; }
  int64_t blocks_per_slab() const { return blocks_per_slab_; }
  int64_t num_used() const { return num_used_; }
  int64_t num_free() const { return num_slabs_ * blocks_per_slab_ - num_used_; }
  int64_t num_slabs() const { return num_slabs_; }

  // Takes slabs until num_free() >= count. False, and no slab more than before, when the memory pool has no room.
  [[nodiscard]] bool ensure_free(int64_t count);

  // Appends blocks to a table that has `index` blocks, the last of them `previous` (kNoBlock: none). There must be
  // enough free ones.
  void allocate(BlockId previous, int64_t index, std::span<BlockId> blocks);
  void release(BlockId block);

  // Gives back slabs without used blocks.
  void trim();

  std::byte* data(BlockId block) const {
    const int32_t slab = slab_of(run_of(block));
    const int64_t index_in_slab = block - static_cast<int64_t>(slab) * kRunBlocks * (int64_t{1} << slab_shift_);
    return slabs_[slab].region.data() + index_in_slab * block_bytes_;
  }
  bool is_used(BlockId block) const;

  // Aborts unless every block is used or free exactly as counted and every run is where it can be found.
  void check_integrity() const;

 private:
  static constexpr int kNumLevels = 5;  // groups of 1, 2, 4, 8, 16 blocks
  // Where a run with free blocks is found. A list below kNumLevels is a level's: runs that serve groups of that level
  // and have such a group free.
  enum RunList : int8_t {
    kInNone = -1,                // nothing free
    kInWhollyFree = kNumLevels,  // all 16 blocks free: serves any level next
    kInOther = kNumLevels + 1,   // free blocks, but no free group of its level
    kNumRunLists = kNumLevels + 2
  };
  struct Run {
    uint16_t free_mask = 0;
    int8_t level = 0;  // of the groups that it serves; that of the first taker since it was wholly free
    RunList list = kInNone;
  };
  struct Slab {
    MemoryRegion region;
    int64_t num_used = 0;
  };

  static int32_t run_of(BlockId block) { return block / kRunBlocks; }
  int32_t slab_of(int32_t run) const { return run >> slab_shift_; }
  int64_t runs_per_slab() const { return (blocks_per_slab_ + kRunBlocks - 1) / kRunBlocks; }
  uint16_t whole_mask(int32_t run) const;
  RunList list_of(int32_t run) const;
  void relist(int32_t run);

  BlockId allocate_one(BlockId previous, int64_t index, int64_t num_wanted);
  BlockId following(BlockId previous, int level) const;
  int32_t find_run(int level);
  BlockId take(BlockId block);
  bool may_add_slab() const;
  bool add_slab();

  MemoryPool& memory_;
  int64_t block_bytes_;
  int64_t slab_bytes_;
  int64_t blocks_per_slab_;
  int slab_shift_;  // run ids of a slab start at slab << slab_shift_

  std::vector<Slab> slabs_;  // by slab id; vacant ones have no region
  std::vector<Run> runs_;    // by run id
  OrderedIdSet vacant_slabs_;
  std::array<OrderedIdSet, kNumRunLists> lists_;  // lowest first: high slabs drain
  std::vector<int32_t> drained_slabs_;            // had no used block at some time since the last trim
  int64_t num_slabs_ = 0;
  int64_t num_used_ = 0;
};

}  // namespace witan
