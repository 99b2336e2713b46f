#include <algorithm>
#include <vector>

#include "base/check.h"
#include "kernels/matmul/block_formats.h"
#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul_variants.h"
#include "tensor/half.h"

namespace witan {
namespace {

// A panel read back element by element, exactly (in double), from its packed bytes.
class PackedPanel {
 public:
  PackedPanel(const MatmulArgs& args, int64_t panel)
      : type_(args.type),
        blocks_(args.blocks),
        cols_(args.cols),
        bytes_(args.panels + panel * args.panel_stride_bytes) {}

  double weight(int row, int64_t col) const {
    if (blocks_ != nullptr) return block_weight(*blocks_, cols_, bytes_, row, col);
    switch (type_) {
      case DType::kF32:
        return reinterpret_cast<const float*>(bytes_)[col * kPanelRows + row];
      case DType::kF16:
        return f16_to_f32(half(2 * (col * kPanelRows + row)));
      case DType::kBF16:
        return bf16_to_f32(half(col / 2 * kWordVectorBytes + 4 * row + 2 * (col % 2)));
      case DType::kF8_E4M3:
        return f8_e4m3(row, col);
      case DType::kQ8_0:
        return q8_0(row, col);
      case DType::kQ4_K:
        return q4_k(row, col);
      case DType::kQ6_K:
        return q6_k(row, col);
      default:
        WITAN_CHECK(false, "weight type {}", static_cast<int>(type_));
    }
  }

 private:
  uint16_t half(int64_t at) const { return *reinterpret_cast<const uint16_t*>(bytes_ + at); }

  double f8_e4m3(int row, int64_t col) const {
    const auto* scales = reinterpret_cast<const float*>(bytes_);
    const int64_t num_blocks = (cols_ + kF8ScaleColumns - 1) / kF8ScaleColumns;
    const int code = bytes_[num_blocks * kPanelRows * static_cast<int64_t>(sizeof(float)) + col * kPanelRows + row];
    // As a half the same bits are 2^8 times smaller.
    const float value = f16_to_f32(static_cast<uint16_t>((code & 0x80) << 8 | (code & 0x7f) << 7)) * 256;
    return static_cast<double>(value) * scales[col / kF8ScaleColumns * kPanelRows + row];
  }

  double q8_0(int row, int64_t col) const {
    const int64_t num_blocks = cols_ / kQ8BlockColumns;
    const int64_t block = col / kQ8BlockColumns;
    const int64_t first = block / kQ8GroupBlocks * kQ8GroupBlocks;
    const int64_t scales_bytes = (std::min(kQ8GroupBlocks, num_blocks - first) * 32 + 63) / 64 * 64;
    const int64_t group = first / kQ8GroupBlocks * kQ8GroupBytes;
    const int64_t word = col % kQ8BlockColumns / 4;
    const int q =
        bytes_[group + scales_bytes + (block - first) * kQ8BlockBytes + word * kWordVectorBytes + 4 * row + col % 4];
    return static_cast<double>(f16_to_f32(half(group + (block - first) * 32 + 2 * row))) * (q - 128);
  }

  double q4_k(int row, int64_t col) const {
    const Q4KCell& cell = reinterpret_cast<const Q4KCell*>(bytes_)[col / kKQuantColumns];
    const int64_t j = col % kKQuantColumns / 32;
    const uint8_t quants = cell.quants[j / 2][col % 32 / 4][4 * row + col % 4];
    const int q = j % 2 == 0 ? quants & 15 : quants >> 4;
    constexpr int64_t kMinPlace[] = {0, 2, 1, 3};  // see Q4KCell::six_bit
    const int scale = six_bit(cell, j / 4, 4 * row + j % 4);
    const int min = six_bit(cell, 2 + j / 4, 4 * row + kMinPlace[j % 4]);
    return static_cast<double>(f16_to_f32(cell.d[row])) * scale * q -
           static_cast<double>(f16_to_f32(cell.dmin[row])) * min;
  }

