#include <cmath>
#include <limits>

#include "kernels/elementwise/elementwise_variants.h"

namespace witan {

void swiglu_reference(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const double z = gate[i];
    out[i] = static_cast<float>(z / (1.0 + std::exp(-z)) * static_cast<double>(up[i]));
  }
}

void clamped_swiglu_reference(const float* gate, const float* up, int64_t n, float limit, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const double g = gate[i] > limit ? limit : gate[i];
    const double u = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];
    out[i] = static_cast<float>((u + 1.0) * g / (1.0 + std::exp(-1.702 * g)));
  }
}

void relu_reference(int64_t n, float* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] < 0.0f ? 0.0f : x[i];
}

void clamp_reference(float limit, int64_t n, float* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
}

void add_reference(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

void axpy_reference(float a, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = std::fma(a, x[i], y[i]);
}

void softmax_reference(int64_t n, float* x) {
  double max = -std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < n; ++i) max = std::fmax(max, static_cast<double>(x[i]));
  if (std::isinf(max) && max < 0) max = 0.0;  // exp(-inf - -inf) would be NaN
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(x[i]) - max);
  for (int64_t i = 0; i < n; ++i) {
    x[i] = sum == 0.0 ? 0.0f : static_cast<float>(std::exp(static_cast<double>(x[i]) - max) / sum);
  }
}

}  // namespace witan
