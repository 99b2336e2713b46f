#include <immintrin.h>

#include "kernels/matmul/block_formats.h"
#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul_variants.h"

namespace witan {
namespace {

// One panel (2 vectors) x 2 tokens, as in matmul_avx2.cpp.
struct Int8Tile {
  static constexpr int kDirectTokens = 2;
  static constexpr int kPanels = 1;
  static constexpr int kTokens = 2;
};

struct FloatTile {
  static constexpr int kPanels = 1;
  static constexpr int kTokens = 4;
};

// In this order: each uses names of the ones before.
#include "kernels/matmul/vector_avx2.inl"
//
#include "kernels/matmul/dot_avx2.inl"
//
#include "kernels/matmul/driver.inl"
//
#include "kernels/matmul/block_scales.inl"
//
#include "kernels/matmul/block_codes.inl"
//
#include "kernels/matmul/blocks.inl"
//
#include "kernels/matmul/exact.inl"
//
#include "kernels/matmul/exact_blocks.inl"

}  // namespace

void matmul_blocks_avx2(const MatmulArgs& args) { multiply_blocks(args); }
void matmul_blocks_exact_avx2(const MatmulArgs& args) { multiply_exact<BlockDecoder>(args); }

}  // namespace witan
