#include "tensor/quant_type.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "support/goldens.h"
#include "tensor/half.h"
#include "tensor/random_bits.h"

namespace witan {
namespace {

constexpr int64_t kNumRows = 2;  // of every golden
constexpr int64_t kRowLength = 1024;

// Types that ggml does not have, so that there is no golden.
bool has_golden(const QuantType& type) { return type.ggml_id != kNoGgmlId; }

std::string golden_path(const std::string& name) {
  const auto path = test::find_golden("quants/" + name);
  EXPECT_TRUE(path.has_value()) << name;
  return path.value_or("");
}

// The bytes, and the values ggml decodes from them. F32 has no golden files of its own: its bytes are the source's.
struct Golden {
  std::vector<std::byte> bytes;
  std::vector<float> values;
};
Golden read_golden(const QuantType& type) {
  const std::string name(type.name);
  const bool is_source = type.dtype == DType::kF32;
  return {.bytes = test::read_array<std::byte>(golden_path(is_source ? "source.f32" : name + ".bin")),
          .values = test::read_array<float>(golden_path(is_source ? "source.f32" : name + ".f32"))};
}

std::vector<std::byte> random_row(const QuantType& type, uint64_t seed, float stddev, int64_t num_elements) {
  std::vector<std::byte> row(type.row_bytes(num_elements));
  type.random(seed, stddev, row.data(), num_elements);
  return row;
}

std::vector<float> decode(const QuantType& type, const std::vector<std::byte>& row, int64_t num_elements) {
  std::vector<float> values(num_elements);
  type.decode(row.data(), values.data(), num_elements);
  return values;
}

double standard_deviation(const std::vector<float>& values) {
  double sum_squares = 0;
  for (const float value : values) sum_squares += static_cast<double>(value) * value;
  return std::sqrt(sum_squares / static_cast<double>(values.size()));
}

double mean(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

class EveryType : public testing::TestWithParam<QuantType> {};

TEST_P(EveryType, DecodesGoldensBitForBit) {
  const QuantType& type = GetParam();
  if (!has_golden(type)) GTEST_SKIP() << "ggml does not have it";
  const Golden golden = read_golden(type);
  ASSERT_EQ(static_cast<int64_t>(golden.bytes.size()), kNumRows * type.row_bytes(kRowLength));
  const std::vector<float> values = decode(type, golden.bytes, kNumRows * kRowLength);
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), std::bit_cast<uint32_t>(golden.values[i])) << i;
  }
}

TEST_P(EveryType, EncodesTheSourceToTheGoldensBytes) {
  const QuantType& type = GetParam();
  if (!has_golden(type) || !type.can_encode()) GTEST_SKIP() << "Witan does not write it";
  const auto source = test::read_array<float>(golden_path("source.f32"));
  const Golden golden = read_golden(type);
  std::vector<std::byte> bytes(golden.bytes.size(), std::byte{0x5a});
  for (int64_t row = 0; row < kNumRows; ++row) {
    type.encode(source.data() + row * kRowLength, bytes.data() + row * type.row_bytes(kRowLength), kRowLength);
  }
  int num_different = 0;
  for (size_t i = 0; i < bytes.size(); ++i) num_different += bytes[i] != golden.bytes[i] ? 1 : 0;
  EXPECT_EQ(num_different, 0);
}

TEST_P(EveryType, DotEqualsTheGoldensSum) {
  const QuantType& type = GetParam();
  if (type.dtype == DType::kF32 || !has_golden(type)) GTEST_SKIP() << "the manifest does not have it";
  const auto manifest = nlohmann::json::parse(test::read_file(golden_path("manifest.json")));
  const auto expected = manifest["types"][std::string(type.name)]["dot_f64"].get<std::vector<double>>();
  const auto vec = test::read_array<float>(golden_path("vec.f32"));
  const Golden golden = read_golden(type);
  for (int64_t row = 0; row < kNumRows; ++row) {
    const double dot = type.dot(golden.bytes.data() + row * type.row_bytes(kRowLength), vec.data(), kRowLength);
    EXPECT_NEAR(dot, expected[row], 1e-9 * std::fabs(expected[row]));
  }
}

TEST_P(EveryType, RowOfTheTableAgreesWithTheManifest) {
  const QuantType& type = GetParam();
  if (type.dtype == DType::kF32 || !has_golden(type)) GTEST_SKIP() << "the manifest does not have it";
  const auto manifest = nlohmann::json::parse(test::read_file(golden_path("manifest.json")));
  const auto& entry = manifest["types"][std::string(type.name)];
  EXPECT_EQ(type.ggml_id, entry["ggml_type"].get<uint32_t>());
  EXPECT_EQ(type.block_size, entry["block_size"].get<int>());
  EXPECT_EQ(type.block_bytes, entry["block_bytes"].get<int>());
  EXPECT_EQ(type.row_bytes(kRowLength), entry["row_bytes"].get<int64_t>());
}

