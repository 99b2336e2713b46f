#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "kernels/matmul/matmul.h"
#include "tensor/quant_type.h"

namespace witan {

inline std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (Isa isa : kAllIsas) {
    if (cpu_supports(isa)) isas.push_back(isa);
  }
  return isas;
}

// Zeroed bytes on a cache line boundary.
class AlignedBytes {
 public:
  explicit AlignedBytes(int64_t size)
      : data_(static_cast<std::byte*>(std::aligned_alloc(64, static_cast<size_t>((size + 63) / 64 * 64)))) {
    std::fill(data_.get(), data_.get() + size, std::byte{0});
  }
  std::byte* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
};

// A weight matrix as in a file, [rows, cols], and packed. `gap_panels`: panels of room left after each packed one.
class TestMatrix {
 public:
  TestMatrix(DType type, int64_t rows, int64_t cols, std::vector<std::byte> file, int gap_panels = 0)
      : file_(std::move(file)), packed_((rows + 15) / 16 * panel_bytes(type, cols) * (1 + gap_panels)) {
    const int64_t stride = panel_bytes(type, cols) * (1 + gap_panels);
    matrix_ = {.type = type, .rows = rows, .cols = cols, .data = packed_.data(), .panel_stride_bytes = stride};
    for (int64_t panel = 0; panel < matrix_.num_panels(); ++panel) {
      std::vector<const std::byte*> pointers;
      for (int64_t row = panel * 16; row < std::min(rows, panel * 16 + 16); ++row) pointers.push_back(file_row(row));
      pack_panel(type, cols, pointers.data(), static_cast<int>(pointers.size()), packed_.data() + panel * stride);
    }
  }

  static TestMatrix random(DType type, int64_t rows, int64_t cols, uint64_t seed, int gap_panels = 0) {
    const QuantType& quant = quant_type(type);
    std::vector<std::byte> file(static_cast<size_t>(rows * quant.row_bytes(cols)));
    for (int64_t row = 0; row < rows; ++row) {
      quant.random(seed * 1000 + static_cast<uint64_t>(row), 0.05f, file.data() + row * quant.row_bytes(cols), cols);
    }
    return TestMatrix(type, rows, cols, std::move(file), gap_panels);
  }

  const PackedMatrix& packed() const { return matrix_; }
  const std::byte* file_row(int64_t row) const {
    return file_.data() + row * quant_type(matrix_.type).row_bytes(matrix_.cols);
  }

 private:
  std::vector<std::byte> file_;
  AlignedBytes packed_;
  PackedMatrix matrix_;
};

// Rows of activations, stored in a format.
class TestActivations {
 public:
  TestActivations(Isa isa, ActivationFormat format, const std::vector<std::vector<float>>& x)
      : bytes_(activation_bytes(format, std::ssize(x[0]))), data_(bytes_ * std::ssize(x)) {
    for (size_t i = 0; i < x.size(); ++i) {
      std::byte* row = data_.data() + static_cast<int64_t>(i) * bytes_;
      store_activations(isa, format, x[i].data(), std::ssize(x[i]), row);
      rows_.push_back(row);
    }
  }
  const std::vector<const std::byte*>& rows() const { return rows_; }

 private:
  int64_t bytes_;
  AlignedBytes data_;
  std::vector<const std::byte*> rows_;
};

inline std::vector<std::vector<float>> random_rows(int64_t num_rows, int64_t cols, uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> x(static_cast<size_t>(num_rows), std::vector<float>(static_cast<size_t>(cols)));
  for (auto& row : x) {
    for (float& value : row) value = normal(engine);
  }
  return x;
}

// Column counts that end in tails: of K steps, of groups and of whole vectors.
inline std::vector<int64_t> test_cols(DType type) {
  switch (quant_type(type).block_size) {
    case 1:
      return {1, 2, 3, 63, 64, 65, 130, 331};
    case 128:  // F8_E4M3, whose last block may be cut short
      return {1, 24, 64, 128, 160, 331, 512};
    case 32:
      return {32, 64, 96, 256, 288, 448, 1408};
    default:
      return {256, 512, 1024, 1792};
  }
}

// [num_rows][matrix.rows], every element first set to `fill`.
inline std::vector<std::vector<float>> multiply(Isa isa, const PackedMatrix& matrix, ActivationFormat format,
                                                const std::vector<const std::byte*>& rows, float fill = NAN) {
  std::vector<std::vector<float>> out(rows.size(), std::vector<float>(static_cast<size_t>(matrix.rows), fill));
  std::vector<float*> pointers;
  for (auto& row : out) pointers.push_back(row.data());
  matmul(isa, matrix, format, rows.data(), std::ssize(rows), 0, matrix.num_panels(), pointers.data());
  return out;
}

inline std::string label(Isa isa, DType type, Precision precision, int64_t rows, int64_t cols, int64_t num_rows) {
  return fmt::format("{} {} {} [{}, {}] x {} rows", isa_name(isa), quant_type(type).name,
                     precision == Precision::kExact ? "exact" : "fast", rows, cols, num_rows);
}

}  // namespace witan
