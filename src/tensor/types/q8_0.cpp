#include <cmath>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

// A block: [0, 2) d, f16; [2, 34) q, int8[32]. Value i is d * q[i].
constexpr int kBlockSize = 32;
constexpr int kBlockBytes = 34;
constexpr int kQuants = 2;

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockBytes, out += kBlockSize) {
    const float d = load_f16(row);
    for (int j = 0; j < kBlockSize; ++j) out[j] = static_cast<float>(static_cast<int8_t>(row[kQuants + j])) * d;
  }
}

void encode(const float* row, std::byte* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockSize, out += kBlockBytes) {
    float largest = 0;
    for (int j = 0; j < kBlockSize; ++j) largest = std::max(largest, std::fabs(row[j]));
    const float d = largest / 127;
    const float inverse = d != 0 ? 1 / d : 0;
    store_f16(out, d);
    for (int j = 0; j < kBlockSize; ++j) {
      out[kQuants + j] = static_cast<std::byte>(static_cast<int8_t>(std::lroundf(row[j] * inverse)));
    }
  }
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<kBlockSize, kBlockBytes>(decode, row, x, num_elements);
}

// q uniform over the 256 bytes with -128, which the quantiser never writes, turned into 0: mean 0 and
// E[q^2] = 2 * (1^2 + ... + 127^2) / 256 = 5397.5. d varies by 2^-9 steps in [0.75, 1.25) of its mean.
void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  RandomBits bits(seed);
  const float mean_d = stddev / std::sqrt(5397.5f * (1 + 0.25f / 12));
  for (int64_t i = 0; i < num_elements; i += kBlockSize, out += kBlockBytes) {
    store_f16(out, mean_d * (1 + 0.25f * bits.next_signed_unit()));
    bits.fill(out + kQuants, kBlockSize);
    for (int j = kQuants; j < kBlockBytes; ++j) out[j] = out[j] == std::byte{0x80} ? std::byte{0} : out[j];
  }
}

}  // namespace

QuantType q8_0_type() {
  return {.dtype = DType::kQ8_0,
          .name = "Q8_0",
          .safetensors = "",
          .ggml_id = 8,
          .block_size = kBlockSize,
          .block_bytes = kBlockBytes,
          .decode = decode,
          .encode = encode,
          .dot = dot,
          .random = random};
}

}  // namespace witan
