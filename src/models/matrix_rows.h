#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/quant_type.h"

namespace witan {

// How a file keeps the rows of a matrix: whole, or in the parts that tensor/huggingface_rows.h puts together.
enum class RowForm : uint8_t { kWhole, kF8Parts, kMxfp4Parts };

// The rows of a matrix of a checkpoint, wherever they are. Borrows the file's memory.
struct MatrixRows {
  DType type = DType::kF32;
  int64_t num_rows = 0;
  int64_t cols = 0;
  RowForm form = RowForm::kWhole;
  const std::byte* data = nullptr;  // of row 0: the row, or its codes
  int64_t stride_bytes = 0;         // from one row to the next
  const std::byte* scales = nullptr;
  int64_t scales_stride_bytes = 0;  // per row, for kF8Parts per kF8ScaleRows rows
  int64_t num_rows_before = 0;      // rows of the same scales before row 0, less than kF8ScaleRows

  static constexpr int64_t kF8ScaleRows = 128;

  int64_t row_bytes() const { return quant_type(type).row_bytes(cols); }
  // Row r as a row of `type`: in the file, or put together in `buffer` [row_bytes()].
  const std::byte* row(int64_t r, std::byte* buffer) const;
  // Rows [first, first + count), or every step-th of them.
  MatrixRows slice(int64_t first, int64_t count) const;
  MatrixRows every(int64_t step) const;  // not of kF8Parts
};

// Row-major rows of a type at `data`.
MatrixRows whole_rows(DType type, int64_t num_rows, int64_t cols, const std::byte* data);

}  // namespace witan
