#pragma once

#include <cstdint>

namespace witan {

// dim is even.
using RopeFunction = void (*)(const float* cos, const float* sin, int64_t dim, float* x);

void rope_halves_reference(const float* cos, const float* sin, int64_t dim, float* x);
void rope_halves_avx2(const float* cos, const float* sin, int64_t dim, float* x);
void rope_halves_avx512(const float* cos, const float* sin, int64_t dim, float* x);

void rope_pairs_reference(const float* cos, const float* sin, int64_t dim, float* x);
void rope_pairs_avx2(const float* cos, const float* sin, int64_t dim, float* x);
void rope_pairs_avx512(const float* cos, const float* sin, int64_t dim, float* x);

}  // namespace witan
