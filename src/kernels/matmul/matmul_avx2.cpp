#include <immintrin.h>

#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul_variants.h"

namespace witan {
namespace {

// Int8 tiles are one panel (2 vectors) x 2 tokens: 4 sums, 4 dot products and what these need in the 16 registers.
struct Int8Tile {
  static constexpr int kDirectTokens = 2;
  static constexpr int kPanels = 1;
  static constexpr int kTokens = 2;
};

// Float tiles of one panel x 4 tokens: 8 sums.
struct FloatTile {
  static constexpr int kPanels = 1;
  static constexpr int kTokens = 4;
};

// In this order: each uses names of the ones before.
#include "kernels/matmul/vector_avx2.inl"
//
#include "kernels/matmul/dot_avx2.inl"
//
#include "kernels/matmul/dot_bf16_emulated.inl"
//
#include "kernels/matmul/driver.inl"
//
#include "kernels/matmul/q4_k.inl"
//
#include "kernels/matmul/q6_k.inl"
//
#include "kernels/matmul/q8_0.inl"
//
#include "kernels/matmul/bf16.inl"
//
#include "kernels/matmul/f8.inl"
//
#include "kernels/matmul/exact.inl"
//
#include "kernels/matmul/exact_decoders.inl"

}  // namespace

void matmul_f32_avx2(const MatmulArgs& args) { multiply_exact<F32Decoder>(args); }
void matmul_f16_avx2(const MatmulArgs& args) { multiply_exact<F16Decoder>(args); }
void matmul_bf16_exact_avx2(const MatmulArgs& args) { multiply_exact<Bf16Decoder>(args); }
void matmul_f8_e4m3_exact_avx2(const MatmulArgs& args) { multiply_exact<F8Decoder>(args); }
void matmul_q8_0_exact_avx2(const MatmulArgs& args) { multiply_exact<Q8Decoder>(args); }
void matmul_q4_k_exact_avx2(const MatmulArgs& args) { multiply_exact<Q4KDecoder>(args); }
void matmul_q6_k_exact_avx2(const MatmulArgs& args) { multiply_exact<Q6KDecoder>(args); }
void matmul_f8_e4m3_avx2(const MatmulArgs& args) { multiply_f8(args); }
void matmul_bf16_avx2(const MatmulArgs& args) { multiply_bf16(args); }
void matmul_q8_0_avx2(const MatmulArgs& args) { multiply_q8_0(args); }
void matmul_q4_k_avx2(const MatmulArgs& args) { multiply_q4_k(args); }
void matmul_q6_k_avx2(const MatmulArgs& args) { multiply_q6_k(args); }

}  // namespace witan
