#include "tensor/types/k_line_fit.h"

#include <cmath>

#include "tensor/types/block.h"

namespace witan {
namespace {

constexpr int kMinimum = 2;
constexpr int kPacked = 4;
constexpr uint8_t kMaxScale = 63;

void pack_scales(const LineScales& scales, std::byte* packed) {
  for (int j = 0; j < 4; ++j) {
    const int scale = scales.scale[j + 4];
    const int minimum = scales.minimum[j + 4];
    packed[j] = static_cast<std::byte>(scales.scale[j] | (scale >> 4) << 6);
    packed[j + 4] = static_cast<std::byte>(scales.minimum[j] | (minimum >> 4) << 6);
    packed[j + 8] = static_cast<std::byte>((scale & 15) | (minimum & 15) << 4);
  }
}

LineScales unpack_scales(const std::byte* packed) {
  LineScales scales;
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

struct Line {
  float scale = 0;
  float base = 0;
};

struct Fit {
  Line line;
  std::array<uint8_t, kLineSubBlockSize> quants = {};  // of the values, under `line`
};

// The line scale * q + base, q in [0, max_quant], base <= 0, that fits the 32 values of x best under the weighted
// squared error. Rounds x under 21 inverse scales around 15 / range, solves the weighted least squares of each
// rounding, and keeps the first best of them and the plain range. As in ggml, each rounding starts from the best base
// so far, not from the smallest value, so the order of the attempts is part of the result.
Fit fit_line(const LineSearch& search, const float* x, const float* weights) {
  const auto max_quant = static_cast<float>(search.max_quant);
  float low = x[0];
  float high = x[0];
  float sum_w = weights[0];
  float sum_wx = sum_w * x[0];
  for (int i = 1; i < kLineSubBlockSize; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
    sum_w += weights[i];
    sum_wx += weights[i] * x[i];
  }
  low = std::min(low, 0.0f);
  if (high == low) return {.line = {.scale = 0, .base = low}};

  std::array<uint8_t, kLineSubBlockSize> quants;
  auto round_under = [&](float inverse, float base) {
    for (int i = 0; i < kLineSubBlockSize; ++i) {
      quants[i] = static_cast<uint8_t>(std::clamp(nearest_int(inverse * (x[i] - base)), 0, search.max_quant));
    }
  };
  auto error_of = [&](Line line) {
    float error = 0;
    for (int i = 0; i < kLineSubBlockSize; ++i) {
      const float difference = line.scale * static_cast<float>(quants[i]) + line.base - x[i];
      error += weights[i] * (difference * difference);
    }
    return error;
  };

  const float range_inverse = max_quant / (high - low);
  round_under(range_inverse, low);
  Fit best{.line = {.scale = 1 / range_inverse, .base = low}, .quants = quants};
  float best_error = error_of(best.line);
  for (int attempt = 0; attempt < search.num_attempts; ++attempt) {
    round_under((search.first_step + 0.1f * static_cast<float>(attempt) + max_quant) / (high - best.line.base),
                best.line.base);
    float sum_q = 0;
    float sum_qq = 0;
    float sum_qx = 0;
    for (int i = 0; i < kLineSubBlockSize; ++i) {
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
Fit fit_sub_block(const LineSearch& search, const float* x) {
  float sum_squares = 0;
  for (int i = 0; i < kLineSubBlockSize; ++i) sum_squares += x[i] * x[i];
  const float root_mean_square = std::sqrt(sum_squares / kLineSubBlockSize);
  std::array<float, kLineSubBlockSize> weights;
  for (int i = 0; i < kLineSubBlockSize; ++i) weights[i] = root_mean_square + std::fabs(x[i]);
  return fit_line(search, x, weights.data());
}

}  // namespace

void write_line_header(uint16_t d, uint16_t dmin, const LineScales& scales, std::byte* header) {
  store_u16(header, d);
  store_u16(header + kMinimum, dmin);
  pack_scales(scales, header + kPacked);
}

LineHeader read_line_header(const std::byte* header) {
  const float d = load_f16(header);
  const float dmin = load_f16(header + kMinimum);
  const LineScales scales = unpack_scales(header + kPacked);
  LineHeader read;
  for (int j = 0; j < kLineSubBlocks; ++j) {
    read.scale[j] = d * scales.scale[j];
    read.minimum[j] = dmin * scales.minimum[j];
  }
  return read;
}

void fit_lines(const LineSearch& search, const float* x, std::byte* header, uint8_t* quants) {
  std::array<Fit, kLineSubBlocks> fits;
  float largest_scale = 0;
  float largest_minimum = 0;
  for (int j = 0; j < kLineSubBlocks; ++j) {
    fits[j] = fit_sub_block(search, x + j * kLineSubBlockSize);
    largest_scale = std::max(largest_scale, fits[j].line.scale);
    largest_minimum = std::max(largest_minimum, -fits[j].line.base);
  }
  const float inverse_scale = largest_scale > 0 ? kMaxScale / largest_scale : 0;
  const float inverse_minimum = largest_minimum > 0 ? kMaxScale / largest_minimum : 0;
  LineScales scales;
  for (int j = 0; j < kLineSubBlocks; ++j) {
    // Down to eight bits before the upper bound, as in ggml: it matters only for scales that are not positive.
    const auto scale = static_cast<uint8_t>(nearest_int(inverse_scale * fits[j].line.scale));
    const auto minimum = static_cast<uint8_t>(nearest_int(inverse_minimum * -fits[j].line.base));
    scales.scale[j] = std::min(kMaxScale, scale);
    scales.minimum[j] = std::min(kMaxScale, minimum);
  }
  write_line_header(f32_to_f16(largest_scale / kMaxScale), f32_to_f16(largest_minimum / kMaxScale), scales, header);

  // Round again, to the lines as they are stored. Where a scale became 0 the quants of the fit stay, as in ggml.
  const LineHeader stored = read_line_header(header);
  for (int i = 0; i < kLineBlockSize; ++i) {
    const int j = i / kLineSubBlockSize;
    quants[i] = fits[j].quants[i % kLineSubBlockSize];
    if (stored.scale[j] == 0) continue;
    const int quant = nearest_int((x[i] + stored.minimum[j]) / stored.scale[j]);
    quants[i] = static_cast<uint8_t>(std::clamp(quant, 0, search.max_quant));
  }
}

// With c = max_quant / 2 the mean of q, v = ((max_quant + 1)^2 - 1) / 12 is its variance. s uniform in [24, 56), m = s
// + t with t uniform in [-3, 3] and dmin = c d: a sub-block has mean -dmin * t and deviation d * s * sqrt(v), so
// sub-blocks differ in both and a row's mean is 0. The variance of a value is d^2 (E[s^2] * v + c^2 * E[t^2]), with
// E[s^2] = 39.5^2 + (32^2 - 1) / 12 and E[t^2] = 4.
RandomLines::RandomLines(int max_quant, float stddev) {
  const auto levels = static_cast<float>(max_quant + 1);
  const float center = static_cast<float>(max_quant) / 2;
  const float variance = (39.5f * 39.5f + 1023.0f / 12) * (levels * levels - 1) / 12 + center * center * 4;
  d_ = f32_to_f16(stddev / std::sqrt(variance));
  dmin_ = f32_to_f16(center * f16_to_f32(d_));
}

void RandomLines::write_header(uint64_t scale_bits, uint64_t shift_bits, std::byte* header) const {
  LineScales scales;
  for (int j = 0; j < kLineSubBlocks; ++j, scale_bits >>= 8, shift_bits >>= 8) {
    const int scale = 24 + static_cast<int>(scale_bits & 31);
    const int shift = static_cast<int>((shift_bits & 255) * 7 >> 8) - 3;
    scales.scale[j] = static_cast<uint8_t>(scale);
    scales.minimum[j] = static_cast<uint8_t>(scale + shift);
  }
  write_line_header(d_, dmin_, scales, header);
}

}  // namespace witan
