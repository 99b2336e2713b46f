#include "kernels/matmul/avx512_intrinsics.h"

#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul_variants.h"

namespace witan {
namespace {

// Int8 tiles of 2 panels x 6 tokens: 24 sums and dot products of the 32 registers. Up to 3 rows, one panel at a time
// streams best from memory; unpacking to a buffer pays from 18 rows on.
struct Int8Tile {
  static constexpr int kPanels = 2;
  static constexpr int kTokens = 6;
  static constexpr int64_t kOnePanelTokens = 3;
  static constexpr int64_t kUnpackTokens = 18;
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
