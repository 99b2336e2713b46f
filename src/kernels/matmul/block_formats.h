#pragma once

#include <cstdint>

#include "tensor/quant_type.h"

// The packed layout of the types that are repacked into one form, "block formats": all but F32, F16, BF16, F8_E4M3 and
// the three with kernels of their own (Q8_0, Q4_K, Q6_K). They share one kernel per width of their codes.
//
// A panel is scales | codes. Scales fill whole cache lines; their form is the type's. Codes come in blocks of 32
// columns, `bits` vectors of 64 bytes each, made of words as in layout.h, word w being columns 4 w .. 4 w + 3:
//   4 bits: vector i holds word i in the low nibbles and word i + 4 in the high ones
//   5 bits: the low four bits so; then one vector whose byte has the fifth bit of word w in bit w
//   2 bits: vector i holds word 4 i + j in bits 2 j and 2 j + 1
//   3 bits: the low two bits so; then one vector with the third bits, as above
// A weight is scale * value(code) + min, with one scale (and min) per 32 or per 16 columns.
//
// Plain constants and structs, for the same reason as layout.h.
namespace witan {

inline constexpr int64_t kBlockColumns = 32;
inline constexpr int64_t kUnitBlocks = 8;  // blocks of which scales are read at once: 256 columns

enum class ScaleForm : uint8_t {
  kHalf,           // per block: half [16]
  kHalfAndMin,     // per block: half scale [16], half min [16]
  kE8M0,           // per block: uint8 e [16]; half of the power of two 2^(e - 127)
  kHalfTimesInt8,  // per 8 blocks: half d [16], int8 s [8][16]; d * s
  kLines,          // per 8 blocks: the start of Q4KCell, up to its quants; d * s and -dmin * m
  kSixBit,         // per 8 blocks: half d [16], then the 16 scales as 6-bit values like those of Q4KCell, in order;
                   // d * (s - 32)
  kNibbles,  // per 8 blocks: half d [16], half dmin [16], bytes [4][64], as Q6KCell::scales: s in the low nibble, m in
             // the high one; d * s and -dmin * m
};

struct BlockFormat {
  DType type;
  int32_t bits;           // of a code
  int32_t scale_columns;  // 32 or 16
  bool has_mins;
  ScaleForm scales;
  int32_t scale_blocks;  // blocks described by scale_bytes bytes of scales
  int32_t scale_bytes;
  int32_t bias;            // value(code) = code + bias, unless there is a codebook
  const int8_t* codebook;  // of 4 bits: value(code) = codebook[code]
};

// The row for a type, or nullptr.
const BlockFormat* find_block_format(DType type);

// Bytes of the scales of a panel, whole cache lines.
int64_t block_scales_bytes(const BlockFormat& format, int64_t cols);
int64_t block_panel_bytes(const BlockFormat& format, int64_t cols);

// One element, for the reference.
double block_weight(const BlockFormat& format, int64_t cols, const uint8_t* panel, int row, int64_t col);

// As pack_panel, into zeroed memory.
void pack_block_panel(const BlockFormat& format, int64_t cols, const std::byte* const* rows, int num_rows,
                      std::byte* panel);

}  // namespace witan