TEST_P(EveryType, IsFoundByEachOfItsNames) {
  const QuantType& type = GetParam();
  EXPECT_EQ(&quant_type(type.dtype), &quant_types()[static_cast<size_t>(type.dtype)]);
  if (has_golden(type)) {
    EXPECT_EQ(dtype_from_ggml_id(type.ggml_id), type.dtype);
  }
  EXPECT_EQ(dtype_from_name(type.name), type.dtype);
  std::string lower(type.name);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  EXPECT_EQ(dtype_from_name(lower), type.dtype);
  if (!type.safetensors.empty()) {
    EXPECT_EQ(dtype_from_safetensors(type.safetensors), type.dtype);
  }
}

TEST_P(EveryType, DotOfOneBlockAndOfAnOddNumberOfBlocksEqualsItsOwnDecode) {
  const QuantType& type = GetParam();
  RandomBits bits(11);
  for (const int64_t num_blocks : {1, 3, 7}) {
    const int64_t num_elements = num_blocks * type.block_size;
    const auto row = random_row(type, 3, 1.0f, num_elements);
    const auto values = decode(type, row, num_elements);
    std::vector<float> x(num_elements);
    double expected = 0;
    double sum_magnitudes = 0;
    for (int64_t i = 0; i < num_elements; ++i) {
      x[i] = bits.next_signed_unit();
      expected += static_cast<double>(values[i]) * x[i];
      sum_magnitudes += std::fabs(static_cast<double>(values[i]) * x[i]);
    }
    EXPECT_NEAR(type.dot(row.data(), x.data(), num_elements), expected, 1e-12 * sum_magnitudes);
  }
}

TEST_P(EveryType, EncodingLosesNoMoreThanTheFormatsPrecision) {
  const QuantType& type = GetParam();
  if (!type.can_encode()) GTEST_SKIP() << "Witan does not write it";
  // Root mean square error over deviation: a uniform error of one step of the format, which is at most 2^-10 or 2^-7
  // of the value, or sqrt(3) deviations over half the number of levels (of MXFP4 the largest step, 2 of 6, since the
  // scale may leave the last unused), and a fifth more.
  const std::map<DType, double> steps = {
      {DType::kF32, 0},          {DType::kF16, 0x1p-10},      {DType::kBF16, 0x1p-7},    {DType::kQ8_0, 1.73 / 127},
      {DType::kQ4_0, 1.73 / 8},  {DType::kQ4_K, 1.73 / 7.5},  {DType::kQ5_K, 1.73 / 15}, {DType::kQ4_1, 1.73 / 7.5},
      {DType::kQ5_0, 1.73 / 16}, {DType::kQ5_1, 1.73 / 15.5}, {DType::kQ6_K, 1.73 / 32}, {DType::kMXFP4, 1.73 / 3}};
  const double tolerance = 1.2 * steps.at(type.dtype) / std::sqrt(12.0);
  constexpr int64_t kNumElements = 4096;
  std::vector<float> source(kNumElements);
  quant_type(DType::kF32).random(17, 0.7f, reinterpret_cast<std::byte*>(source.data()), kNumElements);
  std::vector<std::byte> row(type.row_bytes(kNumElements));
  type.encode(source.data(), row.data(), kNumElements);
  std::vector<float> errors = decode(type, row, kNumElements);
  for (int64_t i = 0; i < kNumElements; ++i) errors[i] -= source[i];
  EXPECT_LE(standard_deviation(errors), tolerance * 0.7);
}

TEST_P(EveryType, ZerosAndConstantsAndTinyValuesEncodeToFiniteValues) {
  const QuantType& type = GetParam();
  if (!type.can_encode()) GTEST_SKIP() << "Witan does not write it";
  for (const float value : {0.0f, 1.0f, -1.0f, 1e-20f, -1e-30f, 1e-42f}) {
    const std::vector<float> source(256, value);
    std::vector<std::byte> row(type.row_bytes(256));
    type.encode(source.data(), row.data(), 256);
    for (const float decoded : decode(type, row, 256)) ASSERT_NEAR(decoded, value, std::fabs(value) * 0.02 + 1e-7);
  }
}

TEST_P(EveryType, RandomRowsHaveMeanZeroAndTheDeviationAskedFor) {
  const QuantType& type = GetParam();
  constexpr int64_t kNumElements = 1 << 18;
  // The smallest a model needs: 1 / sqrt(16384); there the f16 scales of the k-quants are subnormal.
  for (const float stddev : {1.0f, 0.02f, 0.0078125f}) {
    const auto values = decode(type, random_row(type, 42, stddev, kNumElements), kNumElements);
    EXPECT_NEAR(standard_deviation(values), stddev, 0.015 * stddev);
    EXPECT_NEAR(mean(values), 0, 0.02 * stddev);
  }
}

TEST_P(EveryType, RandomRowsAreFixedByTheirSeed) {
  const QuantType& type = GetParam();
  EXPECT_EQ(random_row(type, 1, 0.1f, 1024), random_row(type, 1, 0.1f, 1024));
  EXPECT_NE(random_row(type, 1, 0.1f, 1024), random_row(type, 2, 0.1f, 1024));
}

