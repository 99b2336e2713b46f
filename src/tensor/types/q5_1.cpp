#include <cmath>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

// A block: [0, 2) d, f16; [2, 4) m, f16; [4, 8) bit i is the fifth bit of q[i]; [8, 24) low nibbles of q, values 0..15
// in the low ones, 16..31 in the high ones. Value i is d * q[i] + m.
constexpr int kBlockSize = 32;
constexpr int kBlockBytes = 24;
constexpr int kMinimum = 2;
constexpr int kHigh = 4;
constexpr int kQuants = 8;

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockBytes, out += kBlockSize) {
    const float d = load_f16(row);
    const float m = load_f16(row + kMinimum);
    const uint32_t high = load_u32(row + kHigh);
    for (int j = 0; j < kBlockSize; ++j) {
      const int quant = nibble_of_32(row + kQuants, j) | static_cast<int>(high >> j & 1) << 4;
      out[j] = static_cast<float>(quant) * d + m;
    }
  }
}

// The range of the values becomes that of the quants.
void encode(const float* row, std::byte* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockSize, out += kBlockBytes) {
    const auto [low, high] = std::minmax_element(row, row + kBlockSize);
    const float d = (*high - *low) / 31;
    const float inverse = d != 0 ? 1 / d : 0;
    store_f16(out, d);
    store_f16(out + kMinimum, *low);
    store_quants_of_5_bits(
        [&, low = *low](int j) { return std::min(31, static_cast<int>(std::floor((row[j] - low) * inverse + 0.5f))); },
        out + kHigh, out + kQuants);
  }
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<kBlockSize, kBlockBytes>(decode, row, x, num_elements);
}

// q uniform in [0, 32): mean 15.5, variance 85.25.
void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  RandomBits bits(seed);
  for (int64_t i = 0; i < num_elements; i += kBlockSize, out += kBlockBytes) {
    store_f16(out, random_signed_scale(bits, stddev / std::sqrt(85.25f)));
    store_f16(out + kMinimum, -15.5f * load_f16(out));
    bits.fill(out + kHigh, kBlockBytes - kHigh);
  }
}

}  // namespace

QuantType q5_1_type() {
  return {.dtype = DType::kQ5_1,
          .name = "Q5_1",
          .safetensors = "",
          .ggml_id = 7,
          .block_size = kBlockSize,
          .block_bytes = kBlockBytes,
          .decode = decode,
          .encode = encode,
          .dot = dot,
          .random = random};
}

}  // namespace witan
