#include "kernels/matmul/matmul.h"

#include <algorithm>
#include <array>
#include <span>

#include "base/check.h"
#include "kernels/matmul/block_formats.h"
#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul_variants.h"

namespace witan {
namespace {

struct MatmulRow {
  DType type;
  ActivationFormat format;
  // By Isa; an instruction set without its own function uses the next weaker one's.
  std::array<MatmulFunction, kAllIsas.size()> functions;
};

// clang-format off
constexpr MatmulRow kMatmuls[] = {
    //                                        reference         avx2                    avx512                    avx512_vnni              avx512_bf16
    {DType::kF32, ActivationFormat::kF32, {matmul_reference, matmul_f32_avx2, matmul_f32_avx512, nullptr, nullptr}},
    {DType::kF16, ActivationFormat::kF32, {matmul_reference, matmul_f16_avx2, matmul_f16_avx512, nullptr, nullptr}},
    {DType::kBF16, ActivationFormat::kF32, {matmul_reference, matmul_bf16_exact_avx2, matmul_bf16_exact_avx512, nullptr, nullptr}},
    {DType::kF8_E4M3, ActivationFormat::kF32, {matmul_reference, matmul_f8_e4m3_exact_avx2, matmul_f8_e4m3_exact_avx512, nullptr, nullptr}},
    {DType::kQ8_0, ActivationFormat::kF32, {matmul_reference, matmul_q8_0_exact_avx2, matmul_q8_0_exact_avx512, nullptr, nullptr}},
    {DType::kQ4_K, ActivationFormat::kF32, {matmul_reference, matmul_q4_k_exact_avx2, matmul_q4_k_exact_avx512, nullptr, nullptr}},
    {DType::kQ6_K, ActivationFormat::kF32, {matmul_reference, matmul_q6_k_exact_avx2, matmul_q6_k_exact_avx512, nullptr, nullptr}},
    {DType::kF8_E4M3, ActivationFormat::kBF16, {matmul_reference, matmul_f8_e4m3_avx2, matmul_f8_e4m3_avx512, nullptr, matmul_f8_e4m3_avx512_bf16}},
    {DType::kBF16, ActivationFormat::kBF16, {matmul_reference, matmul_bf16_avx2, matmul_bf16_avx512, nullptr, matmul_bf16_avx512_bf16}},
    {DType::kQ8_0, ActivationFormat::kInt8Per32, {matmul_reference, matmul_q8_0_avx2, matmul_q8_0_avx512, matmul_q8_0_avx512_vnni, nullptr}},
    {DType::kQ4_K, ActivationFormat::kInt8Per256, {matmul_reference, matmul_q4_k_avx2, matmul_q4_k_avx512, matmul_q4_k_avx512_vnni, nullptr}},
    {DType::kQ6_K, ActivationFormat::kInt8Per256, {matmul_reference, matmul_q6_k_avx2, matmul_q6_k_avx512, matmul_q6_k_avx512_vnni, nullptr}},
};

// Of all types in block_formats.h, whichever row's type is.
constexpr MatmulRow kBlockMatmuls[] = {
    {DType::kQ4_0, ActivationFormat::kF32, {matmul_reference, matmul_blocks_exact_avx2, matmul_blocks_exact_avx512, nullptr, nullptr}},
    {DType::kQ4_0, ActivationFormat::kInt8Per32, {matmul_reference, matmul_blocks_avx2, matmul_blocks_avx512, matmul_blocks_avx512_vnni, nullptr}},
};
// clang-format on

MatmulFunction matmul_function(Isa isa, DType type, ActivationFormat format) {
  const bool has_blocks = find_block_format(type) != nullptr;
  const std::span<const MatmulRow> rows = has_blocks ? std::span<const MatmulRow>(kBlockMatmuls) : kMatmuls;
  const auto row = std::find_if(rows.begin(), rows.end(), [&](const MatmulRow& m) {
    return (has_blocks || m.type == type) && m.format == format;
  });
  WITAN_CHECK(row != rows.end(), "no product of {} weights with activation format {}", quant_type(type).name,
              static_cast<int>(format));
  auto index = static_cast<size_t>(isa);
  while (row->functions[index] == nullptr) --index;
  return row->functions[index];
}

void check_cols(DType type, int64_t cols) {
  const QuantType& quant = quant_type(type);
  WITAN_CHECK(cols > 0 && quant.holds_rows_of(cols), "{} columns are not a multiple of {}'s block of {}", cols,
              quant.name, quant.block_size);
}

}  // namespace

int64_t panel_bytes(DType type, int64_t cols) {
  check_cols(type, cols);
  if (const BlockFormat* format = find_block_format(type)) return block_panel_bytes(*format, cols);
  return (kPanelRows * quant_type(type).row_bytes(cols) + 63) / 64 * 64;
}

ActivationFormat activation_format(DType weight_type, Precision precision) {
  if (precision == Precision::kExact) return ActivationFormat::kF32;
  if (find_block_format(weight_type) != nullptr) return ActivationFormat::kInt8Per32;
  switch (weight_type) {
    case DType::kF32:
    case DType::kF16:
      return ActivationFormat::kF32;
    case DType::kBF16:
    case DType::kF8_E4M3:
      return ActivationFormat::kBF16;
    case DType::kQ8_0:
      return ActivationFormat::kInt8Per32;
    case DType::kQ4_K:
    case DType::kQ6_K:
      return ActivationFormat::kInt8Per256;
    default:
      WITAN_CHECK(false, "weight type {}", static_cast<int>(weight_type));
  }
}

void matmul(Isa isa, const PackedMatrix& matrix, ActivationFormat format, const std::byte* const* activations,
            int64_t num_rows, int64_t panel_begin, int64_t panel_end, float* const* out) {
  const MatmulFunction function = matmul_function(isa, matrix.type, format);
  WITAN_CHECK(0 <= panel_begin && panel_begin <= panel_end && panel_end <= matrix.num_panels(), "panels [{}, {}) of {}",
              panel_begin, panel_end, matrix.num_panels());
  WITAN_CHECK(matrix.panel_stride_bytes >= panel_bytes(matrix.type, matrix.cols), "panel stride {} < {} bytes",
              matrix.panel_stride_bytes, panel_bytes(matrix.type, matrix.cols));
  if (num_rows == 0 || panel_begin == panel_end) return;
  const BlockFormat* blocks = find_block_format(matrix.type);
  static const bool kAlwaysFarAhead = !prefetcher_keeps_up();
  function({.panels = reinterpret_cast<const uint8_t*>(matrix.data),
            .panel_stride_bytes = matrix.panel_stride_bytes,
            .type = matrix.type,
            .format = format,
            .rows = matrix.rows,
            .cols = matrix.cols,
            .activations = activations,
            .num_rows = num_rows,
            .panel_begin = panel_begin,
            .panel_end = panel_end,
            .out = out,
            .blocks = blocks,
            .block_scales_bytes = blocks == nullptr ? 0 : block_scales_bytes(*blocks, matrix.cols),
            .always_far_ahead = kAlwaysFarAhead});
}

}  // namespace witan
