#include "kernels/rope/rope_variants.h"

namespace witan {
namespace {

void rotate(double cos, double sin, float& a, float& b) {
  const double rotated_a = static_cast<double>(a) * cos - static_cast<double>(b) * sin;
  const double rotated_b = static_cast<double>(a) * sin + static_cast<double>(b) * cos;
  a = static_cast<float>(rotated_a);
  b = static_cast<float>(rotated_b);
}

}  // namespace

void rope_halves_reference(const float* cos, const float* sin, int64_t dim, float* x) {
  for (int64_t i = 0; i < dim / 2; ++i) rotate(cos[i], sin[i], x[i], x[i + dim / 2]);
}

void rope_pairs_reference(const float* cos, const float* sin, int64_t dim, float* x) {
  for (int64_t i = 0; i < dim / 2; ++i) rotate(cos[i], sin[i], x[2 * i], x[2 * i + 1]);
}

}  // namespace witan
