#pragma once

#include <cstddef>
#include <vector>

#include "memory/memory_pool.h"

namespace witan {

// Many pieces of one tag that live equally long (a model's norms and packed matrices), laid one after another in
// regions of a pool. Nothing is given back before the arena ends.
//
// Thread safety: none. The pool must outlive the arena.
class Arena {
 public:
  static constexpr size_t kAlignment = 64;
  // Regions double from one frame up to this, so that a small model holds little and a large one has few regions.
  static constexpr size_t kMaxGrowthBytes = size_t{64} << 20;

  Arena(MemoryPool& pool, MemoryTag tag) : pool_(pool), tag_(tag) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Zero-filled, aligned to kAlignment. Throws Error(kOutOfMemory) when the pool has no room.
  std::byte* allocate(size_t bytes);

  size_t bytes_used() const { return bytes_used_; }  // of the pieces, rounded up to kAlignment
  size_t bytes_held() const { return bytes_held_; }  // of the pool's frames

 private:
  MemoryPool& pool_;
  MemoryTag tag_;
  std::vector<MemoryRegion> regions_;
  std::byte* next_ = nullptr;  // the free rest of the region with the most room
  size_t room_bytes_ = 0;
  size_t bytes_used_ = 0;
  size_t bytes_held_ = 0;
};

}  // namespace witan
