#include <cmath>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

// A block: [0, 2) d, f16; [2, 4) m, f16; [4, 20) q, values 0..15 in the low nibbles, 16..31 in the high ones. Value i
// is d * q[i] + m.
constexpr int kBlockSize = 32;
constexpr int kBlockBytes = 20;
constexpr int kMinimum = 2;
constexpr int kQuants = 4;

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockBytes, out += kBlockSize) {
    const float d = load_f16(row);
    const float m = load_f16(row + kMinimum);
    for (int j = 0; j < kBlockSize; ++j) out[j] = static_cast<float>(nibble_of_32(row + kQuants, j)) * d + m;
  }
}

// The range of the values becomes that of the quants.
void encode(const float* row, std::byte* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockSize, out += kBlockBytes) {
    const auto [low, high] = std::minmax_element(row, row + kBlockSize);
    const float d = (*high - *low) / 15;
    const float inverse = d != 0 ? 1 / d : 0;
    store_f16(out, d);
    store_f16(out + kMinimum, *low);
    const auto quant = [&, low = *low](int j) {
      return std::min(15, static_cast<int>(std::floor((row[j] - low) * inverse + 0.5f)));
    };
    for (int j = 0; j < kBlockSize / 2; ++j) {
      out[kQuants + j] = static_cast<std::byte>(quant(j) | quant(j + kBlockSize / 2) << 4);
    }
  }
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<kBlockSize, kBlockBytes>(decode, row, x, num_elements);
}

// q uniform in [0, 16): mean 7.5, variance 21.25.
void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  RandomBits bits(seed);
  for (int64_t i = 0; i < num_elements; i += kBlockSize, out += kBlockBytes) {
    store_f16(out, random_signed_scale(bits, stddev / std::sqrt(21.25f)));
    store_f16(out + kMinimum, -7.5f * load_f16(out));
    bits.fill(out + kQuants, kBlockSize / 2);
  }
}

}  // namespace

QuantType q4_1_type() {
  return {.dtype = DType::kQ4_1,
          .name = "Q4_1",
          .safetensors = "",
          .ggml_id = 3,
          .block_size = kBlockSize,
          .block_bytes = kBlockBytes,
          .decode = decode,
          .encode = encode,
          .dot = dot,
          .random = random};
}

}  // namespace witan
