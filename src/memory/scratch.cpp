#include "memory/scratch.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "memory/growth.h"

namespace witan {

std::byte* Scratch::allocate_bytes(size_t bytes) {
  bytes = align_bytes(std::max<size_t>(bytes, 1), kAlignment);
  Mark at = position_;
  while (at.region < regions_.size() && bytes > regions_[at.region].size_bytes() - at.offset) {
    ++at.region;
    at.offset = 0;
  }
  if (at.region == regions_.size()) {
    regions_.push_back(allocate_region(pool_, tag_, bytes, bytes_held_));
    bytes_held_ += regions_.back().size_bytes();
  }
  std::byte* buffer = regions_[at.region].data() + at.offset;
  at.offset += bytes;
  at.bytes_used += bytes;
  position_ = at;
  bytes_peak_ = std::max(bytes_peak_, position_.bytes_used);
  return buffer;
}

void Scratch::reset(Mark mark) {
  WITAN_CHECK(mark.bytes_used <= position_.bytes_used && mark.region <= position_.region,
              "a mark at {} bytes is newer than the {} bytes in use", mark.bytes_used, position_.bytes_used);
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
