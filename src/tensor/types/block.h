#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tensor/half.h"
#include "tensor/random_bits.h"

// What the files of this folder share.
namespace witan {

static_assert(std::endian::native == std::endian::little, "rows are decoded in place from little-endian files");

inline uint16_t load_u16(const std::byte* at) {
  uint16_t value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}
inline uint32_t load_u32(const std::byte* at) {
  uint32_t value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}
inline void store_u16(std::byte* at, uint16_t value) { std::memcpy(at, &value, sizeof(value)); }

inline float load_f32(const std::byte* at) { return std::bit_cast<float>(load_u32(at)); }
inline float load_f16(const std::byte* at) { return f16_to_f32(load_u16(at)); }
inline void store_f16(std::byte* at, float value) { store_u16(at, f32_to_f16(value)); }

// Quant i of 32 in 16 bytes: quants 0..15 are the low nibbles, 16..31 the high ones.
inline int nibble_of_32(const std::byte* quants, int i) {
  return std::to_integer<int>(quants[i % 16]) >> (i / 16 * 4) & 15;
}

// Stores quant(0..31) with the low four bits as nibble_of_32 reads them and bit i of `high`, 4 bytes, the fifth of
// quant i.
template <typename Quant>
void store_quants_of_5_bits(const Quant& quant, std::byte* high, std::byte* nibbles) {
  uint32_t high_bits = 0;
  for (int j = 0; j < 16; ++j) {
    const int first = quant(j);
    const int second = quant(j + 16);
    nibbles[j] = static_cast<std::byte>((first & 15) | (second & 15) << 4);
    high_bits |= static_cast<uint32_t>(first >> 4) << j | static_cast<uint32_t>(second >> 4) << (j + 16);
  }
  std::memcpy(high, &high_bits, sizeof(high_bits));
}

// Round to nearest, ties to even, for |value| < 2^22: adding 1.5 * 2^23 leaves the integer in the low mantissa bits.
// Any other value, NaN included, gives some integer.
inline int nearest_int(float value) { return (std::bit_cast<int32_t>(value + 0x1.8p23f) & 0x007fffff) - 0x00400000; }

// The dot product of a decoded row with x, in double. kBlockSize divides the elements decoded at a time.
template <int kBlockSize, int kBlockBytes>
double dot_decoded(void (*decode)(const std::byte*, float*, int64_t), const std::byte* row, const float* x,
                   int64_t num_elements) {
  constexpr int64_t kChunk = 256;
  static_assert(kChunk % kBlockSize == 0);
  std::array<float, kChunk> values;
  double sum = 0;
  for (int64_t begin = 0; begin < num_elements; begin += kChunk) {
    const int64_t count = std::min(kChunk, num_elements - begin);
    decode(row + begin / kBlockSize * kBlockBytes, values.data(), count);
    for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(values[i]) * x[begin + i];
  }
  return sum;
}

// A block's scale for random weights: of either sign, its magnitude in [0.75, 1.25) of the one whose mean square is
// root_mean_square^2.
inline float random_signed_scale(RandomBits& bits, float root_mean_square) {
  const float unit = bits.next_signed_unit();
  const float mean = root_mean_square / 1.0103630f;  // the root of 1 + 0.25^2 / 3
  const bool negative = (bits.next() & 1) != 0;
  return (negative ? -mean : mean) * (1 + 0.25f * unit);
}

// A uniform variable on [-a, a] has standard deviation a / sqrt(3).
inline constexpr float kSqrt3 = 1.7320508f;

}  // namespace witan
