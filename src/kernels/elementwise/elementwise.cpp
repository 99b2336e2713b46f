#include "kernels/elementwise/elementwise.h"

#include "kernels/elementwise/elementwise_variants.h"
#include "kernels/isa_table.h"

namespace witan {
namespace {

constexpr IsaTable<SwigluFunction> kSwiglu{{swiglu_reference, swiglu_avx2, swiglu_avx512}};
constexpr IsaTable<ClampedSwigluFunction> kClampedSwiglu{
    {clamped_swiglu_reference, clamped_swiglu_avx2, clamped_swiglu_avx512}};
constexpr IsaTable<ReluFunction> kRelu{{relu_reference, relu_avx2, relu_avx512}};
constexpr IsaTable<ClampFunction> kClamp{{clamp_reference, clamp_avx2, clamp_avx512}};
constexpr IsaTable<AddFunction> kAdd{{add_reference, add_avx2, add_avx512}};
constexpr IsaTable<AxpyFunction> kAxpy{{axpy_reference, axpy_avx2, axpy_avx512}};
constexpr IsaTable<SoftmaxFunction> kSoftmax{{softmax_reference, softmax_avx2, softmax_avx512}};

}  // namespace

void swiglu(Isa isa, const float* gate, const float* up, int64_t n, float* out) { kSwiglu[isa](gate, up, n, out); }

void clamped_swiglu(Isa isa, const float* gate, const float* up, int64_t n, float limit, float* out) {
  kClampedSwiglu[isa](gate, up, n, limit, out);
}

void relu(Isa isa, int64_t n, float* x) { kRelu[isa](n, x); }

void clamp(Isa isa, float limit, int64_t n, float* x) { kClamp[isa](limit, n, x); }

void add(Isa isa, const float* x, int64_t n, float* y) { kAdd[isa](x, n, y); }

void axpy(Isa isa, float a, const float* x, int64_t n, float* y) { kAxpy[isa](a, x, n, y); }

void softmax(Isa isa, int64_t n, float* x) { kSoftmax[isa](n, x); }

}  // namespace witan
