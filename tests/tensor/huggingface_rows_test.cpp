#include "tensor/huggingface_rows.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tensor/quant_type.h"

namespace witan {
namespace {

std::vector<float> decode(DType dtype, const std::vector<std::byte>& row, int64_t cols) {
  std::vector<float> values(cols);
  quant_type(dtype).decode(row.data(), values.data(), cols);
  return values;
}

TEST(HuggingFaceRows, Mxfp4BlockHoldsNeighboursInOneByte) {
  constexpr int64_t kCols = 64;
  std::vector<std::byte> blocks(32);
  // Element i of a block has code (3 * i) % 16.
  for (int64_t i = 0; i < kCols; ++i) {
    blocks[i / 2] |= static_cast<std::byte>(3 * (i % 32) % 16 << (i % 2 * 4));
  }
  const std::vector<std::byte> scales = {std::byte{127}, std::byte{130}};
  std::vector<std::byte> row(quant_type(DType::kMXFP4).row_bytes(kCols));
  make_mxfp4_row(blocks.data(), scales.data(), kCols, row.data());
  const auto values = decode(DType::kMXFP4, row, kCols);
  // The E2M1 values by code, as the specification lists them.
  const float codes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
  for (int64_t i = 0; i < kCols; ++i) EXPECT_EQ(values[i], codes[3 * (i % 32) % 16] * (i < 32 ? 1 : 8)) << i;
}

TEST(HuggingFaceRows, F8CodesAreMultipliedByTheScaleOfTheir128Columns) {
  constexpr int64_t kCols = 160;  // the last block is cut short
  std::vector<std::byte> codes(kCols);
  for (int64_t i = 0; i < kCols; ++i) codes[i] = static_cast<std::byte>(7 * i % 256);
  const float scales[2] = {0.37f, 3.0f};
  std::vector<std::byte> row(quant_type(DType::kF8_E4M3).row_bytes(kCols));
  ASSERT_EQ(row.size(), 4u + 128 + 4 + 32);
  make_f8_e4m3_row(codes.data(), reinterpret_cast<const std::byte*>(scales), kCols, row.data());
  const auto values = decode(DType::kF8_E4M3, row, kCols);
  for (int64_t i = 0; i < kCols; ++i) {
    const auto code = static_cast<int>(7 * i % 256);
    const int exponent = code >> 3 & 15;
    const int mantissa = code & 7;
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    const auto value = static_cast<float>(code < 128 ? magnitude : -magnitude);
    if ((code & 127) == 127) {
      EXPECT_TRUE(std::isnan(values[i])) << i;
    } else {
      EXPECT_EQ(values[i], value * scales[i / 128]) << i;
    }
  }
}

}  // namespace
}  // namespace witan
