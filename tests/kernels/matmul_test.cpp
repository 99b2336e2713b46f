#include "kernels/matmul/matmul.h"

#include <gmock/gmock.h>

#include <cstring>

#include "kernels/matmul_fixture.h"
#include "tensor/half.h"

namespace witan {
namespace {

constexpr Precision kPrecisions[] = {Precision::kExact, Precision::kFast};
constexpr double kRoundoff = 0x1p-24;

// A bound on |m| of a weight of column k that is the sum of a multiple of its scale and m.
double largest_min(DType type, const std::byte* row, int64_t k) {
  const QuantType& quant = quant_type(type);
  // Where in a block a half is that the min is a multiple of, and the largest multiple.
  const struct {
    DType type;
    int at;
    int largest;
  } kinds[] = {
      {DType::kQ4_1, 2, 1}, {DType::kQ5_1, 2, 1}, {DType::kQ2_K, 82, 15}, {DType::kQ4_K, 2, 63}, {DType::kQ5_K, 2, 63}};
  for (const auto& kind : kinds) {
    if (kind.type != type) continue;
    uint16_t half;
    std::memcpy(&half, row + k / quant.block_size * quant.block_bytes + kind.at, 2);
    return kind.largest * std::abs(static_cast<double>(f16_to_f32(half)));
  }
  return 0;
}

// sum over k of |parts of weight k| |x[k]|. Some weights are the sum of two parts, of which
// |scaled| <= |scaled + min| + |min|.
double magnitude(DType type, const std::byte* row, const std::vector<double>& x) {
  const int64_t cols = std::ssize(x);
  std::vector<float> weights(x.size());
  quant_type(type).decode(row, weights.data(), cols);
  double total = 0;
  for (int64_t k = 0; k < cols; ++k) {
    total += (std::abs(weights[k]) + 2 * largest_min(type, row, k)) * std::abs(x[k]);
  }
  return total;
}

// Rounded operations on the way of one product into the result.
int64_t num_roundings(DType type, ActivationFormat format, int64_t cols) {
  switch (format) {
    case ActivationFormat::kF32:
    case ActivationFormat::kBF16:  // F8_E4M3 adds one for every scale
      return cols + (type == DType::kF8_E4M3 ? cols / 128 + 2 : 0);
    case ActivationFormat::kInt8Per32:  // at most two scales and mins, then one fma per block
      return 4 + cols / 32;
    case ActivationFormat::kInt8Per256:  // one fma per block of the cell, the mins, then one fma per cell
      return (type == DType::kQ4_K ? 8 + 1 : 16) + cols / 256;
  }
  return 0;
}

// The activations as the product sees them, up to the storage's rounding: enough for a magnitude.
std::vector<double> magnitudes_of(const std::vector<float>& x) {
  std::vector<double> out;
  float max = 0;
  for (const float value : x) max = std::max(max, std::abs(value));
  for (const float value : x) out.push_back(std::abs(static_cast<double>(value)) + max / 127);
  return out;
}

TEST(Matmul, EveryVariantAgreesWithTheReference) {
  for (const QuantType& quant : quant_types()) {
    for (const Precision precision : kPrecisions) {
      const ActivationFormat format = activation_format(quant.dtype, precision);
      for (const int64_t cols : test_cols(quant.dtype)) {
        for (const int64_t rows : {1, 16, 40, 83}) {
          const TestMatrix matrix = TestMatrix::random(quant.dtype, rows, cols, 31);
          const auto x = random_rows(25, cols, 32);
          const TestActivations stored(Isa::kReference, format, x);
          const auto expected = multiply(Isa::kReference, matrix.packed(), format, stored.rows());
          for (const int64_t num_rows : {1, 3, 10, 25}) {
            const std::vector<const std::byte*> some(stored.rows().begin(), stored.rows().begin() + num_rows);
            for (const Isa isa : supported_isas()) {
              const auto out = multiply(isa, matrix.packed(), format, some);
              for (int64_t i = 0; i < num_rows; i += 6) {
                for (int64_t row = 0; row < rows; ++row) {
                  // gamma_n = n u / (1 - n u), one more for the reference's own rounding, and what bf16
                  // instructions flush to zero.
                  const double n = static_cast<double>(num_roundings(quant.dtype, format, cols) + 1) * kRoundoff;
                  const double bound = magnitude(quant.dtype, matrix.file_row(row), magnitudes_of(x[i]));
                  ASSERT_NEAR(out[i][row], expected[i][row], n / (1 - n) * bound + 0x1p-120 * static_cast<double>(cols))
                      << label(isa, quant.dtype, precision, rows, cols, num_rows) << ", out[" << i << "][" << row
                      << "]";
                }
              }
            }
          }
        }
      }
    }
  }
}

// The determinism contract: the bits of an element depend on its weight row and activation row alone.
TEST(Matmul, BitsDoNotDependOnTheOtherRowsOrOnTheSplitOverPanels) {
  for (const QuantType& quant : quant_types()) {
    for (const Precision precision : kPrecisions) {
      const ActivationFormat format = activation_format(quant.dtype, precision);
      const int64_t cols = test_cols(quant.dtype).back();
      constexpr int64_t kRows = 150;
      const TestMatrix matrix = TestMatrix::random(quant.dtype, kRows, cols, 41);
      const PackedMatrix& packed = matrix.packed();
      const TestActivations stored(Isa::kReference, format, random_rows(130, cols, 42));
      for (const Isa isa : supported_isas()) {
        if (isa == Isa::kReference && quant.dtype != DType::kQ4_K) continue;  // slow, and one loop for all types
        std::vector<std::vector<float>> alone;
        for (const std::byte* row : stored.rows()) alone.push_back(multiply(isa, packed, format, {row})[0]);
        for (const int64_t num_rows : {1, 2, 3, 4, 5, 7, 8, 16, 17, 18, 19, 37, 130}) {
          // Rows from the end backwards, so that a row meets different neighbours and places in a tile.
          std::vector<const std::byte*> rows(stored.rows().rbegin(), stored.rows().rbegin() + num_rows);
          for (const std::vector<int64_t>& split : {std::vector<int64_t>{0, 10}, {0, 1, 4, 9, 10}, {0, 2, 5, 10}}) {
            std::vector<std::vector<float>> out(rows.size(), std::vector<float>(kRows, NAN));
            std::vector<float*> pointers;
            for (auto& row : out) pointers.push_back(row.data());
            for (size_t part = 0; part + 1 < split.size(); ++part) {
              matmul(isa, packed, format, rows.data(), num_rows, split[part], split[part + 1], pointers.data());
            }
            for (int64_t i = 0; i < num_rows; ++i) {
              ASSERT_EQ(std::memcmp(out[i].data(), alone[129 - i].data(), kRows * sizeof(float)), 0)
                  << label(isa, quant.dtype, precision, kRows, cols, num_rows) << ", row " << i << ", split in "
                  << split.size() - 1;
            }
          }
        }
      }
    }
  }
}

TEST(Matmul, Int8AndExactProductsHaveTheSameBitsOnEveryVectorInstructionSet) {
  for (const QuantType& quant : quant_types()) {
    for (const Precision precision : kPrecisions) {
      const ActivationFormat format = activation_format(quant.dtype, precision);
      if (format == ActivationFormat::kBF16) continue;  // vdpbf16ps flushes subnormals
      for (const int64_t cols : test_cols(quant.dtype)) {
        const TestMatrix matrix = TestMatrix::random(quant.dtype, 50, cols, 51);
        const TestActivations stored(Isa::kReference, format, random_rows(20, cols, 52));
        std::vector<std::vector<float>> first;
        for (const Isa isa : supported_isas()) {
          if (isa == Isa::kReference) continue;
          const auto out = multiply(isa, matrix.packed(), format, stored.rows());
          if (first.empty()) first = out;
          ASSERT_EQ(out, first) << label(isa, quant.dtype, precision, 50, cols, 20);
        }
      }
    }
  }
}

TEST(Matmul, ExactProductIsOneChainOfFusedMultiplyAddsOverAscendingColumns) {
  for (const QuantType& quant : quant_types()) {
    for (const int64_t cols : test_cols(quant.dtype)) {
      const TestMatrix matrix = TestMatrix::random(quant.dtype, 18, cols, 61);
      const auto x = random_rows(7, cols, 62);
      const TestActivations stored(Isa::kReference, ActivationFormat::kF32, x);
      std::vector<float> weights(static_cast<size_t>(cols));
      for (const Isa isa : supported_isas()) {
        if (isa == Isa::kReference) continue;
        const auto out = multiply(isa, matrix.packed(), ActivationFormat::kF32, stored.rows());
        for (int64_t row = 0; row < 18; ++row) {
          quant.decode(matrix.file_row(row), weights.data(), cols);
          for (int64_t i = 0; i < 7; ++i) {
            float sum = 0;
            for (int64_t k = 0; k < cols; ++k) sum = std::fma(weights[k], x[i][k], sum);
            ASSERT_EQ(out[i][row], sum) << label(isa, quant.dtype, Precision::kExact, 18, cols, 7);
          }
        }
      }
    }
  }
}

// Bit patterns at the ends of their ranges, where 16-bit intermediate sums are largest.
TEST(Matmul, ExtremeQuantsDoNotSaturate) {
  // Where a block has its halves: the scales, here 1.
  const struct {
    DType type;
    std::vector<int> halves;
  } cases[] = {{DType::kQ8_0, {0}},    {DType::kQ4_0, {0}},      {DType::kQ4_1, {0, 2}}, {DType::kQ5_0, {0}},
               {DType::kQ5_1, {0, 2}}, {DType::kQ2_K, {80, 82}}, {DType::kQ3_K, {108}},  {DType::kQ4_K, {0, 2}},
               {DType::kQ5_K, {0, 2}}, {DType::kQ6_K, {208}},    {DType::kIQ4_NL, {0}},  {DType::kIQ4_XS, {0}},
               {DType::kMXFP4, {}}};
  for (const auto& test : cases) {
    const QuantType& quant = quant_type(test.type);
    const ActivationFormat format = activation_format(test.type, Precision::kFast);
    for (const int pattern : {0x00, 0x7f, 0x80, 0x81, 0xff}) {
      constexpr int64_t kCols = 512;
      std::vector<std::byte> file(static_cast<size_t>(16 * quant.row_bytes(kCols)), static_cast<std::byte>(pattern));
      const uint16_t one = f32_to_f16(1.0f);
      for (int64_t block = 0; block < 16 * kCols / quant.block_size; ++block) {
        std::byte* bytes = file.data() + block * quant.block_bytes;
        for (const int at : test.halves) std::memcpy(bytes + at, &one, 2);
        if (test.type == DType::kMXFP4) bytes[0] = std::byte{127};
      }
      const TestMatrix matrix(test.type, 16, kCols, std::move(file));
      std::vector<std::vector<float>> x(4, std::vector<float>(kCols, 1.0f));
      for (float& value : x[1]) value = -1.0f;
      for (size_t k = 0; k < kCols; k += 2) x[2][k] = -1.0f;
      for (size_t k = 0; k < kCols; ++k) x[3][k] = k % 4 < 2 ? 1.0f : -1.0f;
      const TestActivations stored(Isa::kReference, format, x);
      const auto expected = multiply(Isa::kReference, matrix.packed(), format, stored.rows());
      for (const Isa isa : supported_isas()) {
        const auto out = multiply(isa, matrix.packed(), format, stored.rows());
        for (size_t i = 0; i < x.size(); ++i) {
          for (int row = 0; row < 16; ++row) {
            // Products of up to 63 * 127 * 63 in 512 terms.
            EXPECT_NEAR(out[i][row], expected[i][row], 20 * kRoundoff * 512 * 63 * 127)
                << isa_name(isa) << ' ' << quant.name << " pattern " << pattern << ", activations " << i;
          }
        }
      }
    }
  }
}

// All 256 codes of E4M3 but NaN, the smallest among them, and the ends of E8M0 that give finite weights.
TEST(Matmul, EveryCodeAndScaleOfTheFloatingFormatsIsExact) {
  constexpr int64_t kCols = 256;
  const QuantType& f8 = quant_type(DType::kF8_E4M3);
  std::vector<std::byte> f8_file(static_cast<size_t>(f8.row_bytes(kCols)));
  for (int64_t k = 0; k < kCols; ++k) {
    std::byte* block = f8_file.data() + k / 128 * f8.block_bytes;
    const float scale = k < 128 ? 0.1f : 7e-3f;
    std::memcpy(block, &scale, sizeof(scale));
    block[4 + k % 128] = static_cast<std::byte>(k % 128 == 127 ? 0 : k);
  }
  const QuantType& mxfp4 = quant_type(DType::kMXFP4);
  std::vector<std::byte> mxfp4_file(static_cast<size_t>(mxfp4.row_bytes(kCols)));
  for (int64_t b = 0; b < kCols / 32; ++b) {
    constexpr int kScales[] = {0, 1, 2, 3, 127, 128, 250, 251};
    std::byte* block = mxfp4_file.data() + b * mxfp4.block_bytes;
    block[0] = static_cast<std::byte>(kScales[b]);
    for (int i = 0; i < 16; ++i) block[1 + i] = static_cast<std::byte>(i * 17);
  }
  for (const auto& [type, file] : {std::pair{DType::kF8_E4M3, f8_file}, std::pair{DType::kMXFP4, mxfp4_file}}) {
    const TestMatrix matrix(type, 1, kCols, file);
    std::vector<std::vector<float>> unit(kCols, std::vector<float>(kCols));
    for (size_t k = 0; k < kCols; ++k) unit[k][k] = 1.0f;
    const TestActivations stored(Isa::kReference, ActivationFormat::kF32, unit);
    std::vector<float> expected(kCols);
    quant_type(type).decode(matrix.file_row(0), expected.data(), kCols);
    for (const Isa isa : supported_isas()) {
      const auto out = multiply(isa, matrix.packed(), ActivationFormat::kF32, stored.rows());
      for (size_t k = 0; k < kCols; ++k) ASSERT_EQ(out[k][0], expected[k]) << isa_name(isa) << ", column " << k;
    }
  }
}

TEST(Matmul, NaNCodeOfF8MakesItsRowNaNAndNoOther) {
  const QuantType& f8 = quant_type(DType::kF8_E4M3);
  std::vector<std::byte> file(static_cast<size_t>(16 * f8.row_bytes(160)), std::byte{0x10});
  file[static_cast<size_t>(5 * f8.row_bytes(160)) + 4 + 3] = std::byte{0xff};
  const TestMatrix matrix(DType::kF8_E4M3, 16, 160, std::move(file));
  const TestActivations stored(Isa::kReference, ActivationFormat::kF32, random_rows(1, 160, 3));
  for (const Isa isa : supported_isas()) {
    const auto out = multiply(isa, matrix.packed(), ActivationFormat::kF32, stored.rows());
    for (int row = 0; row < 16; ++row) EXPECT_EQ(std::isnan(out[0][row]), row == 5) << isa_name(isa) << ", row " << row;
  }
}

TEST(Matmul, NaNActivationReachesItsOwnRowAndNoOther) {
  for (const QuantType& quant : quant_types()) {
    for (const Precision precision : kPrecisions) {
      const ActivationFormat format = activation_format(quant.dtype, precision);
      const int64_t cols = test_cols(quant.dtype).back();
      const TestMatrix matrix = TestMatrix::random(quant.dtype, 20, cols, 71);
      auto x = random_rows(30, cols, 72);
      x[4][static_cast<size_t>(cols / 2)] = NAN;
      const TestActivations stored(Isa::kReference, format, x);
      for (const Isa isa : supported_isas()) {
        const auto out = multiply(isa, matrix.packed(), format, stored.rows());
        for (size_t i = 0; i < x.size(); ++i) {
          for (int row = 0; row < 20; ++row) {
            ASSERT_EQ(std::isnan(out[i][row]), i == 4)
                << label(isa, quant.dtype, precision, 20, cols, 30) << ", out[" << i << "][" << row << "]";
          }
        }
      }
    }
  }
}

TEST(Matmul, WritesOnlyTheRowsOfItsPanelsThatTheMatrixHas) {
  for (const QuantType& quant : quant_types()) {
    for (const Precision precision : kPrecisions) {
      const ActivationFormat format = activation_format(quant.dtype, precision);
      const int64_t cols = test_cols(quant.dtype).back();
      for (const int64_t rows : {33, 39, 41, 47}) {
        const TestMatrix matrix = TestMatrix::random(quant.dtype, rows, cols, 81);
        for (const int64_t num_rows : {1, 6, 20}) {
          const TestActivations stored(Isa::kReference, format, random_rows(num_rows, cols, 82));
          for (const Isa isa : supported_isas()) {
            std::vector<std::vector<float>> out(static_cast<size_t>(num_rows), std::vector<float>(64, -5.5f));
            std::vector<float*> pointers;
            for (auto& row : out) pointers.push_back(row.data());
            matmul(isa, matrix.packed(), format, stored.rows().data(), num_rows, 1, 3, pointers.data());
            for (const auto& row : out) {
              for (int64_t i = 0; i < 64; ++i) {
                ASSERT_EQ(row[i] == -5.5f, i < 16 || i >= rows)
                    << label(isa, quant.dtype, precision, rows, cols, num_rows) << ", element " << i;
              }
            }
          }
        }
      }
    }
  }
}

TEST(Matmul, PanelsMayAlternateWithThoseOfAnotherMatrix) {
  for (const QuantType& quant : quant_types()) {
    for (const Precision precision : kPrecisions) {
      const ActivationFormat format = activation_format(quant.dtype, precision);
      const int64_t cols = test_cols(quant.dtype).back();
      const TestMatrix dense = TestMatrix::random(quant.dtype, 70, cols, 91);
      const TestMatrix spaced = TestMatrix::random(quant.dtype, 70, cols, 91, 1);
      for (const int64_t num_rows : {1, 6, 20}) {
        const TestActivations stored(Isa::kReference, format, random_rows(num_rows, cols, 92));
        for (const Isa isa : supported_isas()) {
          ASSERT_EQ(multiply(isa, spaced.packed(), format, stored.rows()),
                    multiply(isa, dense.packed(), format, stored.rows()))
              << label(isa, quant.dtype, precision, 70, cols, num_rows);
        }
      }
    }
  }
}

TEST(Matmul, NoRowsOrNoPanelsIsNoWork) {
  const TestMatrix matrix = TestMatrix::random(DType::kQ4_K, 20, 256, 1);
  matmul(Isa::kReference, matrix.packed(), ActivationFormat::kInt8Per256, nullptr, 0, 0, 2, nullptr);
  const TestActivations stored(Isa::kReference, ActivationFormat::kInt8Per256, random_rows(1, 256, 2));
  matmul(Isa::kReference, matrix.packed(), ActivationFormat::kInt8Per256, stored.rows().data(), 1, 2, 2, nullptr);
}

TEST(MatmulDeathTest, RefusesActivationsInAFormatThatTheWeightsDoNotMultiply) {
  const TestMatrix matrix = TestMatrix::random(DType::kQ4_K, 20, 256, 1);
  const TestActivations stored(Isa::kReference, ActivationFormat::kInt8Per32, random_rows(1, 256, 2));
  EXPECT_DEATH(multiply(Isa::kReference, matrix.packed(), ActivationFormat::kInt8Per32, stored.rows()),
               "no product of Q4_K weights");
  EXPECT_DEATH(panel_bytes(DType::kQ4_K, 300), "300 columns are not a multiple of Q4_K's block of 256");
}

}  // namespace
}  // namespace witan
