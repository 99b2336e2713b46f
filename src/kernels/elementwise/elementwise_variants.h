#pragma once

#include <cstdint>

namespace witan {

using SwigluFunction = void (*)(const float* gate, const float* up, int64_t n, float* out);
using ClampedSwigluFunction = void (*)(const float* gate, const float* up, int64_t n, float limit, float* out);
using ReluFunction = void (*)(int64_t n, float* x);
using ClampFunction = void (*)(float limit, int64_t n, float* x);
using AddFunction = void (*)(const float* x, int64_t n, float* y);
using AxpyFunction = void (*)(float a, const float* x, int64_t n, float* y);
using SoftmaxFunction = void (*)(int64_t n, float* x);

void swiglu_reference(const float* gate, const float* up, int64_t n, float* out);
void swiglu_avx2(const float* gate, const float* up, int64_t n, float* out);
void swiglu_avx512(const float* gate, const float* up, int64_t n, float* out);

void clamped_swiglu_reference(const float* gate, const float* up, int64_t n, float limit, float* out);
void clamped_swiglu_avx2(const float* gate, const float* up, int64_t n, float limit, float* out);
void clamped_swiglu_avx512(const float* gate, const float* up, int64_t n, float limit, float* out);

void relu_reference(int64_t n, float* x);
void relu_avx2(int64_t n, float* x);
void relu_avx512(int64_t n, float* x);

void clamp_reference(float limit, int64_t n, float* x);
void clamp_avx2(float limit, int64_t n, float* x);
void clamp_avx512(float limit, int64_t n, float* x);

void add_reference(const float* x, int64_t n, float* y);
void add_avx2(const float* x, int64_t n, float* y);
void add_avx512(const float* x, int64_t n, float* y);

void axpy_reference(float a, const float* x, int64_t n, float* y);
void axpy_avx2(float a, const float* x, int64_t n, float* y);
void axpy_avx512(float a, const float* x, int64_t n, float* y);

void softmax_reference(int64_t n, float* x);
void softmax_avx2(int64_t n, float* x);
void softmax_avx512(int64_t n, float* x);

}  // namespace witan
