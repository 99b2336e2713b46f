#include <immintrin.h>

#include "kernels/rope/rope_variants.h"

namespace witan {
namespace {

#include "kernels/simd/vector_avx2.inl"

inline Float spread(Float v) { return _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)); }
inline Float spread_pairs(const float* from) { return spread(_mm256_castps128_ps256(_mm_loadu_ps(from))); }
inline Float spread_pairs(int64_t count, const float* from) { return spread(load(first_lanes(count), from)); }
inline Float swap_pairs(Float v) { return _mm256_permute_ps(v, 0xb1); }
inline Float multiply_subtract_add(Float a, Float b, Float c) { return _mm256_fmaddsub_ps(a, b, c); }

#include "kernels/rope/rope.inl"

}  // namespace

void rope_halves_avx2(const float* cos, const float* sin, int64_t dim, float* x) {
  rope_halves_vectors(cos, sin, dim, x);
}
void rope_pairs_avx2(const float* cos, const float* sin, int64_t dim, float* x) {
  rope_pairs_vectors(cos, sin, dim, x);
}

}  // namespace witan
