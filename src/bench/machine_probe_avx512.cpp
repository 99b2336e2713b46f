#include "bench/machine_probe.h"
#include "kernels/matmul/avx512_intrinsics.h"

// The empty asm statements keep the compiler from merging the chains or dropping their results.
namespace witan::avx512 {

void int8_rounds(int64_t steps) {
  __m512i sums[12] = {};
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) asm volatile("" : "+v"(sums[j]));
  __m512i x = _mm512_set1_epi32(0x01020304);
  for (int64_t i = 0; i < steps; ++i) {
    asm volatile("" : "+v"(x));
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) sums[j] = _mm512_dpbusd_epi32(sums[j], x, x);
  }
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) asm volatile("" : : "v"(sums[j]));
}

void read_lines(const std::byte* from, int64_t num_lines) {
  __m512i sum = _mm512_setzero_si512();
  for (int64_t line = 0; line < num_lines; ++line) {
    asm volatile("prefetcht1 %0" : : "m"(from[64 * line + 8192]));
    sum = _mm512_xor_si512(sum, _mm512_loadu_si512(from + 64 * line));
  }
  asm volatile("" : : "v"(sum));
}

void bf16_rounds(int64_t steps) {
  __m512 sums[12] = {};
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) asm volatile("" : "+v"(sums[j]));
  __m512i x = _mm512_set1_epi32(0x3f803f80);
  for (int64_t i = 0; i < steps; ++i) {
    asm volatile("" : "+v"(x));
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) {
      sums[j] = _mm512_dpbf16_ps(sums[j], reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(x));
    }
  }
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) asm volatile("" : : "v"(sums[j]));
}

void f32_rounds(int64_t steps) {
  __m512 sums[12] = {};
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) asm volatile("" : "+v"(sums[j]));
  __m512 x = _mm512_set1_ps(0.5f);
  for (int64_t i = 0; i < steps; ++i) {
    asm volatile("" : "+v"(x));
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) sums[j] = _mm512_fmadd_ps(x, x, sums[j]);
  }
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) asm volatile("" : : "v"(sums[j]));
}

}  // namespace witan::avx512
