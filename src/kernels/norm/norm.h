#pragma once

#include <cstdint>

#include "base/isa.h"

namespace witan {

// out[i] = x[i] * rsqrt(mean(x^2) + epsilon) * weight[i], i in [0, n). out may be x.
void rms_norm(Isa isa, const float* x, const float* weight, float epsilon, int64_t n, float* out);

}  // namespace witan
