#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

namespace witan {

enum class MemoryTag : uint8_t { kWeights, kExperts, kKvCache, kActivations };
inline constexpr int kNumMemoryTags = 4;
std::string_view memory_tag_name(MemoryTag tag);

class MemoryPool;

// A contiguous run of frames held from a pool; gives them back when destroyed. Zero-filled, aligned to a frame.
class MemoryRegion {
 public:
  MemoryRegion() = default;
  MemoryRegion(MemoryRegion&& other) noexcept { swap(other); }
  MemoryRegion& operator=(MemoryRegion&& other) noexcept {
    swap(other);
    return *this;
  }
  ~MemoryRegion();

  std::byte* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  friend class MemoryPool;
  void swap(MemoryRegion& other) {
    std::swap(pool_, other.pool_);
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    std::swap(tag_, other.tag_);
  }

  MemoryPool* pool_ = nullptr;
  std::byte* data_ = nullptr;
  size_t size_bytes_ = 0;
  MemoryTag tag_ = MemoryTag::kWeights;
};

// The one owner of all big bytes: weights, experts, KV blocks, activations. It holds a budget, set once, and hands
// out runs of frames of one size; what is given back is free for every other use at once.
// Memory is anonymous, in huge pages where the system has them, and becomes resident when first written.
//
// Thread safety: all members may be called from any thread. The pool must outlive its regions.
class MemoryPool {
 public:
  static constexpr size_t kFrameBytes = size_t{2} << 20;

  // budget_bytes is rounded down to whole frames.
  explicit MemoryPool(size_t budget_bytes);
  ~MemoryPool();
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

  // A region of at least `bytes` (rounded up to frames), or nothing when the budget or the system has no room. Of zero
  // bytes: an empty region.
  std::optional<MemoryRegion> allocate(MemoryTag tag, size_t bytes);

  size_t budget_bytes() const { return budget_bytes_; }
  size_t held_bytes() const;
  size_t held_bytes(MemoryTag tag) const;
  size_t free_bytes() const;
  size_t peak_bytes() const;  // the most that was held at once

  // Aborts unless free + held == budget and the tags add up.
  void check_integrity() const;

 private:
  friend class MemoryRegion;
  void release(MemoryRegion& region);

  size_t budget_bytes_;
  mutable std::mutex mutex_;
  size_t free_bytes_;
  std::array<size_t, kNumMemoryTags> held_bytes_{};
  size_t peak_bytes_ = 0;
};

}  // namespace witan
