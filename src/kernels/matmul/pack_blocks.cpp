#include <array>
#include <cstring>

#include "base/check.h"
#include "kernels/matmul/block_formats.h"
#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul.h"

// Files' blocks to the packed form of block_formats.h.
namespace witan {
namespace {

constexpr int kWordsPerBlock = 8;

uint32_t load_word(const std::byte* from) {
  uint32_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// One row's place in a panel.
struct Destination {
  uint8_t* scales;  // of the panel
  uint8_t* codes;   // of the panel
  int row;

  void store_word(uint8_t* vector, uint32_t word) const { std::memcpy(vector + 4 * row, &word, sizeof(word)); }
  // Element `row` of an array of halves, copied from a file's bytes.
  void store_half(uint8_t* halves, const std::byte* from) const { std::memcpy(halves + 2 * row, from, 2); }
};

// Nibbles of 32 columns, 0..15 the low ones and 16..31 the high ones of 16 bytes, as most files have them.
void pack_nibbles(const std::byte* nibbles, uint8_t* block, const Destination& to) {
  for (int i = 0; i < 4; ++i) to.store_word(block + i * kWordVectorBytes, load_word(nibbles + 4 * i));
}

// One bit of each of 32 columns, column c in bit c.
void pack_bits(uint32_t bits, uint8_t* vector, const Destination& to) {
  uint32_t packed = 0;
  for (int word = 0; word < kWordsPerBlock; ++word) {
    for (int k = 0; k < 4; ++k) packed |= (bits >> (4 * word + k) & 1) << (8 * k + word);
  }
  to.store_word(vector, packed);
}

// Bit `bit` of each of 32 bytes.
uint32_t gather_bits(const std::byte* bytes, int bit) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= (std::to_integer<uint32_t>(bytes[i]) >> bit & 1) << i;
  return bits;
}

// Words 0..7 of 32 columns whose codes have two bits each, in bits 2 * group and 2 * group + 1 of 32 bytes.
void pack_crumbs(const std::byte* bytes, int group, uint8_t* block, const Destination& to) {
  for (int i = 0; i < 2; ++i) {
    uint32_t packed = 0;
    for (int j = 0; j < 4; ++j) {
      packed |= (load_word(bytes + 4 * (4 * i + j)) >> (2 * group) & 0x03030303u) << (2 * j);
    }
    to.store_word(block + i * kWordVectorBytes, packed);
  }
}

// 16 values of 6 bits, four per vector, into three vectors; see Q4KCell::six_bit.
void pack_six_bit(const std::array<uint8_t, 16>& values, uint8_t* vectors, const Destination& to) {
  for (int i = 0; i < 4; ++i) {
    for (int v = 0; v < 3; ++v) {
      vectors[v * kWordVectorBytes + 4 * to.row + i] =
          static_cast<uint8_t>(values[4 * v + i] | (values[12 + i] >> (2 * v) & 3) << 6);
    }
  }
}

// The packers take one row's block of the file with index `b` and its bytes.

void pack_4_bit_half(const std::byte* file, int64_t b, const Destination& to) {
  to.store_half(to.scales + b * 32, file);
  pack_nibbles(file + 2, to.codes + b * 4 * kWordVectorBytes, to);
}

void pack_mxfp4(const std::byte* file, int64_t b, const Destination& to) {
  to.scales[b * kPanelRows + to.row] = std::to_integer<uint8_t>(file[0]);
  pack_nibbles(file + 1, to.codes + b * 4 * kWordVectorBytes, to);
}

void pack_q4_1(const std::byte* file, int64_t b, const Destination& to) {
  to.store_half(to.scales + b * 64, file);
  to.store_half(to.scales + b * 64 + 32, file + 2);
  pack_nibbles(file + 4, to.codes + b * 4 * kWordVectorBytes, to);
}

void pack_5_bits(const std::byte* high, const std::byte* nibbles, uint8_t* block, const Destination& to) {
  pack_nibbles(nibbles, block, to);
  pack_bits(load_word(high), block + 4 * kWordVectorBytes, to);
}

void pack_q5_0(const std::byte* file, int64_t b, const Destination& to) {
  to.store_half(to.scales + b * 32, file);
  pack_5_bits(file + 2, file + 6, to.codes + b * 5 * kWordVectorBytes, to);
}

void pack_q5_1(const std::byte* file, int64_t b, const Destination& to) {
  to.store_half(to.scales + b * 64, file);
  to.store_half(to.scales + b * 64 + 32, file + 2);
  pack_5_bits(file + 4, file + 8, to.codes + b * 5 * kWordVectorBytes, to);
}

void pack_iq4_xs(const std::byte* file, int64_t b, const Destination& to) {
  uint8_t* scales = to.scales + b * 160;
  to.store_half(scales, file);
  const int high = static_cast<int>(load_word(file) >> 16);
  for (int j = 0; j < 8; ++j) {
    const int low = std::to_integer<int>(file[4 + j / 2]) >> (j % 2 * 4) & 15;
    const int scale = (low | (high >> (2 * j) & 3) << 4) - 32;
    scales[32 + j * kPanelRows + to.row] = static_cast<uint8_t>(scale);
    pack_nibbles(file + 8 + 16 * j, to.codes + (8 * b + j) * 4 * kWordVectorBytes, to);
  }
}

void pack_q5_k(const std::byte* file, int64_t b, const Destination& to) {
  uint8_t* scales = to.scales + b * 256;
  to.store_half(scales, file);
  to.store_half(scales + 32, file + 2);
  std::array<uint8_t, 16> six_bit{};  // scales 0..7; mins 0, 2, 1, 3, 4, 6, 5, 7
  constexpr std::array<int, 4> kMinOrder = {0, 2, 1, 3};
  const auto at = [&](int i) { return std::to_integer<int>(file[4 + i]); };
  for (int i = 0; i < 4; ++i) {
    const int m = kMinOrder[i];
    six_bit[i] = static_cast<uint8_t>(at(i) & 63);
    six_bit[4 + i] = static_cast<uint8_t>((at(8 + i) & 15) | at(i) >> 6 << 4);
    six_bit[8 + i] = static_cast<uint8_t>(at(4 + m) & 63);
    six_bit[12 + i] = static_cast<uint8_t>(at(8 + m) >> 4 | at(4 + m) >> 6 << 4);
  }
  pack_six_bit(six_bit, scales + 64, to);
  for (int j = 0; j < 8; ++j) {
    uint8_t* block = to.codes + (8 * b + j) * 5 * kWordVectorBytes;
    const std::byte* quants = file + 48 + j / 2 * 32;  // the nibbles of 32 columns, one in each byte
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = load_word(quants + 4 * i) >> (j % 2 * 4) & 0x0f0f0f0fu;
      const uint32_t high = load_word(quants + 16 + 4 * i) >> (j % 2 * 4) & 0x0f0f0f0fu;
      to.store_word(block + i * kWordVectorBytes, low | high << 4);
    }
    pack_bits(gather_bits(file + 16, j), block + 4 * kWordVectorBytes, to);
  }
}

void pack_q2_k(const std::byte* file, int64_t b, const Destination& to) {
  uint8_t* scales = to.scales + b * 320;
  to.store_half(scales, file + 80);
  to.store_half(scales + 32, file + 82);
  for (int i = 0; i < 4; ++i) to.store_word(scales + 64 + i * kWordVectorBytes, load_word(file + 4 * i));
  for (int j = 0; j < 8; ++j) {
    pack_crumbs(file + 16 + j / 4 * 32, j % 4, to.codes + (8 * b + j) * 2 * kWordVectorBytes, to);
  }
}

void pack_q3_k(const std::byte* file, int64_t b, const Destination& to) {
  uint8_t* scales = to.scales + b * 224;
  to.store_half(scales, file + 108);
  std::array<uint8_t, 16> six_bit{};
  for (int j = 0; j < 16; ++j) {
    const int low = std::to_integer<int>(file[96 + j % 8]) >> (j / 8 * 4) & 15;
    const int high = std::to_integer<int>(file[104 + j % 4]) >> (j / 4 * 2) & 3;
    six_bit[j] = static_cast<uint8_t>(low | high << 4);
  }
  pack_six_bit(six_bit, scales + 32, to);
  for (int j = 0; j < 8; ++j) {
    uint8_t* block = to.codes + (8 * b + j) * 3 * kWordVectorBytes;
    pack_crumbs(file + 32 + j / 4 * 32, j % 4, block, to);
    pack_bits(gather_bits(file, j), block + 2 * kWordVectorBytes, to);
  }
}

using PackBlock = void (*)(const std::byte* file, int64_t block, const Destination& to);

PackBlock packer_of(DType type) {
  switch (type) {
    case DType::kQ4_0:
    case DType::kIQ4_NL:
      return pack_4_bit_half;
    case DType::kQ4_1:
      return pack_q4_1;
    case DType::kQ5_0:
      return pack_q5_0;
    case DType::kQ5_1:
      return pack_q5_1;
    case DType::kQ2_K:
      return pack_q2_k;
    case DType::kQ3_K:
      return pack_q3_k;
    case DType::kQ5_K:
      return pack_q5_k;
    case DType::kIQ4_XS:
      return pack_iq4_xs;
    case DType::kMXFP4:
      return pack_mxfp4;
    default:
      WITAN_CHECK(false, "weight type {}", static_cast<int>(type));
  }
}

}  // namespace

void pack_block_panel(const BlockFormat& format, int64_t cols, const std::byte* const* rows, int num_rows,
                      std::byte* panel) {
  const QuantType& type = quant_type(format.type);
  const PackBlock pack = packer_of(format.type);
  auto* bytes = reinterpret_cast<uint8_t*>(panel);
  for (int row = 0; row < num_rows; ++row) {
    const Destination to{.scales = bytes, .codes = bytes + block_scales_bytes(format, cols), .row = row};
    for (int64_t b = 0; b < cols / type.block_size; ++b) pack(rows[row] + b * type.block_bytes, b, to);
  }
}

}  // namespace witan
