#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>

#include "kernels/matmul/matmul.h"
#include "nn/compute_context.h"

namespace witan {

// Activation rows stored for products with packed weights: rows[i] is row i in `format`.
struct StoredRows {
  ActivationFormat format = ActivationFormat::kF32;
  const std::byte* const* rows = nullptr;  // [num_rows]
  int64_t num_rows = 0;
};

// Stores x [num_rows, cols] f32 (row i at x + i * stride) in scratch memory, rows split over the threads.
StoredRows store_rows(ComputeContext& ctx, ActivationFormat format, const float* x, int64_t num_rows, int64_t cols,
                      int64_t stride);

// One product: y = x W^T (+ bias). Row i of y is at y + i * stride.
struct LinearOutput {
  const PackedMatrix* matrix = nullptr;
  float* y = nullptr;
  int64_t stride = 0;
  const float* bias = nullptr;  // [matrix.rows] f32, or nullptr
};

// Several products with the same input x [num_rows, cols] f32 (row i at x + i * stride), in one loop over the threads.
void linear(ComputeContext& ctx, const float* x, int64_t num_rows, int64_t cols, int64_t stride,
            std::span<const LinearOutput> outputs);

// y [num_rows, matrix.rows] = x [num_rows, matrix.cols] W^T (+ bias), both contiguous.
void linear(ComputeContext& ctx, const PackedMatrix& matrix, const float* x, int64_t num_rows, float* y,
            const float* bias = nullptr);

// Panels per work item, so that the items of `num_panels` keep all threads busy to the end and are worth a hand-out.
int64_t panels_per_item(int64_t num_panels, int64_t num_rows, int num_threads);

}  // namespace witan
