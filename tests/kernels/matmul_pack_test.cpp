#include <gmock/gmock.h>

#include "kernels/matmul_fixture.h"

namespace witan {
namespace {

TEST(MatmulPack, PanelTakesTheFilesBytesRoundedUpToACacheLine) {
  EXPECT_EQ(panel_bytes(DType::kF32, 3), 192);
  EXPECT_EQ(panel_bytes(DType::kF16, 3), 128);   // 96 in the file
  EXPECT_EQ(panel_bytes(DType::kBF16, 5), 192);  // 160
  EXPECT_EQ(panel_bytes(DType::kQ8_0, 1408), 16 * 44 * 34);
  EXPECT_EQ(panel_bytes(DType::kQ8_0, 32), 576);  // 544
  EXPECT_EQ(panel_bytes(DType::kQ4_K, 2048), 16 * 8 * 144);
  EXPECT_EQ(panel_bytes(DType::kQ6_K, 768), 10112);  // 10080
  EXPECT_EQ(panel_bytes(DType::kF8_E4M3, 160), 16 * (160 + 8));
  EXPECT_EQ(panel_bytes(DType::kQ4_0, 96), 128 + 768);  // the scales are rounded up by themselves
  EXPECT_EQ(panel_bytes(DType::kMXFP4, 2880), 24512);   // 24480
  EXPECT_EQ(panel_bytes(DType::kQ5_K, 512), 16 * 2 * 176);
  EXPECT_EQ(panel_bytes(DType::kQ2_K, 512), 16 * 2 * 84);
  EXPECT_EQ(panel_bytes(DType::kQ3_K, 512), 16 * 2 * 110);
  EXPECT_EQ(panel_bytes(DType::kIQ4_XS, 512), 16 * 2 * 138);  // 16 * 2 * 136
}

// With the unit vectors as activations the exact product gives back every weight.
TEST(MatmulPack, PackedWeightsAreTheFilesBitForBitOnEveryInstructionSet) {
  for (const QuantType& quant : quant_types()) {
    for (const int64_t cols : test_cols(quant.dtype)) {
      if (cols > 600) continue;  // the test is quadratic
      std::vector<std::vector<float>> unit(static_cast<size_t>(cols), std::vector<float>(static_cast<size_t>(cols)));
      for (size_t k = 0; k < unit.size(); ++k) unit[k][k] = 1.0f;
      for (const int64_t rows : {3, 16, 37}) {
        const TestMatrix matrix = TestMatrix::random(quant.dtype, rows, cols, 7);
        const TestActivations x(Isa::kReference, ActivationFormat::kF32, unit);
        for (const Isa isa : supported_isas()) {
          const auto out = multiply(isa, matrix.packed(), ActivationFormat::kF32, x.rows());
          for (int64_t row = 0; row < rows; ++row) {
            std::vector<float> expected(static_cast<size_t>(cols));
            quant.decode(matrix.file_row(row), expected.data(), cols);
            std::vector<float> found;
            for (const auto& column : out) found.push_back(column[row]);
            ASSERT_THAT(found, testing::ElementsAreArray(expected))
                << label(isa, quant.dtype, Precision::kExact, rows, cols, cols) << ", row " << row;
          }
        }
      }
    }
  }
}

TEST(MatmulPack, UnpackedPanelsHaveTheFilesWeights) {
  for (const QuantType& quant : quant_types()) {
    for (const int64_t cols : test_cols(quant.dtype)) {
      const TestMatrix matrix = TestMatrix::random(quant.dtype, 21, cols, 13);
      for (const int64_t panel : {0, 1}) {
        std::vector<float> unpacked(static_cast<size_t>(cols * kPanelRows));
        unpack_panel(matrix.packed(), panel, unpacked.data());
        for (int64_t row = panel * kPanelRows; row < std::min<int64_t>(21, (panel + 1) * kPanelRows); ++row) {
          std::vector<float> expected(static_cast<size_t>(cols));
          quant.decode(matrix.file_row(row), expected.data(), cols);
          for (int64_t col = 0; col < cols; ++col) {
            ASSERT_EQ(unpacked[static_cast<size_t>(col * kPanelRows + row % kPanelRows)],
                      expected[static_cast<size_t>(col)])
                << quant.name << ", " << cols << " columns, row " << row << ", column " << col;
          }
        }
      }
    }
  }
}

TEST(MatmulPack, ReferenceProductIsQuantTypesDot) {
  for (const QuantType& quant : quant_types()) {
    for (const int64_t cols : test_cols(quant.dtype)) {
      const TestMatrix matrix = TestMatrix::random(quant.dtype, 21, cols, 11);
      const auto x = random_rows(1, cols, 12);
      const TestActivations stored(Isa::kReference, ActivationFormat::kF32, x);
      const auto out = multiply(Isa::kReference, matrix.packed(), ActivationFormat::kF32, stored.rows());
      for (int64_t row = 0; row < 21; ++row) {
        EXPECT_FLOAT_EQ(out[0][row], static_cast<float>(quant.dot(matrix.file_row(row), x[0].data(), cols)))
            << quant.name << ", " << cols << " columns, row " << row;
      }
    }
  }
}

TEST(MatmulPack, MissingRowsAreZerosWhateverThePanelHeld) {
  for (const QuantType& quant : quant_types()) {
    const int64_t cols = test_cols(quant.dtype).back();
    const TestMatrix matrix = TestMatrix::random(quant.dtype, 5, cols, 3);
    std::vector<const std::byte*> rows;
    for (int64_t row = 0; row < 5; ++row) rows.push_back(matrix.file_row(row));
    const int64_t bytes = panel_bytes(quant.dtype, cols);
    const AlignedBytes panel(bytes);
    std::fill(panel.data(), panel.data() + bytes, std::byte{0x5a});
    pack_panel(quant.dtype, cols, rows.data(), 5, panel.data());
    const PackedMatrix full = {
        .type = quant.dtype, .rows = 16, .cols = cols, .data = panel.data(), .panel_stride_bytes = bytes};
    const TestActivations x(Isa::kReference, ActivationFormat::kF32, random_rows(1, cols, 4));
    const auto out = multiply(Isa::kReference, full, ActivationFormat::kF32, x.rows());
    for (int row = 0; row < 16; ++row) EXPECT_EQ(out[0][row] == 0.0f, row >= 5) << quant.name << ", row " << row;
  }
}

}  // namespace
}  // namespace witan
