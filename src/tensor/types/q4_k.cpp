#include <cmath>

#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

// A block of 256 values in 8 sub-blocks of 32, with a scale s and a minimum m of 6 bits each:
//   [0, 2) d, f16    [2, 4) dmin, f16    [4, 16) s and m, packed    [16, 144) q, 4 bits each
// Value i of sub-block j is d * s[j] * q - dmin * m[j]. Byte 32 * p + i of q holds value i of sub-block 2p in its low
// four bits and of sub-block 2p + 1 in its high four. The twelve packed bytes b, for j in [0, 4):
//   b[j] = s[j] | high two bits of s[j + 4]    b[j + 4] = m[j] | high two bits of m[j + 4]
//   b[j + 8] = low four bits of s[j + 4] | low four bits of m[j + 4] << 4
constexpr int kBlockSize = 256;
constexpr int kBlockBytes = 144;
constexpr int kNumSubBlocks = 8;
constexpr int kSubBlockSize = 32;
constexpr int kMinimum = 2;
constexpr int kPacked = 4;
constexpr int kQuants = 16;
constexpr int kMaxQuant = 15;
constexpr uint8_t kMaxScale = 63;

struct SubBlockScales {
  std::array<uint8_t, kNumSubBlocks> scale;
  std::array<uint8_t, kNumSubBlocks> minimum;
};

void pack_scales(const SubBlockScales& scales, std::byte* packed) {
  for (int j = 0; j < 4; ++j) {
    const int scale = scales.scale[j + 4];
    const int minimum = scales.minimum[j + 4];
    packed[j] = static_cast<std::byte>(scales.scale[j] | (scale >> 4) << 6);
    packed[j + 4] = static_cast<std::byte>(scales.minimum[j] | (minimum >> 4) << 6);
    packed[j + 8] = static_cast<std::byte>((scale & 15) | (minimum & 15) << 4);
  }
}

SubBlockScales unpack_scales(const std::byte* packed) {
  SubBlockScales scales;
  for (int j = 0; j < 4; ++j) {
    const int low = std::to_integer<int>(packed[j]);
    const int middle = std::to_integer<int>(packed[j + 4]);
    const int high = std::to_integer<int>(packed[j + 8]);
    scales.scale[j] = static_cast<uint8_t>(low & 63);
    scales.minimum[j] = static_cast<uint8_t>(middle & 63);
    scales.scale[j + 4] = static_cast<uint8_t>((high & 15) | (low >> 6) << 4);
    scales.minimum[j + 4] = static_cast<uint8_t>((high >> 4) | (middle >> 6) << 4);
  }
  return scales;
}

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kBlockSize, row += kBlockBytes) {
    const float d = load_f16(row);
    const float dmin = load_f16(row + kMinimum);
    const SubBlockScales scales = unpack_scales(row + kPacked);
    for (int j = 0; j < kNumSubBlocks; ++j, out += kSubBlockSize) {
      const float scale = d * scales.scale[j];
      const float minimum = dmin * scales.minimum[j];
      const std::byte* quants = row + kQuants + j / 2 * kSubBlockSize;
      const int shift = j % 2 * 4;
      for (int k = 0; k < kSubBlockSize; ++k) {
        const int quant = (std::to_integer<int>(quants[k]) >> shift) & 15;
        out[k] = scale * static_cast<float>(quant) - minimum;
      }
    }
  }
}

struct Line {
  float scale = 0;
  float base = 0;
};

struct Fit {
  Line line;
  std::array<uint8_t, kSubBlockSize> quants = {};  // of the values, under `line`
};

// The line scale * q + base, q in [0, 15], base <= 0, that fits the 32 values of x best under the weighted squared
// error. Rounds x under 21 inverse scales around 15 / range, solves the weighted least squares of each rounding, and
// keeps the first best of them and the plain range. As in ggml, each rounding starts from the best base so far, not
// from the smallest value, so the order of the attempts is part of the result.
Fit fit_line(const float* x, const float* weights) {
  constexpr int kNumAttempts = 21;
  float low = x[0];
  float high = x[0];
  float sum_w = weights[0];
  float sum_wx = sum_w * x[0];
  for (int i = 1; i < kSubBlockSize; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
    sum_w += weights[i];
    sum_wx += weights[i] * x[i];
  }
  low = std::min(low, 0.0f);
  if (high == low) return {.line = {.scale = 0, .base = low}};

  std::array<uint8_t, kSubBlockSize> quants;
  auto round_under = [&](float inverse, float base) {
    for (int i = 0; i < kSubBlockSize; ++i) {
      quants[i] = static_cast<uint8_t>(std::clamp(nearest_int(inverse * (x[i] - base)), 0, kMaxQuant));
    }
  };
  auto error_of = [&](Line line) {
    float error = 0;
    for (int i = 0; i < kSubBlockSize; ++i) {
      const float difference = line.scale * static_cast<float>(quants[i]) + line.base - x[i];
      error += weights[i] * (difference * difference);
    }
    return error;
  };

  const float range_inverse = kMaxQuant / (high - low);
  round_under(range_inverse, low);
  Fit best{.line = {.scale = 1 / range_inverse, .base = low}, .quants = quants};
  float best_error = error_of(best.line);
  for (int attempt = 0; attempt < kNumAttempts; ++attempt) {
    round_under((-1.0f + 0.1f * static_cast<float>(attempt) + kMaxQuant) / (high - best.line.base), best.line.base);
    float sum_q = 0;
    float sum_qq = 0;
    float sum_qx = 0;
    for (int i = 0; i < kSubBlockSize; ++i) {
      const float quant = quants[i];
      sum_q += weights[i] * quant;
      sum_qq += weights[i] * quant * quant;
      sum_qx += weights[i] * quant * x[i];
    }
    const float determinant = sum_w * sum_qq - sum_q * sum_q;
    if (!(determinant > 0)) continue;
    Line line{.scale = (sum_w * sum_qx - sum_wx * sum_q) / determinant,
              .base = (sum_qq * sum_wx - sum_q * sum_qx) / determinant};
    if (line.base > 0) line = {.scale = sum_qx / sum_qq, .base = 0};
    const float error = error_of(line);
    if (error < best_error) {
      best_error = error;
      best = {.line = line, .quants = quants};
    }
  }
  return best;
}

