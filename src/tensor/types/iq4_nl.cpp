#include "tensor/types/codebooks.h"
#include "tensor/types/types.h"

#include <cmath>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"

namespace witan {
namespace {

// A block: [0, 2) d, f16; [2, 18) q, values 0..15 in the low nibbles, 16..31 in the high ones. Value i is
// d * kIq4Codebook[q[i]].
constexpr int kBlockSize = 32;
constexpr int kBlockBytes = 18;
constexpr int kQuants = 2;

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockBytes, out += kBlockSize) {
    const float d = load_f16(row);
    for (int j = 0; j < kBlockSize; ++j) out[j] = d * kIq4Codebook[nibble_of_32(row + kQuants, j)];
  }
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<kBlockSize, kBlockBytes>(decode, row, x, num_elements);
}

void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  RandomBits bits(seed);
  for (int64_t i = 0; i < num_elements; i += kBlockSize, out += kBlockBytes) {
    store_f16(out, random_signed_scale(bits, stddev / std::sqrt(mean_square(kIq4Codebook))));
    bits.fill(out + kQuants, kBlockSize / 2);
  }
}

}  // namespace

QuantType iq4_nl_type() {
  return {.dtype = DType::kIQ4_NL,
          .name = "IQ4_NL",
          .safetensors = "",
          .ggml_id = 20,
          .block_size = kBlockSize,
          .block_bytes = kBlockBytes,
          .decode = decode,
          .encode = nullptr,
          .dot = dot,
          .random = random};
}

}  // namespace witan
