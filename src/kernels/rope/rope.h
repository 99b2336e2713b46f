#pragma once

#include <cstdint>

#include "base/isa.h"

namespace witan {

enum class RopeLayout : uint8_t {
  kHalves,  // component i is rotated with i + dim/2 (NEOX; Hugging Face checkpoints)
  kPairs,   // component 2i is rotated with 2i + 1 (GGUF "llama", DeepSeek)
};

// Rotates x[0, dim) in place: (a, b) -> (a cos - b sin, a sin + b cos). cos, sin: [dim / 2], the angles of one
// position.
void rope(Isa isa, RopeLayout layout, const float* cos, const float* sin, int64_t dim, float* x);

}  // namespace witan
