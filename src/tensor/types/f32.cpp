#include <cstring>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

void decode(const std::byte* row, float* out, int64_t num_elements) {
  std::memcpy(out, row, static_cast<size_t>(num_elements) * sizeof(float));
}

void encode(const float* row, std::byte* out, int64_t num_elements) {
  std::memcpy(out, row, static_cast<size_t>(num_elements) * sizeof(float));
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<1, sizeof(float)>(decode, row, x, num_elements);
}

void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  RandomBits bits(seed);
  const float scale = stddev * kSqrt3 * 0x1p-31f;
  for (int64_t i = 0; i < num_elements; i += 2) {
    const uint64_t pair = bits.next();
    const float values[2] = {static_cast<float>(static_cast<int32_t>(pair)) * scale,
                             static_cast<float>(static_cast<int32_t>(pair >> 32)) * scale};
    const size_t count = i + 1 < num_elements ? 2 : 1;
    std::memcpy(out + i * sizeof(float), values, count * sizeof(float));
  }
}

}  // namespace

QuantType f32_type() {
  return {.dtype = DType::kF32,
          .name = "F32",
          .safetensors = "F32",
          .ggml_id = 0,
          .block_size = 1,
          .block_bytes = 4,
          .decode = decode,
          .encode = encode,
          .dot = dot,
          .random = random};
}

}  // namespace witan
