#include <cmath>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

// A block of 256 values in 16 sub-blocks of 16, with a signed scale s each:
//   [0, 128) low four bits of q    [128, 192) high two bits of q    [192, 208) s, int8[16]    [208, 210) d, f16
// Value i is d * s[i / 16] * (q - 32), q in [0, 64). In each half h of 128 values, value 32 * g + i (g in [0, 4)) has
// its low bits in byte 64 * h + 32 * (g % 2) + i, shifted by 4 * (g / 2), and its high bits in byte
// 128 + 32 * h + i, shifted by 2 * g.
constexpr int kBlockSize = 256;
constexpr int kBlockBytes = 210;
constexpr int kNumSubBlocks = 16;
constexpr int kSubBlockSize = 16;
constexpr int kHigh = 128;
constexpr int kScales = 192;
constexpr int kD = 208;
constexpr int kHalfRange = 32;  // quants are stored plus this

// Where the bits of a sub-block lie: those of its value k in bytes low + k and high + k.
struct BitPlace {
  int low;
  int low_shift;
  int high;
  int high_shift;
};

constexpr BitPlace place_of(int sub_block) {
  const int half = sub_block / 8;
  const int group = sub_block % 8 / 2;
  const int offset = sub_block % 2 * kSubBlockSize;
  return {.low = 64 * half + 32 * (group % 2) + offset,
          .low_shift = 4 * (group / 2),
          .high = kHigh + 32 * half + offset,
          .high_shift = 2 * group};
}

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockBytes) {
    const float d = load_f16(row + kD);
    for (int j = 0; j < kNumSubBlocks; ++j, out += kSubBlockSize) {
      const float scale = d * static_cast<float>(static_cast<int8_t>(row[kScales + j]));
      const BitPlace place = place_of(j);
      for (int k = 0; k < kSubBlockSize; ++k) {
        const int low = (std::to_integer<int>(row[place.low + k]) >> place.low_shift) & 15;
        const int high = (std::to_integer<int>(row[place.high + k]) >> place.high_shift) & 3;
        out[k] = scale * static_cast<float>((low | high << 4) - kHalfRange);
      }
    }
  }
}

// Below this everything counts as zero.
constexpr float kTiny = 1e-15f;

struct Fit {
  float scale = 0;
  std::array<int8_t, kSubBlockSize> quants = {};  // plus kHalfRange; 0 when there was nothing to fit
};

// The scale whose scale * q, q in [-32, 31], fits the 16 values of x best under squared error weighted by x^2: rounds x
// under 19 inverse scales around -32 / (value of largest magnitude), solves the least squares of each rounding, keeps
// the first best.
Fit fit_scale(const float* x) {
  float largest = 0;
  for (int i = 0; i < kSubBlockSize; ++i) {
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  }
  if (std::fabs(largest) < kTiny) return {};

  Fit best;
  float best_gain = 0;  // what the fit takes off the error
  auto consider = [&](float inverse, bool is_first) {
    std::array<int8_t, kSubBlockSize> quants;
    float sum_qx = 0;
    float sum_qq = 0;
    for (int i = 0; i < kSubBlockSize; ++i) {
      const int quant = std::clamp(nearest_int(inverse * x[i]), -kHalfRange, kHalfRange - 1);
      quants[i] = static_cast<int8_t>(quant + kHalfRange);
      const float weight = x[i] * x[i];
      sum_qx += weight * x[i] * static_cast<float>(quant);
      sum_qq += weight * static_cast<float>(quant) * static_cast<float>(quant);
    }
    if (is_first || (sum_qq > 0 && sum_qx * sum_qx > best_gain * sum_qq)) {
      best = {.scale = sum_qq != 0 ? sum_qx / sum_qq : 0, .quants = quants};
      best_gain = best.scale * sum_qx;
    }
  };
  consider(-kHalfRange / largest, true);
  for (int step = -9; step <= 9; ++step) {
    if (step != 0) consider(-(kHalfRange + 0.1f * static_cast<float>(step)) / largest, false);
  }
  return best;
}

void encode_block(const float* x, std::byte* out) {
  std::memset(out, 0, kBlockBytes);
  std::array<Fit, kNumSubBlocks> fits;
  float largest = 0;
  for (int j = 0; j < kNumSubBlocks; ++j) {
    fits[j] = fit_scale(x + j * kSubBlockSize);
    if (std::fabs(fits[j].scale) > std::fabs(largest)) largest = fits[j].scale;
  }
  if (std::fabs(largest) < kTiny) return;

  const float inverse = -128.0f / largest;
  store_f16(out + kD, 1 / inverse);
  for (int j = 0; j < kNumSubBlocks; ++j) {
    const auto stored = static_cast<int8_t>(std::min(127, nearest_int(inverse * fits[j].scale)));
    out[kScales + j] = static_cast<std::byte>(stored);
    // Round again, to the scale as it is stored. Where that became 0 the quants of the fit stay, as in ggml.
    const float scale = load_f16(out + kD) * static_cast<float>(stored);
    const BitPlace place = place_of(j);
    for (int k = 0; k < kSubBlockSize; ++k) {
      const float value = x[j * kSubBlockSize + k];
      const int quant = scale != 0 ? std::clamp(nearest_int(value / scale), -kHalfRange, kHalfRange - 1) + kHalfRange
                                   : fits[j].quants[k];
      out[place.low + k] |= static_cast<std::byte>((quant & 15) << place.low_shift);
      out[place.high + k] |= static_cast<std::byte>((quant >> 4) << place.high_shift);
    }
  }
}

void encode(const float* row, std::byte* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize) {
    encode_block(row + i, out + i / kBlockSize * kBlockBytes);
  }
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<kBlockSize, kBlockBytes>(decode, row, x, num_elements);
}

// q uniform in [-32, 32): mean -0.5, E[q^2] = 341.5. |s| uniform in [48, 112) with a random sign, which brings the mean
// to 0; E[s^2] = 79.5^2 + (64^2 - 1) / 12.
void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  RandomBits bits(seed);
  const uint16_t d = f32_to_f16(stddev / std::sqrt(341.5f * (79.5f * 79.5f + 4095.0f / 12)));
  for (int64_t i = 0; i < num_elements; i += kBlockSize, out += kBlockBytes) {
    bits.fill(out, kScales + kNumSubBlocks);
    for (int j = 0; j < kNumSubBlocks; ++j) {
      const int random_byte = std::to_integer<int>(out[kScales + j]);
      const int magnitude = 48 + (random_byte & 63);
      out[kScales + j] = static_cast<std::byte>((random_byte & 64) != 0 ? -magnitude : magnitude);
    }
    store_u16(out + kD, d);
  }
}

}  // namespace

QuantType q6_k_type() {
  return {.dtype = DType::kQ6_K,
          .name = "Q6_K",
          .safetensors = "",
          .ggml_id = 14,
          .block_size = kBlockSize,
          .block_bytes = kBlockBytes,
          .decode = decode,
          .encode = encode,
          .dot = dot,
          .random = random};
}

}  // namespace witan
