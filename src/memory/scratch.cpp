#include "memory/scratch.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "memory/growth.h"

namespace witan {

std::byte* Scratch::allocate_bytes(size_t bytes) {
  bytes = align_bytes(std::max<size_t>(bytes, 1), kAlignment);
  Mark at = position_;
  while (at.region_ < regions_.size() && bytes > regions_[at.region_].size_bytes() - at.offset_) {
    ++at.region_;
    at.offset_ = 0;
  }
  if (at.region_ == regions_.size()) {
    regions_.push_back(allocate_region(pool_, tag_, bytes, bytes_held_));
    bytes_held_ += regions_.back().size_bytes();
  }
  std::byte* buffer = regions_[at.region_].data() + at.offset_;
  at.offset_ += bytes;
  at.bytes_used_ += bytes;
  position_ = at;
  bytes_peak_ = std::max(bytes_peak_, position_.bytes_used_);
  return buffer;
}

void Scratch::reset(Mark mark) {
  WITAN_CHECK(mark.bytes_used_ <= position_.bytes_used_ && mark.region_ <= position_.region_,
              "a mark at {} bytes is newer than the {} bytes in use", mark.bytes_used_, position_.bytes_used_);
  position_ = mark;
}

void Scratch::reset() {
  position_ = Mark();
  if (regions_.size() <= 1) return;
  // First given back, as the budget may not hold both. Should another thread take the room in between, the next step
  // chains what it needs again.
  regions_.clear();
  bytes_held_ = 0;
  if (auto region = pool_.allocate(tag_, bytes_peak_)) {
    regions_.push_back(std::move(*region));
    bytes_held_ = regions_.back().size_bytes();
  }
}

}  // namespace witan
