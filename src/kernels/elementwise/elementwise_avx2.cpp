#include <immintrin.h>

#include "kernels/elementwise/elementwise_variants.h"

namespace witan {
namespace {

// In this order: each uses names of the ones before.
#include "kernels/simd/vector_avx2.inl"
//
#include "kernels/simd/exp.inl"
//
#include "kernels/elementwise/elementwise.inl"

}  // namespace

void swiglu_avx2(const float* gate, const float* up, int64_t n, float* out) { swiglu_vectors(gate, up, n, out); }
void clamped_swiglu_avx2(const float* gate, const float* up, int64_t n, float limit, float* out) {
  clamped_swiglu_vectors(gate, up, n, limit, out);
}
void relu_avx2(int64_t n, float* x) { relu_vectors(n, x); }
void clamp_avx2(float limit, int64_t n, float* x) { clamp_vectors(limit, n, x); }
void add_avx2(const float* x, int64_t n, float* y) { add_vectors(x, n, y); }
void axpy_avx2(float a, const float* x, int64_t n, float* y) { axpy_vectors(a, x, n, y); }
void softmax_avx2(int64_t n, float* x) { softmax_vectors(n, x); }

}  // namespace witan
