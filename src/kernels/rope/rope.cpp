#include "kernels/rope/rope.h"

#include "base/check.h"
#include "kernels/isa_table.h"
#include "kernels/rope/rope_variants.h"

namespace witan {
namespace {

constexpr IsaTable<RopeFunction> kRopeHalves{{rope_halves_reference, rope_halves_avx2, rope_halves_avx512}};
constexpr IsaTable<RopeFunction> kRopePairs{{rope_pairs_reference, rope_pairs_avx2, rope_pairs_avx512}};

}  // namespace

void rope(Isa isa, RopeLayout layout, const float* cos, const float* sin, int64_t dim, float* x) {
  WITAN_CHECK(dim >= 0 && dim % 2 == 0, "RoPE over {} components", dim);
  const IsaTable<RopeFunction>& table = layout == RopeLayout::kHalves ? kRopeHalves : kRopePairs;
  table[isa](cos, sin, dim, x);
}

}  // namespace witan
