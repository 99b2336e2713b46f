#include <cmath>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

// A block: [0, 2) d, f16; [2, 18) q, values 0..15 in the low nibbles, 16..31 in the high ones. Value i is
// d * (q[i] - 8).
constexpr int kBlockSize = 32;
constexpr int kBlockBytes = 18;
constexpr int kQuants = 2;

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockBytes, out += kBlockSize) {
    const float d = load_f16(row);
    for (int j = 0; j < kBlockSize; ++j) out[j] = static_cast<float>(nibble_of_32(row + kQuants, j) - 8) * d;
  }
}

// The value of largest magnitude becomes exactly -8 d, so the sign of d is chosen by it.
void encode(const float* row, std::byte* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockSize, out += kBlockBytes) {
    float largest = 0;
    for (int j = 0; j < kBlockSize; ++j) {
      if (std::fabs(row[j]) > std::fabs(largest)) largest = row[j];
    }
    const float d = largest / -8;
    const float inverse = d != 0 ? 1 / d : 0;
    store_f16(out, d);
    const auto quant = [&](int j) { return std::min(15, static_cast<int>(row[j] * inverse + 8.5f)); };
    for (int j = 0; j < kBlockSize / 2; ++j) {
      out[kQuants + j] = static_cast<std::byte>(quant(j) | quant(j + kBlockSize / 2) << 4);
    }
  }
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<kBlockSize, kBlockBytes>(decode, row, x, num_elements);
}

// q - 8 uniform in [-8, 8): E[q^2] = 21.5; the random sign of d brings the mean to 0.
void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  RandomBits bits(seed);
  for (int64_t i = 0; i < num_elements; i += kBlockSize, out += kBlockBytes) {
    store_f16(out, random_signed_scale(bits, stddev / std::sqrt(21.5f)));
    bits.fill(out + kQuants, kBlockSize / 2);
  }
}

}  // namespace

QuantType q4_0_type() {
  return {.dtype = DType::kQ4_0,
          .name = "Q4_0",
          .safetensors = "",
          .ggml_id = 2,
          .block_size = kBlockSize,
          .block_bytes = kBlockBytes,
          .decode = decode,
          .encode = encode,
          .dot = dot,
          .random = random};
}

}  // namespace witan