  static int six_bit(const Q4KCell& cell, int64_t vector, int64_t at) {
    if (vector < 3) return cell.six_bit[vector][at] & 63;
    return (cell.six_bit[0][at] >> 6) | (cell.six_bit[1][at] >> 6 << 2) | (cell.six_bit[2][at] >> 6 << 4);
  }

  double q6_k(int row, int64_t col) const {
    const int64_t num_cells = cols_ / kKQuantColumns;
    const int64_t c = col / kKQuantColumns;
    const Q6KCell& cell = reinterpret_cast<const Q6KCell*>(bytes_ + (num_cells * 32 + 63) / 64 * 64)[c];
    const Q6KCell::Half& part = cell.halves[col % 256 / 128];
    const int64_t n = col % 128 / 32;
    const int64_t word = col % 32 / 4;
    const int64_t at = 4 * row + col % 4;
    const int low = n < 2 ? part.low[n % 2][word][at] & 15 : part.low[n % 2][word][at] >> 4;
    const int high = part.high[word][at] >> (2 * n) & 3;
    const int64_t sub_block = col % 256 / 16;
    const int scale = cell.scales[sub_block / 4][4 * row + sub_block % 4];
    return static_cast<double>(f16_to_f32(half(32 * c + 2 * row))) * scale * ((low | high << 4) - 32);
  }

  DType type_;
  const BlockFormat* blocks_;
  int64_t cols_;
  const uint8_t* bytes_;
};

double activation(ActivationFormat format, const std::byte* row, int64_t col) {
  switch (format) {
    case ActivationFormat::kF32:
      return reinterpret_cast<const float*>(row)[col];
    case ActivationFormat::kBF16:
      return bf16_to_f32(reinterpret_cast<const uint16_t*>(row)[col]);
    case ActivationFormat::kInt8Per32: {
      const Int8Per32Group& group = reinterpret_cast<const Int8Per32Group*>(row)[col / 256];
      return static_cast<double>(group.scale[col % 256 / 32]) * group.q[col % 256];
    }
    case ActivationFormat::kInt8Per256: {
      const Int8Per256Block& block = reinterpret_cast<const Int8Per256Block*>(row)[col / 256];
      return static_cast<double>(block.scale) * block.q[col % 256];
    }
  }
  WITAN_CHECK(false, "activation format {}", static_cast<int>(format));
}

}  // namespace

void unpack_panel(const PackedMatrix& matrix, int64_t panel, float* out) {
  WITAN_CHECK(0 <= panel && panel < matrix.num_panels(), "panel {} of {}", panel, matrix.num_panels());
  const PackedPanel packed({.panels = reinterpret_cast<const uint8_t*>(matrix.data),
                            .panel_stride_bytes = matrix.panel_stride_bytes,
                            .type = matrix.type,
                            .cols = matrix.cols,
                            .blocks = find_block_format(matrix.type)},
                           panel);
  for (int64_t col = 0; col < matrix.cols; ++col) {
    for (int row = 0; row < kPanelRows; ++row) *out++ = static_cast<float>(packed.weight(row, col));
  }
}

void matmul_reference(const MatmulArgs& args) {
  const auto cols = static_cast<size_t>(args.cols);
  std::vector<double> weights(cols);
  std::vector<double> activations(cols * static_cast<size_t>(args.num_rows));
  for (int64_t i = 0; i < args.num_rows; ++i) {
    for (int64_t k = 0; k < args.cols; ++k) {
      activations[i * cols + k] = activation(args.format, args.activations[i], k);
    }
  }
  const int64_t end = std::min(args.rows, args.panel_end * kPanelRows);
  for (int64_t row = args.panel_begin * kPanelRows; row < end; ++row) {
    const PackedPanel panel(args, row / kPanelRows);
    for (int64_t k = 0; k < args.cols; ++k) {
      const double weight = panel.weight(static_cast<int>(row % kPanelRows), k);
      // With float activations the weights are the floats that the file's bits stand for.
      weights[k] = args.format == ActivationFormat::kF32 ? static_cast<float>(weight) : weight;
    }
    for (int64_t i = 0; i < args.num_rows; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < args.cols; ++k) sum += weights[k] * activations[i * cols + k];
      args.out[i][row] = static_cast<float>(sum);
    }
  }
}

}  // namespace witan
