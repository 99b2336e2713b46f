#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "kernels/matmul/matmul.h"

namespace witan::test {

// A random matrix, plain and packed.
struct RandomMatrix {
  std::vector<float> values;  // [rows, cols], as the packed bytes stand for them
  std::vector<std::byte> storage;
  PackedMatrix packed;

  RandomMatrix(DType type, int64_t rows, int64_t cols, uint32_t seed) : values(rows * cols) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal(0.0f, 0.3f);
    const QuantType& quant = quant_type(type);
    const int64_t row_bytes = quant.row_bytes(cols);
    std::vector<std::byte> file(row_bytes * rows);
    for (int64_t row = 0; row < rows; ++row) {
      float* row_values = values.data() + row * cols;
      for (int64_t i = 0; i < cols; ++i) row_values[i] = normal(rng);
      quant.encode(row_values, file.data() + row * row_bytes, cols);
      quant.decode(file.data() + row * row_bytes, row_values, cols);
    }
    packed = {.type = type, .rows = rows, .cols = cols, .data = nullptr, .panel_stride_bytes = panel_bytes(type, cols)};
    storage.resize(static_cast<size_t>(packed.panel_stride_bytes * packed.num_panels() + 64));
    void* start = storage.data();
    size_t space = storage.size();
    std::align(64, storage.size() - 64, start, space);
    packed.data = static_cast<std::byte*>(start);
    for (int64_t panel = 0; panel < packed.num_panels(); ++panel) {
      const std::byte* panel_rows[kPanelRows];
      const int count = static_cast<int>(std::min<int64_t>(kPanelRows, rows - panel * kPanelRows));
      for (int i = 0; i < count; ++i) panel_rows[i] = file.data() + (panel * kPanelRows + i) * row_bytes;
      pack_panel(type, cols, panel_rows, count, static_cast<std::byte*>(start) + panel * packed.panel_stride_bytes);
    }
  }
  RandomMatrix(RandomMatrix&&) = default;

  // The product with one row x [cols], in double.
  std::vector<double> times(const float* x) const {
    std::vector<double> y(packed.rows);
    for (int64_t row = 0; row < packed.rows; ++row) {
      for (int64_t i = 0; i < packed.cols; ++i) {
        y[row] += static_cast<double>(values[row * packed.cols + i]) * static_cast<double>(x[i]);
      }
    }
    return y;
  }
};

inline std::vector<float> random_floats(int64_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(rng);
  return values;
}

}  // namespace witan::test
