#include "memory/growth.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/error.h"

namespace witan {

size_t align_bytes(size_t bytes, size_t alignment) {
  if (bytes > std::numeric_limits<size_t>::max() - alignment) {
    fail(ErrorCode::kOutOfMemory, "wanted {} bytes in one piece, more than can be addressed", bytes);
  }
  return (bytes + alignment - 1) & ~(alignment - 1);
}

MemoryRegion allocate_region(MemoryPool& pool, MemoryTag tag, size_t needed_bytes, size_t preferred_bytes) {
  auto region = pool.allocate(tag, std::max(preferred_bytes, needed_bytes));
  if (!region && preferred_bytes > needed_bytes) region = pool.allocate(tag, needed_bytes);
  if (!region) {
    fail(ErrorCode::kOutOfMemory,
         "no room for {}: wanted {} bytes more; {} are held by {}, {} in all, of a memory budget of {} bytes",
         memory_tag_name(tag), needed_bytes, pool.held_bytes(tag), memory_tag_name(tag), pool.held_bytes(),
         pool.budget_bytes());
  }
  return std::move(*region);
}

}  // namespace witan
