#pragma once

#include <cstdint>

namespace witan {

// What an op may round for speed.
enum class Precision : uint8_t {
  kExact,  // nothing: float32 operands and accumulation whatever the stored types
  kFast,   // int8 activations for quantised weights; bfloat16 ones for BF16 and F8_E4M3; attention_arithmetic() for
           // attention. F32 and F16 weights and entries stay exact.
};

}  // namespace witan
