#include "nn/linear.h"

#include <algorithm>
#include <array>

#include "base/check.h"

namespace witan {
namespace {

constexpr int kNumFormats = 4;

// A run of panels of one of the products.
struct LinearItem {
  const LinearOutput* output;
  int64_t panel_begin;
  int64_t panel_end;
};

void add_bias(const LinearOutput& output, int64_t num_rows, int64_t panel_begin, int64_t panel_end) {
  const int64_t begin = panel_begin * kPanelRows;
  const int64_t end = std::min(panel_end * kPanelRows, output.matrix->rows);
  for (int64_t row = 0; row < num_rows; ++row) {
    float* y = output.y + row * output.stride;
    for (int64_t i = begin; i < end; ++i) y[i] += output.bias[i];
  }
}

}  // namespace

int64_t panels_per_item(int64_t num_panels, int64_t num_rows, int num_threads) {
  // About 8 items a thread balance cores of unequal speed; with many rows an item of 2 panels is work enough.
  const int64_t smallest = num_rows >= 16 ? 2 : 8;
  const int64_t even = num_panels / (8 * static_cast<int64_t>(num_threads)) / 2 * 2;
  return std::clamp<int64_t>(even, smallest, 64);
}

StoredRows store_rows(ComputeContext& ctx, ActivationFormat format, const float* x, int64_t num_rows, int64_t cols,
                      int64_t stride) {
  const int64_t bytes = activation_bytes(format, cols);
  auto* data = ctx.scratch.allocate<std::byte>(bytes * num_rows);
  auto** rows = ctx.scratch.allocate<const std::byte*>(num_rows);
  constexpr int64_t kRowsPerItem = 16;
  ctx.threads.parallel_for((num_rows + kRowsPerItem - 1) / kRowsPerItem, [&](int64_t item, int) {
    const int64_t end = std::min(num_rows, (item + 1) * kRowsPerItem);
    for (int64_t row = item * kRowsPerItem; row < end; ++row) {
      std::byte* out = data + row * bytes;
      store_activations(ctx.isa, format, x + row * stride, cols, out);
      rows[row] = out;
    }
  });
  return {.format = format, .rows = rows, .num_rows = num_rows};
}

void linear(ComputeContext& ctx, const float* x, int64_t num_rows, int64_t cols, int64_t stride,
            std::span<const LinearOutput> outputs) {
  if (num_rows == 0) return;
  const ScratchScope scope(ctx.scratch);
  std::array<StoredRows, kNumFormats> stored{};
  int64_t max_items = 0;
  for (const LinearOutput& output : outputs) {
    WITAN_CHECK(output.matrix->cols == cols, "matrix of {} columns, input of {}", output.matrix->cols, cols);
    const ActivationFormat format = activation_format(output.matrix->type, ctx.precision);
    StoredRows& rows = stored[static_cast<size_t>(format)];
    if (rows.rows == nullptr) rows = store_rows(ctx, format, x, num_rows, cols, stride);
    max_items += output.matrix->num_panels();
  }

  auto* items = ctx.scratch.allocate<LinearItem>(max_items);
  auto** out_rows = ctx.scratch.allocate<float*>(num_rows * std::ssize(outputs));
  int64_t num_items = 0;
  for (const LinearOutput& output : outputs) {
    float** rows = out_rows + (&output - outputs.data()) * num_rows;
    for (int64_t row = 0; row < num_rows; ++row) rows[row] = output.y + row * output.stride;
    const int64_t num_panels = output.matrix->num_panels();
    const int64_t step = panels_per_item(num_panels, num_rows, ctx.threads.num_threads());
    for (int64_t panel = 0; panel < num_panels; panel += step) {
      items[num_items++] = {.output = &output, .panel_begin = panel, .panel_end = std::min(num_panels, panel + step)};
    }
  }
  ctx.threads.parallel_for(num_items, [&](int64_t i, int) {
    const LinearItem& item = items[i];
    const StoredRows& rows = stored[static_cast<size_t>(activation_format(item.output->matrix->type, ctx.precision))];
    matmul(ctx.isa, *item.output->matrix, rows.format, rows.rows, num_rows, item.panel_begin, item.panel_end,
           out_rows + (item.output - outputs.data()) * num_rows);
    if (item.output->bias != nullptr) add_bias(*item.output, num_rows, item.panel_begin, item.panel_end);
  });
}

void linear(ComputeContext& ctx, const PackedMatrix& matrix, const float* x, int64_t num_rows, float* y,
            const float* bias) {
  const LinearOutput output{.matrix = &matrix, .y = y, .stride = matrix.rows, .bias = bias};
  linear(ctx, x, num_rows, matrix.cols, matrix.cols, std::span(&output, 1));
}

}  // namespace witan
