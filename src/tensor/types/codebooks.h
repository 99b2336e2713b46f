#pragma once

#include <array>
#include <bit>
#include <cstdint>

// The values of non-uniform 4-bit codes. The kernels look codes up in the same tables.
namespace witan {

// IQ4_NL and IQ4_XS: denser towards zero, as weights are.
inline constexpr std::array<int8_t, 16> kIq4Codebook = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                        1,    13,   25,  38,  53,  69,  89,  113};

// MXFP4 ("OCP Microscaling Formats (MX) Specification", version 1.0, E2M1), doubled so that all are integers. Negative
// zero counts as zero.
inline constexpr std::array<int8_t, 16> kMxfp4Codebook = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

constexpr float mean_square(const std::array<int8_t, 16>& codebook) {
  float sum = 0;
  for (const int8_t value : codebook) sum += static_cast<float>(value) * static_cast<float>(value);
  return sum / static_cast<float>(codebook.size());
}

// Half of the power of two 2^(e - 127) that an E8M0 scale stands for: what a doubled MXFP4 code is multiplied by. As in
// ggml, the code 255 (NaN in the specification) is 2^128 / 2.
constexpr float half_of_e8m0(uint8_t e) {
  return std::bit_cast<float>(e < 2 ? uint32_t{0x00200000} << e : static_cast<uint32_t>(e - 1) << 23);
}

}  // namespace witan