TEST_P(EveryType, RandomRowsOfOneBlockStayInsideTheirBytes) {
  const QuantType& type = GetParam();
  const int64_t step = type.allows_partial_block ? 24 : type.block_size;
  for (int64_t num_elements = step; num_elements <= 5 * type.block_size; num_elements += step) {
    std::vector<std::byte> row(type.row_bytes(num_elements) + 8, std::byte{0xcc});
    type.random(9, 1.0f, row.data(), num_elements);
    for (int64_t i = type.row_bytes(num_elements); i < static_cast<int64_t>(row.size()); ++i) {
      ASSERT_EQ(row[i], std::byte{0xcc}) << num_elements;
    }
  }
}

// A kernel that mixes up sub-blocks must not get the right answer on random weights.
TEST_P(EveryType, RandomSubBlocksDiffer) {
  const QuantType& type = GetParam();
  if (type.block_size == 1) GTEST_SKIP() << "no blocks";
  constexpr int64_t kSubBlockSize = 32;
  // A block of Q2_K or Q3_K has one d and scales of few bits, those of MXFP4 are powers of two, a block of F8_E4M3 is
  // long.
  const std::map<DType, size_t> few = {{DType::kQ2_K, 6}, {DType::kQ3_K, 8}, {DType::kMXFP4, 2}, {DType::kF8_E4M3, 8}};
  const auto found = few.find(type.dtype);
  const size_t enough = found == few.end() ? 16 : found->second;
  const auto values = decode(type, random_row(type, 5, 1.0f, 1024), 1024);
  std::set<float> largest;
  for (int64_t begin = 0; begin < 1024; begin += kSubBlockSize) {
    float magnitude = 0;
    for (int64_t i = begin; i < begin + kSubBlockSize; ++i) magnitude = std::max(magnitude, std::fabs(values[i]));
    largest.insert(magnitude);
  }
  EXPECT_GE(largest.size(), enough) << "of 32";
}

INSTANTIATE_TEST_SUITE_P(Types, EveryType, testing::ValuesIn(quant_types().begin(), quant_types().end()),
                         [](const auto& type) { return std::string(type.param.name); });

TEST(QuantType, TableIsOrderedByDType) {
  ASSERT_EQ(quant_types().size(), static_cast<size_t>(kNumDTypes));
  for (int i = 0; i < kNumDTypes; ++i) EXPECT_EQ(quant_types()[i].dtype, static_cast<DType>(i));
}

TEST(QuantType, UnknownNamesAndIdsAreNotFound) {
  EXPECT_EQ(dtype_from_ggml_id(9), std::nullopt);  // Q8_1
  EXPECT_EQ(dtype_from_ggml_id(0xffffffff), std::nullopt);
  EXPECT_EQ(dtype_from_safetensors(""), std::nullopt);
  EXPECT_EQ(dtype_from_safetensors("I64"), std::nullopt);
  EXPECT_EQ(dtype_from_safetensors("f32"), std::nullopt);
  EXPECT_EQ(dtype_from_name(""), std::nullopt);
  EXPECT_EQ(dtype_from_name("Q4_"), std::nullopt);
  EXPECT_EQ(dtype_from_name("Q4_K_M"), std::nullopt);
}

// Worked by hand from the layout, so that encode and decode cannot be wrong together.
TEST(QuantType, Q4KBlockDecodesByItsLayout) {
  std::vector<std::byte> block(144, std::byte{0});
  const uint16_t scales[2] = {f32_to_f16(0.5f), f32_to_f16(0.25f)};
  std::memcpy(block.data(), scales, 4);
  block[4 + 1] = std::byte{0x80 | 5};    // s[1] = 5, high bits of s[5] = 2
  block[4 + 5] = std::byte{0x40 | 7};    // m[1] = 7, high bits of m[5] = 1
  block[4 + 9] = std::byte{0x3 | 0x90};  // s[5] = 0x23, m[5] = 0x19
  block[16 + 2] = std::byte{0xf0};       // sub-block 1, value 2
  block[16 + 64 + 4] = std::byte{0xa0};  // sub-block 5, value 4
  const auto values = decode(quant_type(DType::kQ4_K), block, 256);
  EXPECT_EQ(values[32 + 2], 0.5f * 5 * 15 - 0.25f * 7);
  EXPECT_EQ(values[32 + 3], -0.25f * 7);
  EXPECT_EQ(values[5 * 32 + 4], 0.5f * 0x23 * 10 - 0.25f * 0x19);
  EXPECT_EQ(values[0], 0.0f);
}

TEST(QuantType, Q6KBlockDecodesByItsLayout) {
  std::vector<std::byte> block(210, std::byte{0});
  const uint16_t d = f32_to_f16(0.5f);
  std::memcpy(block.data() + 208, &d, 2);
  block[192 + 15] = std::byte{0xfd};  // -3: the last sub-block's scale
  block[127] = std::byte{0x90};       // low bits of value 255
  block[191] = std::byte{0xc0};       // high bits of value 255
  const auto values = decode(quant_type(DType::kQ6_K), block, 256);
  EXPECT_EQ(values[255], 0.5f * -3 * (0x39 - 32));
  EXPECT_EQ(values[254], 0.5f * -3 * -32);
  EXPECT_EQ(values[0], 0.0f);
}

}  // namespace
}  // namespace witan
