#include "kv/block_pool.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"

namespace witan {
namespace {

// Frames per slab: as few as leave little that no run of 16 covers (an eighth of the blocks) and little behind the
// last block (a 32nd of the bytes). Small blocks need one frame; 36 KiB ones (MLA in f16) two. Blocks near or above a
// frame's size take the least bad of eight.
int64_t choose_slab_bytes(int64_t block_bytes) {
  constexpr auto kFrame = static_cast<int64_t>(MemoryPool::kFrameBytes);
  const int64_t least = (block_bytes + kFrame - 1) / kFrame;
  int64_t best = least;
  double best_loss = 1.0;
  for (int64_t num_frames = least; num_frames < least + 8; ++num_frames) {
    const int64_t bytes = num_frames * kFrame;
    const int64_t num_blocks = bytes / block_bytes;
    const auto runless = static_cast<double>(num_blocks % BlockPool::kRunBlocks) / static_cast<double>(num_blocks);
    const auto unused = static_cast<double>(bytes % block_bytes) / static_cast<double>(bytes);
    if (runless <= 1.0 / 8 && unused <= 1.0 / 32) return bytes;
    if (const double loss = runless / 4 + unused; loss < best_loss) {
      best = num_frames;
      best_loss = loss;
    }
  }
  return best * kFrame;
}

uint16_t group_mask(int level) { return static_cast<uint16_t>((1u << (1u << level)) - 1); }

// The first block of the lowest free group of a level, or -1.
int lowest_group(uint16_t free_mask, int level) {
  for (int offset = 0; offset < BlockPool::kRunBlocks; offset += 1 << level) {
    const uint16_t group = group_mask(level);
    if (((free_mask >> offset) & group) == group) return offset;
  }
  return -1;
}

}  // namespace

BlockPool::BlockPool(MemoryPool& memory, int64_t block_bytes)
    : memory_(memory),
      block_bytes_(block_bytes),
      slab_bytes_(choose_slab_bytes(block_bytes)),
      blocks_per_slab_(slab_bytes_ / block_bytes),
      slab_shift_(static_cast<int>(std::bit_width(static_cast<uint64_t>(runs_per_slab() - 1)))) {}

uint16_t BlockPool::whole_mask(int32_t run) const {
  const int64_t first = (static_cast<int64_t>(run) - (static_cast<int64_t>(slab_of(run)) << slab_shift_)) * kRunBlocks;
  const int64_t num_blocks = std::clamp<int64_t>(blocks_per_slab_ - first, 0, kRunBlocks);
  return static_cast<uint16_t>((1u << num_blocks) - 1);
}

BlockPool::RunList BlockPool::list_of(int32_t run) const {
  const Run& state = runs_[run];
  if (state.free_mask == 0) return kInNone;
  if (state.free_mask == group_mask(kNumLevels - 1)) return kInWhollyFree;
  return lowest_group(state.free_mask, state.level) >= 0 ? static_cast<RunList>(state.level) : kInOther;
}

void BlockPool::relist(int32_t run) {
  Run& state = runs_[run];
  const RunList list = list_of(run);
  if (list == state.list) return;
  if (state.list != kInNone) lists_[state.list].erase(run);
  if (list != kInNone) lists_[list].insert(run);
  state.list = list;
}

bool BlockPool::add_slab() {
  auto region = memory_.allocate(MemoryTag::kKvCache, static_cast<size_t>(slab_bytes_));
  if (!region) return false;
  int32_t slab = vacant_slabs_.first();
  if (slab < 0) {
    slab = static_cast<int32_t>(slabs_.size());
    slabs_.emplace_back();
    runs_.resize(slabs_.size() << slab_shift_);
  } else {
    vacant_slabs_.erase(slab);
  }
  slabs_[slab].region = std::move(*region);
  ++num_slabs_;
  drained_slabs_.push_back(slab);
  for (int64_t i = 0; i < runs_per_slab(); ++i) {
    const auto run = static_cast<int32_t>((static_cast<int64_t>(slab) << slab_shift_) + i);
    runs_[run].free_mask = whole_mask(run);
    runs_[run].level = 0;
    relist(run);
  }
  return true;
}

bool BlockPool::ensure_free(int64_t count) {
  while (num_free() < count) {
    if (add_slab()) continue;
    trim();
    return false;
  }
  return true;
}

void BlockPool::trim() {
  for (int32_t slab : drained_slabs_) {
    if (!slabs_[slab].region || slabs_[slab].num_used > 0) continue;
    for (int64_t i = 0; i < runs_per_slab(); ++i) {
      const auto run = static_cast<int32_t>((static_cast<int64_t>(slab) << slab_shift_) + i);
      runs_[run].free_mask = 0;
      relist(run);
    }
    slabs_[slab].region = MemoryRegion();
    vacant_slabs_.insert(slab);
    --num_slabs_;
  }
  drained_slabs_.clear();
}

void BlockPool::allocate(BlockId previous, int64_t index, std::span<BlockId> blocks) {
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks[i] = allocate_one(previous, index + static_cast<int64_t>(i), static_cast<int64_t>(blocks.size() - i));
    previous = blocks[i];
  }
}

