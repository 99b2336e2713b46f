#include <cmath>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

// A block of 256 values in 16 sub-blocks of 16, with a scale s of 6 bits each:
//   [0, 32) third bits of q    [32, 96) low two bits of q    [96, 108) s, packed    [108, 110) d, f16
// Value i is d * (s[i / 16] - 32) * (q - 4). In each half h of 128 values, value 32 * g + i (g in [0, 4)) has its low
// bits in byte 32 + 32 * h + i, shifted by 2 * g, and its third bit in byte i, shifted by 4 * h + g. Of the packed
// bytes b, the low four bits of s[j] are the low nibble of b[j] (the high nibble of b[j - 8] from j = 8 on), its high
// two bits are in b[8 + j % 4], shifted by 2 * (j / 4).
constexpr int kBlockSize = 256;
constexpr int kBlockBytes = 110;
constexpr int kNumSubBlocks = 16;
constexpr int kSubBlockSize = 16;
constexpr int kQuants = 32;
constexpr int kPacked = 96;
constexpr int kD = 108;

int scale_of(const std::byte* packed, int j) {
  const int low = std::to_integer<int>(packed[j % 8]) >> (j / 8 * 4) & 15;
  const int high = std::to_integer<int>(packed[8 + j % 4]) >> (j / 4 * 2) & 3;
  return (low | high << 4) - 32;
}

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockBytes) {
    const float d = load_f16(row + kD);
    for (int j = 0; j < kNumSubBlocks; ++j, out += kSubBlockSize) {
      const float scale = d * static_cast<float>(scale_of(row + kPacked, j));
      const std::byte* high = row + j % 2 * kSubBlockSize;
      const std::byte* low = row + kQuants + j / 8 * 32 + j % 2 * kSubBlockSize;
      for (int k = 0; k < kSubBlockSize; ++k) {
        const int low_bits = std::to_integer<int>(low[k]) >> (j % 8 / 2 * 2) & 3;
        const int high_bit = std::to_integer<int>(high[k]) >> (j / 2) & 1;
        out[k] = scale * static_cast<float>((low_bits | high_bit << 2) - 4);
      }
    }
  }
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<kBlockSize, kBlockBytes>(decode, row, x, num_elements);
}

// q - 4 uniform in [-4, 4): E[q^2] = 5.5. |s - 32| uniform in [16, 32) with a random sign, which brings the mean to 0;
// E[s^2] = 23.5^2 + 255 / 12.
void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  RandomBits bits(seed);
  const uint16_t d = f32_to_f16(stddev / std::sqrt(5.5f * (23.5f * 23.5f + 255.0f / 12)));
  for (int64_t i = 0; i < num_elements; i += kBlockSize, out += kBlockBytes) {
    bits.fill(out, kPacked);
    uint64_t scale_bits = bits.next();
    uint64_t sign_bits = bits.next();
    std::memset(out + kPacked, 0, kD - kPacked);
    for (int j = 0; j < kNumSubBlocks; ++j, scale_bits >>= 4, sign_bits >>= 1) {
      const int magnitude = 16 + static_cast<int>(scale_bits & 15);
      const int stored = 32 + ((sign_bits & 1) != 0 ? -magnitude : magnitude);
      out[kPacked + j % 8] |= static_cast<std::byte>((stored & 15) << (j / 8 * 4));
      out[kPacked + 8 + j % 4] |= static_cast<std::byte>((stored >> 4) << (j / 4 * 2));
    }
    store_u16(out + kD, d);
  }
}

}  // namespace

QuantType q3_k_type() {
  return {.dtype = DType::kQ3_K,
          .name = "Q3_K",
          .safetensors = "",
          .ggml_id = 11,
          .block_size = kBlockSize,
          .block_bytes = kBlockBytes,
          .decode = decode,
          .encode = nullptr,
          .dot = dot,
          .random = random};
}

}  // namespace witan
