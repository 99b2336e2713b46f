#include <cmath>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

// A block: [0, 4) scale, f32; [4, 132) q, E4M3. Value i is q[i] * scale. See huggingface_rows.h for where such rows
// come from. E4M3 (Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433): sign, 4 bits of exponent
// with bias 7, 3 bits of mantissa, no infinities, NaN where all other bits are 1.
constexpr int kBlockSize = 128;
constexpr int kBlockBytes = 132;
constexpr int kQuants = 4;

constexpr float e4m3_to_f32(uint8_t code) {
  if ((code & 0x7f) == 0x7f) return std::bit_cast<float>(code == 0x7f ? 0x7fc00000u : 0xffc00000u);
  // As a half the same bits are 2^8 times smaller.
  return f16_to_f32(static_cast<uint16_t>((code & 0x80) << 8 | (code & 0x7f) << 7)) * 256;
}

constexpr std::array<float, 256> make_values() {
  std::array<float, 256> values{};
  for (size_t code = 0; code < values.size(); ++code) values[code] = e4m3_to_f32(static_cast<uint8_t>(code));
  return values;
}
constexpr std::array<float, 256> kValues = make_values();

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockBytes, out += kBlockSize) {
    const float scale = load_f32(row);
    const int64_t count = std::min<int64_t>(kBlockSize, num_elements - i);
    for (int64_t j = 0; j < count; ++j) out[j] = kValues[std::to_integer<uint8_t>(row[kQuants + j])] * scale;
  }
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<kBlockSize, kBlockBytes>(decode, row, x, num_elements);
}

constexpr float mean_square_of_codes() {
  float sum = 0;
  for (int code = 0; code < 0x7f; ++code) sum += kValues[code] * kValues[code];
  return sum / 128;  // of the 128 magnitudes, one is turned into 0
}

// Codes uniform over the 256 bytes with the two NaNs turned into zeros.
void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  RandomBits bits(seed);
  for (int64_t i = 0; i < num_elements; i += kBlockSize, out += kBlockBytes) {
    const int64_t count = std::min<int64_t>(kBlockSize, num_elements - i);
    const float scale = random_signed_scale(bits, stddev / std::sqrt(mean_square_of_codes()));
    std::memcpy(out, &scale, sizeof(scale));
    bits.fill(out + kQuants, static_cast<size_t>(count));
    for (int64_t j = kQuants; j < kQuants + count; ++j) {
      if ((out[j] & std::byte{0x7f}) == std::byte{0x7f}) out[j] = std::byte{0};
    }
  }
}

}  // namespace

QuantType f8_e4m3_type() {
  return {.dtype = DType::kF8_E4M3,
          .name = "F8_E4M3",
          .safetensors = "",
          .ggml_id = kNoGgmlId,
          .block_size = kBlockSize,
          .block_bytes = kBlockBytes,
          .allows_partial_block = true,
          .decode = decode,
          .encode = nullptr,
          .dot = dot,
          .random = random};
}

}  // namespace witan
