#pragma once

#include <cstddef>
#include <limits>
#include <type_traits>
#include <vector>

#include "memory/memory_pool.h"

namespace witan {

// Buffers of one step (activations), laid one after another and all dropped at once. Growing in the middle of a step
// chains another region, so earlier buffers stay where they are; the next reset() makes one region of them, large
// enough for the largest step so far. Steps of a size met before then take nothing from the pool.
//
//   (allocate | mark | reset(mark))* reset ...
//
// Thread safety: none; threads get slices of what was allocated before they start. The pool must outlive it.
class Scratch {
 public:
  static constexpr size_t kAlignment = 64;

  explicit Scratch(MemoryPool& pool, MemoryTag tag = MemoryTag::kActivations) : pool_(pool), tag_(tag) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // `count` elements, not initialised, aligned to kAlignment, valid until they are reset.
  // Throws Error(kOutOfMemory) when the pool has no room.
  template <typename T>
  T* allocate(size_t count) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= kAlignment);
    constexpr size_t kTooMany = std::numeric_limits<size_t>::max();
    return reinterpret_cast<T*>(allocate_bytes(count > kTooMany / sizeof(T) ? kTooMany : count * sizeof(T)));
  }
  std::byte* allocate_bytes(size_t bytes);

  // reset(mark) drops what was allocated since the mark was taken.
  class Mark {
    friend class Scratch;
    size_t region_ = 0;
    size_t offset_ = 0;
    size_t bytes_used_ = 0;
  };
  Mark mark() const { return position_; }
  void reset(Mark mark);

  // Drops everything.
  void reset();

  size_t bytes_used() const { return position_.bytes_used_; }  // of live buffers, rounded up to kAlignment
  size_t bytes_peak() const { return bytes_peak_; }            // the most that was used at once
  size_t bytes_held() const { return bytes_held_; }            // of the pool's frames

 private:
  MemoryPool& pool_;
  MemoryTag tag_;
  std::vector<MemoryRegion> regions_;
  Mark position_;  // the next free byte: offset_ in regions_[region_], which may not exist yet
  size_t bytes_peak_ = 0;
  size_t bytes_held_ = 0;
};

}  // namespace witan
