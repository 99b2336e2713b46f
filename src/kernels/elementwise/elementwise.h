#pragma once

#include <cstdint>

#include "base/isa.h"

namespace witan {

// out[i] = silu(gate[i]) * up[i], silu(z) = z / (1 + exp(-z)). out may be gate or up.
void swiglu(Isa isa, const float* gate, const float* up, int64_t n, float* out);

// y[i] += x[i]
void add(Isa isa, const float* x, int64_t n, float* y);

// y[i] = fma(a, x[i], y[i])
void axpy(Isa isa, float a, const float* x, int64_t n, float* y);

// x = softmax(x) in place, f32. All -inf gives zeros; a NaN makes all of x NaN.
void softmax(Isa isa, int64_t n, float* x);

}  // namespace witan
