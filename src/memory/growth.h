#pragma once

#include <cstddef>

#include "memory/memory_pool.h"

namespace witan {

// `bytes` rounded up to `alignment`, a power of two. Throws Error(kOutOfMemory) when that overflows.
size_t align_bytes(size_t bytes, size_t alignment);

// A region of at least `preferred_bytes`, or where there is no room for that, of at least `needed_bytes`.
// Throws Error(kOutOfMemory), with what is wanted, held and allowed, when there is no room for that either.
MemoryRegion allocate_region(MemoryPool& pool, MemoryTag tag, size_t needed_bytes, size_t preferred_bytes);

}  // namespace witan
