#include <cmath>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

// A block of 256 values in 16 sub-blocks of 16, with a scale s and a minimum m of 4 bits each:
//   [0, 16) s in the low nibbles, m in the high ones    [16, 80) q, 2 bits each    [80, 82) d, f16    [82, 84) dmin,
//   f16
// Value i of sub-block j is d * s[j] * q - dmin * m[j]. In each half h of 128 values, value 32 * g + i (g in [0, 4))
// lies in byte 16 + 32 * h + i, shifted by 2 * g.
constexpr int kBlockSize = 256;
constexpr int kBlockBytes = 84;
constexpr int kNumSubBlocks = 16;
constexpr int kSubBlockSize = 16;
constexpr int kQuants = 16;
constexpr int kD = 80;
constexpr int kMinimum = 82;

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockBytes) {
    const float d = load_f16(row + kD);
    const float dmin = load_f16(row + kMinimum);
    for (int j = 0; j < kNumSubBlocks; ++j, out += kSubBlockSize) {
      const int packed = std::to_integer<int>(row[j]);
      const float scale = d * static_cast<float>(packed & 15);
      const float minimum = dmin * static_cast<float>(packed >> 4);
      const std::byte* quants = row + kQuants + j / 8 * 32 + j % 2 * kSubBlockSize;
      const int shift = j % 8 / 2 * 2;
      for (int k = 0; k < kSubBlockSize; ++k) {
        out[k] = scale * static_cast<float>(std::to_integer<int>(quants[k]) >> shift & 3) - minimum;
      }
    }
  }
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<kBlockSize, kBlockBytes>(decode, row, x, num_elements);
}

// q uniform in [0, 4): mean 1.5, variance 1.25. s uniform in [7, 15), m = s + t with t in {-1, 0, 0, 1} and
// dmin = 1.5 d: the variance is d^2 (E[s^2] * 1.25 + 1.5^2 * E[t^2]), E[s^2] = 10.5^2 + 63 / 12, E[t^2] = 0.5.
void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  constexpr float kVariance = (10.5f * 10.5f + 63.0f / 12) * 1.25f + 2.25f * 0.5f;
  constexpr int kShifts[] = {-1, 0, 0, 1};
  RandomBits bits(seed);
  const uint16_t d = f32_to_f16(stddev / std::sqrt(kVariance));
  const uint16_t dmin = f32_to_f16(1.5f * f16_to_f32(d));
  for (int64_t i = 0; i < num_elements; i += kBlockSize, out += kBlockBytes) {
    bits.fill(out, kD);
    for (int j = 0; j < kNumSubBlocks; ++j) {
      const int random_byte = std::to_integer<int>(out[j]);
      const int scale = 7 + (random_byte & 7);
      out[j] = static_cast<std::byte>(scale | (scale + kShifts[random_byte >> 3 & 3]) << 4);
    }
    store_u16(out + kD, d);
    store_u16(out + kMinimum, dmin);
  }
}

}  // namespace

QuantType q2_k_type() {
  return {.dtype = DType::kQ2_K,
          .name = "Q2_K",
          .safetensors = "",
          .ggml_id = 10,
          .block_size = kBlockSize,
          .block_bytes = kBlockBytes,
          .decode = decode,
          .encode = nullptr,
          .dot = dot,
          .random = random};
}

}  // namespace witan