BlockId BlockPool::allocate_one(BlockId previous, int64_t index, int64_t num_wanted) {
  int level = kNumLevels - 1;
  for (; level > 0; --level) {
    const int64_t group = int64_t{1} << level;
    if (index % group == 0 && (num_wanted >= group || index >= 4 * group)) break;
  }
  if (const BlockId block = following(previous, level); block != kNoBlock) return take(block);

  const int32_t run = find_run(level);
  Run& state = runs_[run];
  if (state.list == kInWhollyFree) {
    state.level = static_cast<int8_t>(level);
  } else if (state.list == kInOther) {
    state.level = 0;
  } else {
    state.level = static_cast<int8_t>(std::min<int>(level, state.level));
  }
  return take(run * kRunBlocks + lowest_group(state.free_mask, state.level));
}

// The block after `previous` when it is in the same run and begins a free group of `level`.
BlockId BlockPool::following(BlockId previous, int level) const {
  const int offset = (previous + 1) % kRunBlocks;
  if (previous == kNoBlock || offset == 0 || offset % (1 << level) != 0) return kNoBlock;
  const uint16_t group = group_mask(level);
  return ((runs_[run_of(previous)].free_mask >> offset) & group) == group ? previous + 1 : kNoBlock;
}

// The run to begin a group of `level` in; if there is none, one with any free block.
int32_t BlockPool::find_run(int level) {
  if (const int32_t run = lists_[level].first(); run >= 0) return run;
  if (const int32_t run = lists_[kInWhollyFree].first(); run >= 0) return run;
  if (may_add_slab() && add_slab()) return find_run(level);
  for (int smaller = level - 1; smaller >= 0; --smaller) {
    if (const int32_t run = lists_[smaller].first(); run >= 0) return run;
  }
  if (const int32_t run = lists_[kInOther].first(); run >= 0) return run;
  for (int larger = level + 1; larger < kNumLevels; ++larger) {
    if (const int32_t run = lists_[larger].first(); run >= 0) return run;
  }
  WITAN_CHECK(false, "no free block: {} used in {} slabs of {}", num_used_, num_slabs_, blocks_per_slab_);
  return -1;
}

// Bounds what locality may cost: no slab is taken for its sake once over a quarter of the used blocks is free.
bool BlockPool::may_add_slab() const { return num_free() <= num_used_ / 4 + blocks_per_slab_; }

BlockId BlockPool::take(BlockId block) {
  const int32_t run = run_of(block);
  runs_[run].free_mask = static_cast<uint16_t>(runs_[run].free_mask & ~(1u << (block % kRunBlocks)));
  relist(run);
  ++slabs_[slab_of(run)].num_used;
  ++num_used_;
  return block;
}

void BlockPool::release(BlockId block) {
  WITAN_CHECK(is_used(block), "block {} released but not in use", block);
  const int32_t run = run_of(block);
  runs_[run].free_mask = static_cast<uint16_t>(runs_[run].free_mask | (1u << (block % kRunBlocks)));
  relist(run);
  --num_used_;
  if (--slabs_[slab_of(run)].num_used == 0) drained_slabs_.push_back(slab_of(run));
}

bool BlockPool::is_used(BlockId block) const {
  const auto run = static_cast<size_t>(run_of(block));
  if (block < 0 || run >= runs_.size() || !slabs_[slab_of(run_of(block))].region) return false;
  const unsigned bit = 1u << (block % kRunBlocks);
  return (whole_mask(run_of(block)) & bit) != 0 && (runs_[run].free_mask & bit) == 0;
}

void BlockPool::check_integrity() const {
  WITAN_CHECK(drained_slabs_.empty(), "{} slabs wait for trim", drained_slabs_.size());
  int64_t num_slabs = 0;
  int64_t num_used = 0;
  for (int32_t slab = 0; slab < std::ssize(slabs_); ++slab) {
    const bool vacant = !slabs_[slab].region;
    WITAN_CHECK(vacant == vacant_slabs_.contains(slab), "slab {} is wrongly listed as vacant or not", slab);
    num_slabs += vacant ? 0 : 1;
    int64_t num_used_here = 0;
    for (int32_t run = slab << slab_shift_; run < (slab + 1) << slab_shift_; ++run) {
      const Run& state = runs_[run];
      const bool exists = !vacant && run - (slab << slab_shift_) < runs_per_slab();
      const uint16_t whole = exists ? whole_mask(run) : uint16_t{0};
      WITAN_CHECK((state.free_mask & ~whole) == 0, "run {} has free blocks {:x} of {:x}", run, state.free_mask, whole);
      WITAN_CHECK(state.list == list_of(run), "run {} is in list {}", run, static_cast<int>(state.list));
      for (int list = 0; list < kNumRunLists; ++list) {
        WITAN_CHECK(lists_[list].contains(run) == (list == state.list), "run {} and list {} differ", run, list);
      }
      num_used_here += std::popcount(static_cast<unsigned>(whole ^ state.free_mask));
    }
    WITAN_CHECK(num_used_here == slabs_[slab].num_used, "slab {}: {} blocks used, {} counted", slab, num_used_here,
                slabs_[slab].num_used);
    WITAN_CHECK(vacant || num_used_here > 0, "slab {} is held for nothing", slab);
    num_used += num_used_here;
  }
  WITAN_CHECK(num_slabs == num_slabs_ && num_used == num_used_, "{} slabs and {} used blocks, counted {} and {}",
              num_slabs, num_used, num_slabs_, num_used_);
}

}  // namespace witan
