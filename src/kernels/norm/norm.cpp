#include "kernels/norm/norm.h"

#include "base/check.h"
#include "kernels/isa_table.h"
#include "kernels/norm/norm_variants.h"

namespace witan {
namespace {

constexpr IsaTable<RmsNormFunction> kRmsNorm{{rms_norm_reference, rms_norm_avx2, rms_norm_avx512}};

}  // namespace

void rms_norm(Isa isa, const float* x, const float* weight, float epsilon, int64_t n, float* out) {
  WITAN_CHECK(n > 0, "RMS norm of {} values", n);
  kRmsNorm[isa](x, weight, epsilon, n, out);
}

}  // namespace witan
