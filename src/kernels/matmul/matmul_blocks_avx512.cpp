#include "kernels/matmul/avx512_intrinsics.h"

#include "kernels/matmul/block_formats.h"
#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul_variants.h"

namespace witan {
namespace {

// Tiles of 2 panels x 6 tokens, as in matmul_avx512.cpp. Fewer rows than there go without unpacking, because each width
// of codes has its own tiles for those and GCC takes long over them.
struct Int8Tile {
  static constexpr int kDirectTokens = 4;
  static constexpr int kPanels = 2;
  static constexpr int kTokens = 6;
};

struct FloatTile {
  static constexpr int kPanels = 4;
  static constexpr int kTokens = 6;
};

// In this order: each uses names of the ones before.
#include "kernels/matmul/vector_avx512.inl"
//
#include "kernels/matmul/dot_avx512.inl"
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

void matmul_blocks_avx512(const MatmulArgs& args) { multiply_blocks(args); }
void matmul_blocks_exact_avx512(const MatmulArgs& args) { multiply_exact<BlockDecoder>(args); }

}  // namespace witan
