#pragma once

#include <cstdint>

#include "base/isa.h"

namespace witan {

// out[i] = silu(gate[i]) * up[i], silu(z) = z / (1 + exp(-z)). out may be gate or up.
void swiglu(Isa isa, const float* gate, const float* up, int64_t n, float* out);

// out[i] = (u + 1) * g * sigmoid(1.702 g) with g = min(gate[i], limit), u = up[i] clamped to [-limit, limit]: the
// activation of gpt-oss (arXiv 2508.10925). out may be gate or up.
void clamped_swiglu(Isa isa, const float* gate, const float* up, int64_t n, float limit, float* out);

// x[i] = max(x[i], 0)
void relu(Isa isa, int64_t n, float* x);

// x[i] clamped to [-limit, limit]
void clamp(Isa isa, float limit, int64_t n, float* x);

// y[i] += x[i]
void add(Isa isa, const float* x, int64_t n, float* y);

// y[i] = fma(a, x[i], y[i])
void axpy(Isa isa, float a, const float* x, int64_t n, float* y);

// x = softmax(x) in place, f32. All -inf gives zeros; a NaN makes all of x NaN.
void softmax(Isa isa, int64_t n, float* x);

}  // namespace witan
