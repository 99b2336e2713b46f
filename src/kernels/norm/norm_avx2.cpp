#include <immintrin.h>

#include "kernels/norm/norm_variants.h"

namespace witan {
namespace {

#include "kernels/simd/vector_avx2.inl"
//
#include "kernels/norm/norm.inl"

}  // namespace

void rms_norm_avx2(const float* x, const float* weight, float epsilon, int64_t n, float* out) {
  rms_norm_vectors(x, weight, epsilon, n, out);
}

}  // namespace witan
