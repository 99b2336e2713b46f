#include "memory/arena.h"

#include <algorithm>

#include "memory/growth.h"

namespace witan {

std::byte* Arena::allocate(size_t bytes) {
  bytes = align_bytes(bytes, kAlignment);
  if (next_ != nullptr && bytes <= room_bytes_) {
    std::byte* piece = next_;
    next_ += bytes;
    room_bytes_ -= bytes;
    bytes_used_ += bytes;
    return piece;
  }

  const size_t preferred_bytes = std::clamp(bytes_held_, MemoryPool::kFrameBytes, kMaxGrowthBytes);
  regions_.push_back(allocate_region(pool_, tag_, std::max<size_t>(bytes, 1), preferred_bytes));
  const MemoryRegion& region = regions_.back();
  bytes_held_ += region.size_bytes();
  bytes_used_ += bytes;
  if (region.size_bytes() - bytes > room_bytes_) {
    next_ = region.data() + bytes;
    room_bytes_ = region.size_bytes() - bytes;
  }
  return region.data();
}

}  // namespace witan
