#pragma once

#include <cstddef>
#include <cstdint>

namespace witan {

// Hugging Face checkpoints keep the codes and the scales of block-quantised weights in two tensors. These put one row
// of both together as a row of a QuantType, which everything else reads. No buffer needs to be aligned.

// gpt-oss: a row of X_blocks, U8 [..., rows, cols / 32, 16], and of X_scales, U8 [..., rows, cols / 32], to a row of
// quant_type(DType::kMXFP4).row_bytes(cols) bytes. A Hugging Face block has elements 2j and 2j + 1 in byte j, low
// nibble first; the row's has elements j and j + 16. cols is a multiple of 32.
void make_mxfp4_row(const std::byte* blocks, const std::byte* scales, int64_t cols, std::byte* row);

// DeepSeek-V3: a row of X, F8_E4M3 [rows, cols], and its row of X_scale_inv, F32 [ceil(rows / 128), ceil(cols / 128)]
// (row r / 128 for row r of X), to a row of quant_type(DType::kF8_E4M3).row_bytes(cols) bytes. A weight is its code
// times its block's scale. cols is any number.
void make_f8_e4m3_row(const std::byte* codes, const std::byte* scales, int64_t cols, std::byte* row);

}  // namespace witan
