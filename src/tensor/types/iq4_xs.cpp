#include "tensor/types/codebooks.h"
#include "tensor/types/types.h"

#include <cmath>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"

namespace witan {
namespace {

// A block of 256 values in 8 sub-blocks of 32, with a scale s of 6 bits each:
//   [0, 2) d, f16    [2, 4) high two bits of s[j], shifted by 2 * j    [4, 8) low nibbles of s    [8, 136) q, 4 bits
//   each
// Value i of sub-block j is d * (s[j] - 32) * kIq4Codebook[q]. Values 0..15 of a sub-block are in the low nibbles of
// its 16 bytes, 16..31 in the high ones; the scales' nibbles alternate.
constexpr int kBlockSize = 256;
constexpr int kBlockBytes = 136;
constexpr int kNumSubBlocks = 8;
constexpr int kSubBlockSize = 32;
constexpr int kScalesHigh = 2;
constexpr int kScalesLow = 4;
constexpr int kQuants = 8;

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockBytes) {
    const float d = load_f16(row);
    const int high = load_u16(row + kScalesHigh);
    for (int j = 0; j < kNumSubBlocks; ++j, out += kSubBlockSize) {
      const int low = std::to_integer<int>(row[kScalesLow + j / 2]) >> (j % 2 * 4) & 15;
      const float scale = d * static_cast<float>((low | (high >> (2 * j) & 3) << 4) - 32);
      const std::byte* quants = row + kQuants + j * kSubBlockSize / 2;
      for (int k = 0; k < kSubBlockSize; ++k) out[k] = scale * kIq4Codebook[nibble_of_32(quants, k)];
    }
  }
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<kBlockSize, kBlockBytes>(decode, row, x, num_elements);
}

// |s - 32| uniform in [16, 32) with a random sign, which brings the mean to 0; E[s^2] = 23.5^2 + 255 / 12.
void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  RandomBits bits(seed);
  const uint16_t d = f32_to_f16(stddev / std::sqrt(mean_square(kIq4Codebook) * (23.5f * 23.5f + 255.0f / 12)));
  for (int64_t i = 0; i < num_elements; i += kBlockSize, out += kBlockBytes) {
    bits.fill(out + kQuants, kBlockBytes - kQuants);
    std::memset(out, 0, kQuants);
    uint64_t scale_bits = bits.next();
    int high = 0;
    for (int j = 0; j < kNumSubBlocks; ++j, scale_bits >>= 8) {
      const int magnitude = 16 + static_cast<int>(scale_bits & 15);
      const int stored = 32 + ((scale_bits & 16) != 0 ? -magnitude : magnitude);
      out[kScalesLow + j / 2] |= static_cast<std::byte>((stored & 15) << (j % 2 * 4));
      high |= stored >> 4 << (2 * j);
    }
    store_u16(out, d);
    store_u16(out + kScalesHigh, static_cast<uint16_t>(high));
  }
}

}  // namespace

QuantType iq4_xs_type() {
  return {.dtype = DType::kIQ4_XS,
          .name = "IQ4_XS",
          .safetensors = "",
          .ggml_id = 23,
          .block_size = kBlockSize,
          .block_bytes = kBlockBytes,
          .decode = decode,
          .encode = nullptr,
          .dot = dot,
          .random = random};
}

}  // namespace witan
