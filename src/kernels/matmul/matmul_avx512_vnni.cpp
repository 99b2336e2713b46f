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

// In this order: each uses names of the ones before.
#include "kernels/matmul/vector_avx512.inl"
//
#include "kernels/matmul/dot_vnni.inl"
//
#include "kernels/matmul/driver.inl"
//
#include "kernels/matmul/q4_k.inl"
//
#include "kernels/matmul/q6_k.inl"
//
#include "kernels/matmul/q8_0.inl"

}  // namespace

void matmul_q8_0_avx512_vnni(const MatmulArgs& args) { multiply_q8_0(args); }
void matmul_q4_k_avx512_vnni(const MatmulArgs& args) { multiply_q4_k(args); }
void matmul_q6_k_avx512_vnni(const MatmulArgs& args) { multiply_q6_k(args); }

}  // namespace witan
