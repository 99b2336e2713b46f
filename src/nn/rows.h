#pragma once

#include <cstdint>

#include "nn/compute_context.h"

namespace witan {

// Steps that treat every row of a batch [num_rows, n] f32 alike, rows split over the threads.

// out = rms_norm(x) * weight, row by row. out may be x.
void rms_norm_rows(ComputeContext& ctx, const float* x, const float* weight, float epsilon, int64_t num_rows, int64_t n,
                   float* out);

// y += x
void add_rows(ComputeContext& ctx, const float* x, int64_t num_rows, int64_t n, float* y);

// Calls body(row) for every row, a few rows per work item.
void for_rows(ComputeContext& ctx, int64_t num_rows, FunctionRef<void(int64_t row)> body);

}  // namespace witan
