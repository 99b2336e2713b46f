#include "models/matrix_rows.h"

#include "base/check.h"
#include "tensor/huggingface_rows.h"

namespace witan {

const std::byte* MatrixRows::row(int64_t r, std::byte* buffer) const {
  const std::byte* from = data + r * stride_bytes;
  switch (form) {
    case RowForm::kWhole:
      return from;
    case RowForm::kF8Parts:
      make_f8_e4m3_row(from, scales + (num_rows_before + r) / kF8ScaleRows * scales_stride_bytes, cols, buffer);
      return buffer;
    case RowForm::kMxfp4Parts:
      make_mxfp4_row(from, scales + r * scales_stride_bytes, cols, buffer);
      return buffer;
  }
  return from;
}

MatrixRows MatrixRows::slice(int64_t first, int64_t count) const {
  WITAN_CHECK(first >= 0 && first + count <= num_rows, "rows {}+{} of {}", first, count, num_rows);
  MatrixRows rows = *this;
  rows.num_rows = count;
  rows.data += first * stride_bytes;
  if (form == RowForm::kF8Parts) {
    rows.scales += (num_rows_before + first) / kF8ScaleRows * scales_stride_bytes;
    rows.num_rows_before = (num_rows_before + first) % kF8ScaleRows;
  } else if (form == RowForm::kMxfp4Parts) {
    rows.scales += first * scales_stride_bytes;
  }
  return rows;
}

MatrixRows MatrixRows::every(int64_t step) const {
  WITAN_CHECK(form != RowForm::kF8Parts, "rows with common scales taken {} apart", step);
  MatrixRows rows = *this;
  rows.num_rows = (num_rows + step - 1) / step;
  rows.stride_bytes *= step;
  rows.scales_stride_bytes *= step;
  return rows;
}

MatrixRows whole_rows(DType type, int64_t num_rows, int64_t cols, const std::byte* data) {
  MatrixRows rows;
  rows.type = type;
  rows.num_rows = num_rows;
  rows.cols = cols;
  rows.data = data;
  rows.stride_bytes = rows.row_bytes();
  return rows;
}

}  // namespace witan
