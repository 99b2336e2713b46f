#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; ++i) out[i] = f16_to_f32(load_u16(row + 2 * i));
}

void encode(const float* row, std::byte* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; ++i) store_u16(out + 2 * i, f32_to_f16(row[i]));
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<1, 2>(decode, row, x, num_elements);
}

void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  constexpr int64_t kChunk = 256;
  RandomBits bits(seed);
  std::array<int16_t, kChunk> integers;
  std::array<float, kChunk> values;
  const float scale = stddev * kSqrt3 * 0x1p-15f;
  for (int64_t begin = 0; begin < num_elements; begin += kChunk) {
    const int64_t count = std::min(kChunk, num_elements - begin);
    bits.fill(reinterpret_cast<std::byte*>(integers.data()), sizeof(integers));
    for (int64_t i = 0; i < kChunk; ++i) values[i] = static_cast<float>(integers[i]) * scale;
    encode(values.data(), out + 2 * begin, count);
  }
}

}  // namespace

QuantType f16_type() {
  return {.dtype = DType::kF16,
          .name = "F16",
          .safetensors = "F16",
          .ggml_id = 1,
          .block_size = 1,
          .block_bytes = 2,
          .decode = decode,
          .encode = encode,
          .dot = dot,
          .random = random};
}

}  // namespace witan
