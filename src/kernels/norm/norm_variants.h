#pragma once

#include <cstdint>

namespace witan {

using RmsNormFunction = void (*)(const float* x, const float* weight, float epsilon, int64_t n, float* out);

void rms_norm_reference(const float* x, const float* weight, float epsilon, int64_t n, float* out);
void rms_norm_avx2(const float* x, const float* weight, float epsilon, int64_t n, float* out);
void rms_norm_avx512(const float* x, const float* weight, float epsilon, int64_t n, float* out);

}  // namespace witan