// Values far from zero count more: the weight is |x| plus the root mean square of the sub-block.
Fit fit_sub_block(const float* x) {
  float sum_squares = 0;
  for (int i = 0; i < kSubBlockSize; ++i) sum_squares += x[i] * x[i];
  const float root_mean_square = std::sqrt(sum_squares / kSubBlockSize);
  std::array<float, kSubBlockSize> weights;
  for (int i = 0; i < kSubBlockSize; ++i) weights[i] = root_mean_square + std::fabs(x[i]);
  return fit_line(x, weights.data());
}

void encode_block(const float* x, std::byte* out) {
  std::array<Fit, kNumSubBlocks> fits;
  float largest_scale = 0;
  float largest_minimum = 0;
  for (int j = 0; j < kNumSubBlocks; ++j) {
    fits[j] = fit_sub_block(x + j * kSubBlockSize);
    largest_scale = std::max(largest_scale, fits[j].line.scale);
    largest_minimum = std::max(largest_minimum, -fits[j].line.base);
  }
  const float inverse_scale = largest_scale > 0 ? kMaxScale / largest_scale : 0;
  const float inverse_minimum = largest_minimum > 0 ? kMaxScale / largest_minimum : 0;
  SubBlockScales scales;
  for (int j = 0; j < kNumSubBlocks; ++j) {
    // Down to eight bits before the upper bound, as in ggml: it matters only for scales that are not positive.
    const auto scale = static_cast<uint8_t>(nearest_int(inverse_scale * fits[j].line.scale));
    const auto minimum = static_cast<uint8_t>(nearest_int(inverse_minimum * -fits[j].line.base));
    scales.scale[j] = std::min(kMaxScale, scale);
    scales.minimum[j] = std::min(kMaxScale, minimum);
  }
  store_f16(out, largest_scale / kMaxScale);
  store_f16(out + kMinimum, largest_minimum / kMaxScale);
  pack_scales(scales, out + kPacked);

  for (int j = 0; j < kNumSubBlocks; ++j) {
    // Round again, to the line as it is stored. Where its scale became 0 the quants of the fit stay, as in ggml.
    const float scale = load_f16(out) * scales.scale[j];
    const float minimum = load_f16(out + kMinimum) * scales.minimum[j];
    for (int k = 0; k < kSubBlockSize; ++k) {
      const float value = x[j * kSubBlockSize + k];
      const int quant =
          scale != 0 ? std::clamp(nearest_int((value + minimum) / scale), 0, kMaxQuant) : fits[j].quants[k];
      std::byte& byte = out[kQuants + j / 2 * kSubBlockSize + k];
      byte = j % 2 == 0 ? static_cast<std::byte>(quant) : byte | static_cast<std::byte>(quant << 4);
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

// q uniform in [0, 16): mean 7.5, variance 21.25. s uniform in [24, 56), m = s + t with t uniform in [-3, 3] and
// dmin = 7.5 d: a sub-block has mean -dmin * t and deviation d * s * sqrt(21.25), so sub-blocks differ in both and a
// row's mean is 0. The variance of a value is d^2 (E[s^2] * 21.25 + 7.5^2 * E[t^2]), E[s^2] = 39.5^2 + (32^2 - 1) / 12,
// E[t^2] = 4.
void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  constexpr float kVariance = (39.5f * 39.5f + 1023.0f / 12) * 21.25f + 56.25f * 4;
  RandomBits bits(seed);
  const uint16_t d = f32_to_f16(stddev / std::sqrt(kVariance));
  const uint16_t dmin = f32_to_f16(7.5f * f16_to_f32(d));
  for (int64_t i = 0; i < num_elements; i += kBlockSize, out += kBlockBytes) {
    uint64_t scale_bits = bits.next();
    uint64_t shift_bits = bits.next();
    SubBlockScales scales;
    for (int j = 0; j < kNumSubBlocks; ++j, scale_bits >>= 8, shift_bits >>= 8) {
      const int scale = 24 + static_cast<int>(scale_bits & 31);
      const int shift = static_cast<int>((shift_bits & 255) * 7 >> 8) - 3;
      scales.scale[j] = static_cast<uint8_t>(scale);
      scales.minimum[j] = static_cast<uint8_t>(scale + shift);
    }
    store_u16(out, d);
    store_u16(out + kMinimum, dmin);
    pack_scales(scales, out + kPacked);
    bits.fill(out + kQuants, kBlockSize / 2);
  }
}

}  // namespace

QuantType q4_k_type() {
  return {.dtype = DType::kQ4_K,
          .name = "Q4_K",
          .safetensors = "",
          .ggml_id = 12,
          .block_size = kBlockSize,
          .block_bytes = kBlockBytes,
          .decode = decode,
          .encode = encode,
          .dot = dot,
          .random = random};
}

}  // namespace witan
