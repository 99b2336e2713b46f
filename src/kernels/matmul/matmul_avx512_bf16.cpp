#include "kernels/matmul/avx512_intrinsics.h"

#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul_variants.h"

namespace witan {
namespace {

// Float tiles of 4 panels x 6 tokens: 24 sums of the 32 registers.
struct FloatTile {
  static constexpr int kPanels = 4;
  static constexpr int kTokens = 6;
};

// In this order: each uses names of the ones before.
#include "kernels/matmul/vector_avx512.inl"
//
#include "kernels/matmul/dot_bf16.inl"
//
#include "kernels/matmul/driver.inl"
//
#include "kernels/matmul/bf16.inl"
//
#include "kernels/matmul/f8.inl"

}  // namespace

void matmul_bf16_avx512_bf16(const MatmulArgs& args) { multiply_bf16(args); }
void matmul_f8_e4m3_avx512_bf16(const MatmulArgs& args) { multiply_f8(args); }

}  // namespace witan
