#include "kernels/matmul/avx512_intrinsics.h"

#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul_variants.h"

namespace witan {
namespace {

// Int8 tiles. Up to 12 rows are one tile of a single panel: it streams the weights best. More rows make tiles of
// 2 panels x 6 tokens over unpacked weights. Both have 24 sums and dot products in the 32 registers.
struct Int8Tile {
  static constexpr int kDirectTokens = 12;
  static constexpr int kPanels = 2;
  static constexpr int kTokens = 6;
};

// Float tiles of 4 panels x 6 tokens: 24 sums of the 32 registers.
struct FloatTile {
  static constexpr int kPanels = 4;
  static constexpr int kTokens = 6;
};

// In this order: each uses names of the ones before.
#include "kernels/matmul/vector_avx512.inl"
//
#include "kernels/matmul/dot_avx512.inl"
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

void matmul_f32_avx512(const MatmulArgs& args) { multiply_exact<F32Decoder>(args); }
void matmul_f16_avx512(const MatmulArgs& args) { multiply_exact<F16Decoder>(args); }
void matmul_bf16_exact_avx512(const MatmulArgs& args) { multiply_exact<Bf16Decoder>(args); }
void matmul_f8_e4m3_exact_avx512(const MatmulArgs& args) { multiply_exact<F8Decoder>(args); }
void matmul_q8_0_exact_avx512(const MatmulArgs& args) { multiply_exact<Q8Decoder>(args); }
void matmul_q4_k_exact_avx512(const MatmulArgs& args) { multiply_exact<Q4KDecoder>(args); }
void matmul_q6_k_exact_avx512(const MatmulArgs& args) { multiply_exact<Q6KDecoder>(args); }
void matmul_f8_e4m3_avx512(const MatmulArgs& args) { multiply_f8(args); }
void matmul_bf16_avx512(const MatmulArgs& args) { multiply_bf16(args); }
void matmul_q8_0_avx512(const MatmulArgs& args) { multiply_q8_0(args); }
void matmul_q4_k_avx512(const MatmulArgs& args) { multiply_q4_k(args); }
void matmul_q6_k_avx512(const MatmulArgs& args) { multiply_q6_k(args); }

}  // namespace witan
