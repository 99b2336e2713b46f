#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

// What Q4_K and Q5_K share. A block of 256 values in 8 sub-blocks of 32, with a scale s and a minimum m of 6 bits each:
//   [0, 2) d, f16    [2, 4) dmin, f16    [4, 16) s and m, packed
// Value i of sub-block j is d * s[j] * q - dmin * m[j]. The twelve packed bytes b, for j in [0, 4):
//   b[j] = s[j] | high two bits of s[j + 4]    b[j + 4] = m[j] | high two bits of m[j + 4]
//   b[j + 8] = low four bits of s[j + 4] | low four bits of m[j + 4] << 4
namespace witan {

inline constexpr int kLineBlockSize = 256;
inline constexpr int kLineSubBlocks = 8;
inline constexpr int kLineSubBlockSize = 32;
inline constexpr int kLineHeaderBytes = 16;

struct LineScales {
  std::array<uint8_t, kLineSubBlocks> scale;
  std::array<uint8_t, kLineSubBlocks> minimum;
};

// A block's header, ready for use.
struct LineHeader {
  std::array<float, kLineSubBlocks> scale;    // d * s[j]
  std::array<float, kLineSubBlocks> minimum;  // dmin * m[j]
};

void write_line_header(uint16_t d, uint16_t dmin, const LineScales& scales, std::byte* header);
LineHeader read_line_header(const std::byte* header);

// How ggml looks for a sub-block's line: rounds under num_attempts inverse scales, from (first_step + max_quant) /
// range on in steps of 0.1 / range.
struct LineSearch {
  int max_quant;
  float first_step;
  int num_attempts;
};

// Writes the header of the block that holds x [256] best, and its quants in 0..max_quant.
void fit_lines(const LineSearch& search, const float* x, std::byte* header, uint8_t* quants);

// Random scales for quants uniform in [0, max_quant]: weights of mean 0 and deviation `stddev`. One value of `bits` per
// sub-block row of either kind is used.
class RandomLines {
 public:
  RandomLines(int max_quant, float stddev);
  void write_header(uint64_t scale_bits, uint64_t shift_bits, std::byte* header) const;

 private:
  uint16_t d_;
  uint16_t dmin_;
};

}  // namespace witan
