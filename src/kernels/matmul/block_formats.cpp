#include "kernels/matmul/block_formats.h"

#include <algorithm>
#include <array>

#include "base/check.h"
#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul.h"
#include "tensor/half.h"
#include "tensor/types/codebooks.h"

namespace witan {
namespace {

// clang-format off
constexpr std::array kFormats = {
    //           type             bits columns mins   scales                    blocks bytes bias codebook
    BlockFormat{DType::kQ4_0,     4,   32,     false, ScaleForm::kHalf,          1,    32,   -8,  nullptr},
    BlockFormat{DType::kQ4_1,     4,   32,     true,  ScaleForm::kHalfAndMin,    1,    64,   0,   nullptr},
    BlockFormat{DType::kQ5_0,     5,   32,     false, ScaleForm::kHalf,          1,    32,   -16, nullptr},
    BlockFormat{DType::kQ5_1,     5,   32,     true,  ScaleForm::kHalfAndMin,    1,    64,   0,   nullptr},
    BlockFormat{DType::kQ2_K,     2,   16,     true,  ScaleForm::kNibbles,       8,    320,  0,   nullptr},
    BlockFormat{DType::kQ3_K,     3,   16,     false, ScaleForm::kSixBit,        8,    224,  -4,  nullptr},
    BlockFormat{DType::kQ5_K,     5,   32,     true,  ScaleForm::kLines,         8,    256,  0,   nullptr},
    BlockFormat{DType::kIQ4_NL,   4,   32,     false, ScaleForm::kHalf,          1,    32,   0,   kIq4Codebook.data()},
    BlockFormat{DType::kIQ4_XS,   4,   32,     false, ScaleForm::kHalfTimesInt8, 8,    160,  0,   kIq4Codebook.data()},
    BlockFormat{DType::kMXFP4,    4,   32,     false, ScaleForm::kE8M0,          1,    16,   0,   kMxfp4Codebook.data()},
};
// clang-format on

uint16_t half_at(const uint8_t* bytes, int64_t index) {
  return static_cast<uint16_t>(bytes[2 * index] | bytes[2 * index + 1] << 8);
}
double half_value(const uint8_t* bytes, int64_t index) { return f16_to_f32(half_at(bytes, index)); }

int code_at(int bits, const uint8_t* block, int word, int byte) {
  const auto vector = [&](int i) -> int { return block[i * kWordVectorBytes + byte]; };
  const int low_bits = bits >= 4 ? 4 : 2;
  const int per_vector = 8 / low_bits;
  const int vectors = 8 / per_vector;
  int code = 0;
  if (low_bits == 4) {
    code = vector(word % vectors) >> (word / vectors * 4) & 15;
  } else {
    code = vector(word / per_vector) >> (word % per_vector * 2) & 3;
  }
  if (bits > low_bits) code |= (vector(vectors) >> word & 1) << low_bits;
  return code;
}

// Value `vector` (0..3), byte `at` of 6-bit values in three vectors; see Q4KCell.
int six_bit_at(const uint8_t* vectors, int64_t vector, int64_t at) {
  if (vector < 3) return vectors[vector * kWordVectorBytes + at] & 63;
  const auto top = [&](int64_t i) { return vectors[i * kWordVectorBytes + at] >> 6; };
  return top(0) | top(1) << 2 | top(2) << 4;
}

struct ScaleAndMin {
  double scale;
  double min;
};

// Sub-block j of the 8 blocks that `from` describes, or of the one.
ScaleAndMin scale_at(ScaleForm form, const uint8_t* from, int64_t j, int row) {
  constexpr int64_t kMinPlace[] = {0, 2, 1, 3};  // see Q4KCell::six_bit
  const int64_t at = 4 * row + j % 4;
  switch (form) {
    case ScaleForm::kHalf:
      return {half_value(from, row), 0};
    case ScaleForm::kHalfAndMin:
      return {half_value(from, row), half_value(from, kPanelRows + row)};
    case ScaleForm::kE8M0:
      return {half_of_e8m0(from[row]), 0};
    case ScaleForm::kHalfTimesInt8:
      return {half_value(from, row) * static_cast<int8_t>(from[2 * kPanelRows + j * kPanelRows + row]), 0};
    case ScaleForm::kLines: {
      const uint8_t* six_bit = from + 4 * kPanelRows;
      return {half_value(from, row) * six_bit_at(six_bit, j / 4, at),
              -half_value(from, kPanelRows + row) * six_bit_at(six_bit, 2 + j / 4, 4 * row + kMinPlace[j % 4])};
    }
    case ScaleForm::kSixBit:
      return {half_value(from, row) * (six_bit_at(from + 2 * kPanelRows, j / 4, at) - 32), 0};
    case ScaleForm::kNibbles: {
      const int both = from[4 * kPanelRows + j / 4 * kWordVectorBytes + at];
      return {half_value(from, row) * (both & 15), -half_value(from, kPanelRows + row) * (both >> 4)};
    }
  }
  WITAN_CHECK(false, "scale form {}", static_cast<int>(form));
}

}  // namespace

const BlockFormat* find_block_format(DType type) {
  const auto* found = std::find_if(kFormats.begin(), kFormats.end(), [type](const auto& f) { return f.type == type; });
  return found == kFormats.end() ? nullptr : found;
}

int64_t block_scales_bytes(const BlockFormat& format, int64_t cols) {
  return (cols / kBlockColumns / format.scale_blocks * format.scale_bytes + 63) / 64 * 64;
}

int64_t block_panel_bytes(const BlockFormat& format, int64_t cols) {
  return block_scales_bytes(format, cols) + cols / kBlockColumns * format.bits * kWordVectorBytes;
}

double block_weight(const BlockFormat& format, int64_t cols, const uint8_t* panel, int row, int64_t col) {
  const int64_t block = col / kBlockColumns;
  const uint8_t* codes = panel + block_scales_bytes(format, cols) + block * format.bits * kWordVectorBytes;
  const int code =
      code_at(format.bits, codes, static_cast<int>(col % kBlockColumns / 4), static_cast<int>(4 * row + col % 4));
  const int value = format.codebook != nullptr ? format.codebook[code] : code + format.bias;
  const int64_t group = block / format.scale_blocks;
  const int64_t j = col % (format.scale_blocks * kBlockColumns) / format.scale_columns;
  const ScaleAndMin s = scale_at(format.scales, panel + group * format.scale_bytes, j, row);
  return s.scale * value + s.min;
}

}  // namespace witan
