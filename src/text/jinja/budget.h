#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"

namespace witan::jinja {

// What one rendering may take. Published templates stay a factor of a hundred below each with conversations of
// megabytes; a template comes with a model from anywhere, and must neither hang nor exhaust memory.
struct Limits {
  int64_t max_steps = 50'000'000;              // expressions and statements run, items looked at, bytes / 128 copied
  size_t max_output_bytes = size_t{64} << 20;  // and of any one string
  size_t max_value_bytes = size_t{256} << 20;  // held at once by what the template makes
  int max_depth = 600;                         // of statements, expressions and macro calls within each other
  int max_nesting = 100;                       // of lists and dicts within each other
};

// Counts what a rendering takes. Error(kInvalidArgument) when that is over the limits.
class Budget {
 public:
  explicit Budget(const Limits& limits) : limits_(limits) {}
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

  const Limits& limits() const { return limits_; }

  void take_steps(size_t count) {
    steps_ += static_cast<int64_t>(count);
    if (steps_ > limits_.max_steps)
      fail(ErrorCode::kInvalidArgument, "it takes too long: more than {} steps", limits_.max_steps);
  }
  void take_copied_bytes(size_t bytes) { take_steps(1 + bytes / 128); }

  // Called before the memory is allocated.
  void check_room(size_t bytes) const {
    if (bytes > limits_.max_value_bytes || held_bytes_ + bytes > limits_.max_value_bytes) {
      fail(ErrorCode::kInvalidArgument, "its values take too much memory: more than {} bytes", limits_.max_value_bytes);
    }
  }
  void hold(size_t bytes) {
    check_room(bytes);
    held_bytes_ += bytes;
  }
  void release(size_t bytes) { held_bytes_ -= bytes; }
  size_t held_bytes() const { return held_bytes_; }

 private:
  Limits limits_;
  int64_t steps_ = 0;
  size_t held_bytes_ = 0;
};

}  // namespace witan::jinja
