#include "nn/rows.h"

#include <algorithm>

#include "kernels/elementwise/elementwise.h"
#include "kernels/norm/norm.h"

namespace witan {

void for_rows(ComputeContext& ctx, int64_t num_rows, FunctionRef<void(int64_t row)> body) {
  constexpr int64_t kRowsPerItem = 8;
  ctx.threads.parallel_for((num_rows + kRowsPerItem - 1) / kRowsPerItem, [&](int64_t item, int) {
    const int64_t end = std::min(num_rows, (item + 1) * kRowsPerItem);
    for (int64_t row = item * kRowsPerItem; row < end; ++row) body(row);
  });
}

void rms_norm_rows(ComputeContext& ctx, const float* x, const float* weight, float epsilon, int64_t num_rows, int64_t n,
                   float* out) {
  for_rows(ctx, num_rows, [&](int64_t row) { rms_norm(ctx.isa, x + row * n, weight, epsilon, n, out + row * n); });
}

void add_rows(ComputeContext& ctx, const float* x, int64_t num_rows, int64_t n, float* y) {
  for_rows(ctx, num_rows, [&](int64_t row) { add(ctx.isa, x + row * n, n, y + row * n); });
}

}  // namespace witan
