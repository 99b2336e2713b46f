#pragma once

#include <cstdint>

// How packed panels and stored activations lie in memory. Constants and plain structs only: files compiled for one
// instruction set include this header and must not share inline functions.
//
// Quants are stored in words of 4 consecutive columns of one row; a 64-byte vector holds one word of each of the 16
// rows of a panel. An instruction that multiplies 4 bytes per 32-bit lane then works on 16 rows at once, with the
// activation word broadcast, and each lane walks K in order.
//
//   F32   [cols][16] float
//   F16   [cols][16] half
//   BF16  [ceil(cols / 2)][16][2] bfloat16; an odd last column is paired with zeros
//   Q8_0  groups of up to 8 blocks: see kQ8GroupBytes
//   Q4_K  [cols / 256] Q4KCell
//   F8_E4M3  [ceil(cols / 128)][16] float scales, then [cols][16] codes
//   Q6_K  [cols / 256][16] half scales d, padded to 64 bytes, then [cols / 256] Q6KCell
//   others: see block_formats.h
namespace witan {

// A vector of words is 64 bytes whatever the instruction set.
inline constexpr int64_t kWordVectorBytes = 64;
inline constexpr int64_t kKQuantColumns = 256;  // columns of a Q4_K or Q6_K block, and of one cell

// F8_E4M3. A row of a panel has a scale of its own for each 128 columns, so rows of different blocks of a file may
// meet. A NaN among the codes, which halves do not have at that place, makes the scale NaN.
inline constexpr int64_t kF8ScaleColumns = 128;

// Q8_0: a group holds num_blocks (8, fewer in the last) blocks of 32 columns:
//   half scales [num_blocks][16], padded to 64 bytes | bytes q ^ 0x80 [num_blocks][8 words][16 rows][4]
inline constexpr int64_t kQ8BlockColumns = 32;
inline constexpr int64_t kQ8GroupBlocks = 8;
inline constexpr int64_t kQ8BlockBytes = 8 * kWordVectorBytes;
inline constexpr int64_t kQ8GroupBytes = kQ8GroupBlocks * (32 + kQ8BlockBytes);

// Q4_K: 16 rows x 256 columns. A weight is d * scale[j] * q - dmin * min[j], j = column / 32.
struct alignas(64) Q4KCell {
  uint16_t d[16];     // half
  uint16_t dmin[16];  // half
  // Four vectors of 6-bit values in the space of three: the low 6 bits of each are the first three vectors, and their
  // top 2 bits make the fourth (lowest 2 bits in the first). Per row, 4 bytes each: scales 0..3; scales 4..7; mins 0,
  // 2, 1, 3; mins 4, 6, 5, 7. Even and odd bytes of a mins vector are then 16-bit pairs of neighbours.
  uint8_t six_bit[3][64];
  uint8_t quants[4][8][64];  // [i][word]: low nibbles are columns 64 i + 4 word .. + 4, high nibbles 32 further on
};
static_assert(sizeof(Q4KCell) == 16 * 144);

// Q6_K: 16 rows x 256 columns. A weight is d * scale[column / 16] * (q - 32).
struct alignas(64) Q6KCell {
  struct Half {             // 128 columns, in blocks n = 0..3 of 32
    uint8_t high[8][64];    // [word]: bits 2n, 2n + 1 are the upper 2 bits of columns 32 n + 4 word .. + 4
    uint8_t low[2][8][64];  // [n % 2][word]: low nibbles of blocks 0 and 1, high nibbles for blocks 2 and 3
  };
  int8_t scales[4][64];  // [s][4 row + i]: the scale of columns 16 (4 s + i) .. + 16
  Half halves[2];
};
static_assert(sizeof(Q6KCell) == 16 * 208);

// ActivationFormat::kInt8Per32, 256 columns.
struct alignas(64) Int8Per32Group {
  int8_t q[256];
  int32_t offset[8];        // -128 * sum of q over 32 columns: what unsigned Q8_0 bytes add too much
  float scale[8];           // 0 for a block of zeros, NaN for one with an infinity or NaN
  int32_t half_offset[16];  // as offset, over 16 columns
};
static_assert(sizeof(Int8Per32Group) == 384);

// ActivationFormat::kInt8Per256, 256 columns.
struct alignas(64) Int8Per256Block {
  int8_t q[256];
  int32_t offset[16];  // -32 * sum of q over 16 columns: the offset of Q6_K
  int16_t sum[8];      // of q over 32 columns, for the mins of Q4_K
  float scale;         // as above
  uint8_t unused[44];
};
static_assert(sizeof(Int8Per256Block) == 384);

}  // namespace witan
