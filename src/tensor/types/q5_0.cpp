#include <cmath>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

// A block: [0, 2) d, f16; [2, 6) bit i is the fifth bit of q[i]; [6, 22) low nibbles of q, values 0..15 in the low
// ones, 16..31 in the high ones. Value i is d * (q[i] - 16).
constexpr int kBlockSize = 32;
constexpr int kBlockBytes = 22;
constexpr int kHigh = 2;
constexpr int kQuants = 6;

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockBytes, out += kBlockSize) {
    const float d = load_f16(row);
    const uint32_t high = load_u32(row + kHigh);
    for (int j = 0; j < kBlockSize; ++j) {
      const int quant = nibble_of_32(row + kQuants, j) | static_cast<int>(high >> j & 1) << 4;
      out[j] = static_cast<float>(quant - 16) * d;
    }
  }
}

// The value of largest magnitude becomes exactly -16 d, so the sign of d is chosen by it.
void encode(const float* row, std::byte* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockSize, out += kBlockBytes) {
    float largest = 0;
    for (int j = 0; j < kBlockSize; ++j) {
      if (std::fabs(row[j]) > std::fabs(largest)) largest = row[j];
    }
    const float d = largest / -16;
    const float inverse = d != 0 ? 1 / d : 0;
    store_f16(out, d);
    store_quants_of_5_bits([&](int j) { return std::min(31, static_cast<int>(row[j] * inverse + 16.5f)); }, out + kHigh,
                           out + kQuants);
  }
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<kBlockSize, kBlockBytes>(decode, row, x, num_elements);
}

// q - 16 uniform in [-16, 16): E[q^2] = 85.5; the random sign of d brings the mean to 0.
void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  RandomBits bits(seed);
  for (int64_t i = 0; i < num_elements; i += kBlockSize, out += kBlockBytes) {
    store_f16(out, random_signed_scale(bits, stddev / std::sqrt(85.5f)));
    bits.fill(out + kHigh, kBlockBytes - kHigh);
  }
}

}  // namespace

QuantType q5_0_type() {
  return {.dtype = DType::kQ5_0,
          .name = "Q5_0",
          .safetensors = "",
          .ggml_id = 6,
          .block_size = kBlockSize,
          .block_bytes = kBlockBytes,
          .decode = decode,
          .encode = encode,
          .dot = dot,
          .random = random};
}

}  // namespace witan
