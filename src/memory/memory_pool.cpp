#include "memory/memory_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "base/check.h"

namespace witan {
namespace {

std::byte* map_anonymous(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return data == MAP_FAILED ? nullptr : static_cast<std::byte*>(data);
}

void unmap(std::byte* data, size_t bytes) {
  if (bytes == 0 || munmap(data, bytes) == 0) return;
  // Unmapping the middle of a mapping splits it, which the system refuses when the process has too many mappings. The
  // memory goes back all the same; only the addresses stay taken.
  const int error = errno;
  WITAN_CHECK(error == ENOMEM && madvise(data, bytes, MADV_DONTNEED) == 0, "munmap of {} bytes: {}", bytes,
              std::strerror(error));
}

bool is_frame_aligned(const std::byte* data) {
  return reinterpret_cast<uintptr_t>(data) % MemoryPool::kFrameBytes == 0;
}

// Maps `bytes` of zeros at a frame boundary; nullptr when the system refuses.
std::byte* map_frames(size_t bytes) {
  // New mappings usually go right below the last one, so after the first they tend to be aligned already; such
  // neighbours also become one mapping for the system, which limits their number.
  std::byte* data = map_anonymous(bytes);
  if (data != nullptr && !is_frame_aligned(data)) {
    unmap(data, bytes);
    const size_t padded_bytes = bytes + MemoryPool::kFrameBytes;
    std::byte* padded = map_anonymous(padded_bytes);
    if (padded == nullptr) return nullptr;
    const size_t head_bytes = -reinterpret_cast<uintptr_t>(padded) % MemoryPool::kFrameBytes;
    data = padded + head_bytes;
    unmap(padded, head_bytes);
    unmap(data + bytes, padded_bytes - head_bytes - bytes);
  }
  // Where the system has no huge pages, small ones do: only speed is lost.
  if (data != nullptr) madvise(data, bytes, MADV_HUGEPAGE);
  return data;
}

}  // namespace

std::string_view memory_tag_name(MemoryTag tag) {
  switch (tag) {
    case MemoryTag::kWeights:
      return "weights";
    case MemoryTag::kExperts:
      return "experts";
    case MemoryTag::kKvCache:
      return "kv_cache";
    case MemoryTag::kActivations:
      return "activations";
  }
  return "unknown";
}

MemoryRegion::~MemoryRegion() {
  if (pool_ != nullptr) pool_->release(*this);
}

MemoryPool::MemoryPool(size_t budget_bytes)
    : budget_bytes_(budget_bytes / kFrameBytes * kFrameBytes), free_bytes_(budget_bytes_) {}

MemoryPool::~MemoryPool() {
  check_integrity();
  WITAN_CHECK(held_bytes() == 0, "a memory pool ended before its regions: {} bytes still held", held_bytes());
}

std::optional<MemoryRegion> MemoryPool::allocate(MemoryTag tag, size_t bytes) {
  if (bytes > budget_bytes_) return std::nullopt;  // also keeps the rounding from overflowing
  MemoryRegion region;
  if (bytes == 0) return region;
  const size_t region_bytes = (bytes + kFrameBytes - 1) / kFrameBytes * kFrameBytes;

  std::lock_guard lock(mutex_);
  if (region_bytes > free_bytes_) return std::nullopt;
  region.data_ = map_frames(region_bytes);
  if (region.data_ == nullptr) return std::nullopt;
  region.pool_ = this;
  region.size_bytes_ = region_bytes;
  region.tag_ = tag;
  free_bytes_ -= region_bytes;
  held_bytes_[static_cast<size_t>(tag)] += region_bytes;
  peak_bytes_ = std::max(peak_bytes_, budget_bytes_ - free_bytes_);
  return region;
}

void MemoryPool::release(MemoryRegion& region) {
  // Outside the lock, as giving back many pages takes long; before the count, so that free bytes are really free.
  unmap(region.data_, region.size_bytes_);
  std::lock_guard lock(mutex_);
  size_t& held = held_bytes_[static_cast<size_t>(region.tag_)];
  WITAN_CHECK(region.size_bytes_ <= held, "{} bytes given back of {} held for {}", region.size_bytes_, held,
              memory_tag_name(region.tag_));
  held -= region.size_bytes_;
  free_bytes_ += region.size_bytes_;
}

size_t MemoryPool::held_bytes() const {
  std::lock_guard lock(mutex_);
  return budget_bytes_ - free_bytes_;
}

size_t MemoryPool::held_bytes(MemoryTag tag) const {
  std::lock_guard lock(mutex_);
  return held_bytes_[static_cast<size_t>(tag)];
}

size_t MemoryPool::free_bytes() const {
  std::lock_guard lock(mutex_);
  return free_bytes_;
}

size_t MemoryPool::peak_bytes() const {
  std::lock_guard lock(mutex_);
  return peak_bytes_;
}

void MemoryPool::check_integrity() const {
  std::lock_guard lock(mutex_);
  const size_t held = std::accumulate(held_bytes_.begin(), held_bytes_.end(), size_t{0});
  WITAN_CHECK(free_bytes_ + held == budget_bytes_, "free {} + held {} != budget {}", free_bytes_, held, budget_bytes_);
  WITAN_CHECK(held <= peak_bytes_, "held {} above the peak {}", held, peak_bytes_);
}

}  // namespace witan
