#include <cmath>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/codebooks.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

// A block: [0, 1) e, the scale 2^(e - 127); [1, 17) q, values 0..15 in the low nibbles, 16..31 in the high ones. Value
// i is half the scale times kMxfp4Codebook[q[i]].
constexpr int kBlockSize = 32;
constexpr int kBlockBytes = 17;
constexpr int kQuants = 1;

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockBytes, out += kBlockSize) {
    const float d = half_of_e8m0(std::to_integer<uint8_t>(row[0]));
    for (int j = 0; j < kBlockSize; ++j) out[j] = kMxfp4Codebook[nibble_of_32(row + kQuants, j)] * d;
  }
}

// The first code nearest to x under half a scale of d.
int nearest_code(float x, float d) {
  int best = 0;
  for (int code = 1; code < 16; ++code) {
    if (std::fabs(kMxfp4Codebook[code] * d - x) < std::fabs(kMxfp4Codebook[best] * d - x)) best = code;
  }
  return best;
}

// The scale puts the largest magnitude at exponent 2, the codes' own largest, as the specification and ggml do.
uint8_t scale_for(float largest) {
  return largest > 0 ? static_cast<uint8_t>(std::floor(std::log2(largest)) - 2 + 127) : uint8_t{0};
}

void encode(const float* row, std::byte* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockSize, out += kBlockBytes) {
    float largest = 0;
    for (int j = 0; j < kBlockSize; ++j) largest = std::max(largest, std::fabs(row[j]));
    const uint8_t e = scale_for(largest);
    const float d = half_of_e8m0(e);
    out[0] = static_cast<std::byte>(e);
    for (int j = 0; j < kBlockSize / 2; ++j) {
      out[kQuants + j] =
          static_cast<std::byte>(nearest_code(row[j], d) | nearest_code(row[j + kBlockSize / 2], d) << 4);
    }
  }
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<kBlockSize, kBlockBytes>(decode, row, x, num_elements);
}

// Scales are powers of two, so blocks draw between the two next to the one wanted: with d^2 in {s, 4 s} and a chance of
// p for the larger, E[d^2] = s (1 + 3 p).
void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  const float wanted = stddev / std::sqrt(mean_square(kMxfp4Codebook));  // root of E[d^2]
  const auto exponent = static_cast<int>(std::floor(std::log2(wanted)));
  const float ratio = wanted / std::ldexp(1.0f, exponent);
  const float chance = (ratio * ratio - 1) / 3;
  const int e = std::clamp(exponent + 128, 0, 253);  // d is half the scale
  RandomBits bits(seed);
  for (int64_t i = 0; i < num_elements; i += kBlockSize, out += kBlockBytes) {
    const bool larger = std::fabs(bits.next_signed_unit()) < chance;
    out[0] = static_cast<std::byte>(larger ? e + 1 : e);
    bits.fill(out + kQuants, kBlockSize / 2);
  }
}

}  // namespace

QuantType mxfp4_type() {
  return {.dtype = DType::kMXFP4,
          .name = "MXFP4",
          .safetensors = "",
          .ggml_id = 39,
          .block_size = kBlockSize,
          .block_bytes = kBlockBytes,
          .decode = decode,
          .encode = encode,
          .dot = dot,
          .random = random};
}

}  // namespace witan
