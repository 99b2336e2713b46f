#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "kernels/matmul/block_formats.h"
#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul.h"

namespace witan {
namespace {

constexpr int kWordsPerBlock = 8;  // of 4 columns, in 32

uint32_t load_word(const std::byte* from) {
  uint32_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

void store_word(uint8_t* vector, int row, uint32_t word) { std::memcpy(vector + 4 * row, &word, sizeof(word)); }

uint16_t load_half(const std::byte* from) {
  uint16_t half;
  std::memcpy(&half, from, sizeof(half));
  return half;
}

// [cols][16] from rows of T.
template <typename T>
void pack_elements(int64_t cols, const std::byte* const* rows, int num_rows, std::byte* panel) {
  for (int row = 0; row < num_rows; ++row) {
    std::byte* out = panel + static_cast<size_t>(row) * sizeof(T);
    for (int64_t col = 0; col < cols; ++col) {
      std::memcpy(out + col * kPanelRows * static_cast<int64_t>(sizeof(T)),
                  rows[row] + col * static_cast<int64_t>(sizeof(T)), sizeof(T));
    }
  }
}

void pack_bf16(int64_t cols, const std::byte* const* rows, int num_rows, std::byte* panel) {
  auto* vectors = reinterpret_cast<uint8_t*>(panel);
  for (int row = 0; row < num_rows; ++row) {
    for (int64_t pair = 0; pair < cols / 2; ++pair) {
      store_word(vectors + pair * kWordVectorBytes, row, load_word(rows[row] + 4 * pair));
    }
    if (cols % 2 != 0) {
      store_word(vectors + cols / 2 * kWordVectorBytes, row, load_half(rows[row] + 2 * (cols - 1)));
    }
  }
}

// File block: float scale, 128 codes; fewer in the last.
void pack_f8_e4m3(int64_t cols, const std::byte* const* rows, int num_rows, std::byte* panel) {
  auto* scales = reinterpret_cast<float*>(panel);
  const int64_t num_blocks = (cols + kF8ScaleColumns - 1) / kF8ScaleColumns;
  std::byte* codes = panel + num_blocks * kPanelRows * static_cast<int64_t>(sizeof(float));
  for (int row = 0; row < num_rows; ++row) {
    const std::byte* from = rows[row];
    for (int64_t b = 0; b < num_blocks; ++b) {
      const int64_t begin = b * kF8ScaleColumns;
      const int64_t count = std::min(kF8ScaleColumns, cols - begin);
      float& scale = scales[b * kPanelRows + row];
      std::memcpy(&scale, from, sizeof(scale));
      from += sizeof(scale);
      for (int64_t i = 0; i < count; ++i) {
        codes[(begin + i) * kPanelRows + row] = from[i];
        if ((from[i] & std::byte{0x7f}) == std::byte{0x7f}) scale = std::numeric_limits<float>::quiet_NaN();
      }
      from += count;
    }
  }
}

// File block: half d, int8 q[32].
void pack_q8_0(int64_t cols, const std::byte* const* rows, int num_rows, std::byte* panel) {
  constexpr int64_t kFileBlockBytes = 34;
  const int64_t num_blocks = cols / kQ8BlockColumns;
  for (int64_t first = 0; first < num_blocks; first += kQ8GroupBlocks) {
    const int64_t blocks = std::min(kQ8GroupBlocks, num_blocks - first);
    auto* group = reinterpret_cast<uint8_t*>(panel) + first / kQ8GroupBlocks * kQ8GroupBytes;
    uint8_t* quants = group + (blocks * 32 + 63) / 64 * 64;
    for (int row = 0; row < num_rows; ++row) {
      for (int64_t b = 0; b < blocks; ++b) {
        const std::byte* block = rows[row] + (first + b) * kFileBlockBytes;
        std::memcpy(group + b * 32 + 2 * row, block, 2);
        for (int word = 0; word < kWordsPerBlock; ++word) {
          store_word(quants + b * kQ8BlockBytes + word * kWordVectorBytes, row,
                     load_word(block + 2 + 4 * word) ^ 0x80808080u);
        }
      }
    }
  }
}

// The eight 6-bit scales and mins of a Q4_K block from their 12 bytes: the first four of each lie in the low bits of
// bytes 0..3 and 4..7; the last four have their low nibbles in bytes 8..11 and their upper bits atop the first ones.
struct SixBitScales {
  std::array<uint8_t, 8> scales;
  std::array<uint8_t, 8> mins;
};

SixBitScales unpack_six_bit(const std::byte* bytes) {
  const auto* b = reinterpret_cast<const uint8_t*>(bytes);
  SixBitScales out{};
  for (size_t j = 0; j < 4; ++j) {
    out.scales[j] = b[j] & 63;
    out.mins[j] = b[j + 4] & 63;
    out.scales[j + 4] = static_cast<uint8_t>((b[j + 8] & 15) | (b[j] >> 6 << 4));
    out.mins[j + 4] = static_cast<uint8_t>((b[j + 8] >> 4) | (b[j + 4] >> 6 << 4));
  }
  return out;
}

void pack_six_bit(const SixBitScales& from, int row, Q4KCell& cell) {
  constexpr std::array<size_t, 4> kMinOrder = {0, 2, 1, 3};  // see Q4KCell::six_bit
  for (size_t i = 0; i < 4; ++i) {
    const uint8_t fourth = from.mins[4 + kMinOrder[i]];
    const size_t at = 4 * static_cast<size_t>(row) + i;
    cell.six_bit[0][at] = static_cast<uint8_t>(from.scales[i] | ((fourth & 3) << 6));
    cell.six_bit[1][at] = static_cast<uint8_t>(from.scales[4 + i] | ((fourth >> 2 & 3) << 6));
    cell.six_bit[2][at] = static_cast<uint8_t>(from.mins[kMinOrder[i]] | (fourth >> 4 << 6));
  }
}

// File block: half d, half dmin, 12 bytes of scales and mins, nibbles [4][32].
void pack_q4_k(int64_t cols, const std::byte* const* rows, int num_rows, std::byte* panel) {
  constexpr int64_t kFileBlockBytes = 144;
  auto* cells = reinterpret_cast<Q4KCell*>(panel);
  for (int64_t c = 0; c < cols / kKQuantColumns; ++c) {
    for (int row = 0; row < num_rows; ++row) {
      const std::byte* block = rows[row] + c * kFileBlockBytes;
      cells[c].d[row] = load_half(block);
      cells[c].dmin[row] = load_half(block + 2);
      pack_six_bit(unpack_six_bit(block + 4), row, cells[c]);
      for (int i = 0; i < 4; ++i) {
        for (int word = 0; word < kWordsPerBlock; ++word) {
          store_word(cells[c].quants[i][word], row, load_word(block + 16 + 32 * i + 4 * word));
        }
      }
    }
  }
}

// File block: low nibbles [2][2][32], upper bits [2][32], int8 scales [16], half d.
void pack_q6_k(int64_t cols, const std::byte* const* rows, int num_rows, std::byte* panel) {
  constexpr int64_t kFileBlockBytes = 210;
  const int64_t num_cells = cols / kKQuantColumns;
  auto* cells = reinterpret_cast<Q6KCell*>(panel + (num_cells * 32 + 63) / 64 * 64);
  for (int64_t c = 0; c < num_cells; ++c) {
    for (int row = 0; row < num_rows; ++row) {
      const std::byte* block = rows[row] + c * kFileBlockBytes;
      for (int h = 0; h < 2; ++h) {
        Q6KCell::Half& half = cells[c].halves[h];
        for (int word = 0; word < kWordsPerBlock; ++word) {
          store_word(half.low[0][word], row, load_word(block + 64 * h + 4 * word));
          store_word(half.low[1][word], row, load_word(block + 64 * h + 32 + 4 * word));
          store_word(half.high[word], row, load_word(block + 128 + 32 * h + 4 * word));
        }
      }
      for (int s = 0; s < 4; ++s) std::memcpy(&cells[c].scales[s][4 * row], block + 192 + 4 * s, 4);
      std::memcpy(panel + 32 * c + 2 * row, block + 208, 2);
    }
  }
}

}  // namespace

void pack_panel(DType type, int64_t cols, const std::byte* const* rows, int num_rows, std::byte* panel) {
  WITAN_CHECK(1 <= num_rows && num_rows <= kPanelRows, "{} rows in a panel of {}", num_rows, kPanelRows);
  std::memset(panel, 0, static_cast<size_t>(panel_bytes(type, cols)));
  if (const BlockFormat* format = find_block_format(type))
    return pack_block_panel(*format, cols, rows, num_rows, panel);
  switch (type) {
    case DType::kF32:
      return pack_elements<float>(cols, rows, num_rows, panel);
    case DType::kF16:
      return pack_elements<uint16_t>(cols, rows, num_rows, panel);
    case DType::kBF16:
      return pack_bf16(cols, rows, num_rows, panel);
    case DType::kF8_E4M3:
      return pack_f8_e4m3(cols, rows, num_rows, panel);
    case DType::kQ8_0:
      return pack_q8_0(cols, rows, num_rows, panel);
    case DType::kQ4_K:
      return pack_q4_k(cols, rows, num_rows, panel);
    case DType::kQ6_K:
      return pack_q6_k(cols, rows, num_rows, panel);
    default:
      WITAN_CHECK(false, "weight type {}", quant_type(type).name);
  }
}

}  // namespace witan
