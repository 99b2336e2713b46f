#pragma once

#include <cstddef>
#include <cstdint>

#include "base/isa.h"
#include "kernels/precision.h"
#include "tensor/quant_type.h"

namespace witan {

// y = x W^T for a weight matrix W [rows, cols] of any type and a handful or thousands of activation rows x [n, cols].
//
// Weights are packed once into panels of 16 rows with the rows interleaved across SIMD lanes; the same panels serve
// one activation row and many. Every output element is summed in one order, K ascending, whatever the number of
// activation rows, the tile shape or the thread: the results are bit-identical on one instruction set.

inline constexpr int kPanelRows = 16;

// A packed matrix, borrowed. Panel p holds rows [16p, 16p + 16); rows past the end are zero.
struct PackedMatrix {
  DType type = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;
  int64_t panel_stride_bytes = 0;  // from one panel to the next; larger than panel_bytes() when two matrices alternate

  int64_t num_panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
};

// Bytes of one packed panel of `cols` columns: 16 times the bytes of a row in the file, rounded up to 64, except that
// IQ4_XS takes 1.5 % more.
int64_t panel_bytes(DType type, int64_t cols);

// Packs rows [first_row, first_row + num_rows) of a panel from row-major file bytes. `rows` has num_rows pointers
// (1..16); missing rows are packed as zeros. `panel` has panel_bytes(type, cols), 64-byte aligned.
void pack_panel(DType type, int64_t cols, const std::byte* const* rows, int num_rows, std::byte* panel);

// A panel of any type as one of float32, with the values that its bits stand for: out [cols][16]. One element at a
// time.
void unpack_panel(const PackedMatrix& matrix, int64_t panel, float* out);

// How activations are stored for a product.
enum class ActivationFormat : uint8_t {
  kF32,         // exact: float32
  kBF16,        // rounded to bfloat16, for BF16 and F8_E4M3 weights
  kInt8Per32,   // signed 8 bit with one float scale per 32 elements, for Q8_0 and the types of block_formats.h
  kInt8Per256,  // one scale per 256 elements plus block sums, for Q4_K and Q6_K
};

ActivationFormat activation_format(DType weight_type, Precision precision);

// Bytes of one stored activation row of `cols` elements, a multiple of 64.
int64_t activation_bytes(ActivationFormat format, int64_t cols);

// Stores one row x [cols] f32 in `format`; bit-identical on every instruction set. `out` is 64-byte aligned.
void store_activations(Isa isa, ActivationFormat format, const float* x, int64_t cols, std::byte* out);

// out[i][16p .. 16p+16) = activations[i] . panel p, for i in [0, num_rows) and panels p in [panel_begin, panel_end).
// Only columns below matrix.rows are written. `activations` are rows stored in `format`, which must be one that
// activation_format gives for matrix.type. One call is single-threaded; callers split panels over threads.
void matmul(Isa isa, const PackedMatrix& matrix, ActivationFormat format, const std::byte* const* activations,
            int64_t num_rows, int64_t panel_begin, int64_t panel_end, float* const* out);

}  // namespace witan
