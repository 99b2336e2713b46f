#include <gmock/gmock.h>

#include <bit>
#include <cstring>
#include <numeric>

#include "kernels/matmul/layout.h"
#include "kernels/matmul_fixture.h"
#include "support/special_floats.h"
#include "tensor/half.h"

namespace witan {
namespace {

using test::kInfinity;
using test::kNaN;

std::vector<std::byte> store(Isa isa, ActivationFormat format, const std::vector<float>& x) {
  const int64_t bytes = activation_bytes(format, std::ssize(x));
  const AlignedBytes stored(bytes);
  std::fill(stored.data(), stored.data() + bytes, std::byte{0xa5});
  store_activations(isa, format, x.data(), std::ssize(x), stored.data());
  return {stored.data(), stored.data() + bytes};
}

// Rows of 1536 elements with one trouble each.
std::vector<std::vector<float>> hard_rows() {
  auto rows = random_rows(9, 1536, 21);
  std::fill(rows[1].begin(), rows[1].begin() + 300, 0.0f);
  rows[2][700] = kNaN;
  rows[2][100] = -kNaN;
  rows[3][40] = -kInfinity;
  for (float& value : rows[4]) value *= 1e-39f;  // subnormal
  for (float& value : rows[5]) value *= 1e38f;   // some overflow to infinity
  for (float& value : rows[6]) value = std::nearbyint(value * 40) + 0.5f;
  rows[6][0] = 127.0f;  // a scale of 1: the rest are ties
  for (float& value : rows[7]) value = -0.0f;
  for (size_t i = 0; i < rows[8].size(); ++i) rows[8][i] = std::bit_cast<float>(0x3f800000u + 0x1234u * uint32_t(i));
  return rows;
}

TEST(MatmulActivations, StoredBytesAreTheSameOnEveryInstructionSet) {
  const struct {
    ActivationFormat format;
    std::vector<size_t> cols;
  } cases[] = {
      {ActivationFormat::kBF16, {1, 2, 7, 16, 31, 33, 100, 1536}},
      {ActivationFormat::kInt8Per32, {32, 96, 256, 288, 1408, 1536}},
      {ActivationFormat::kInt8Per256, {256, 768, 1536}},
  };
  for (const auto& test : cases) {
    for (const auto& row : hard_rows()) {
      for (const size_t cols : test.cols) {
        const std::vector<float> x(row.begin(), row.begin() + static_cast<int64_t>(cols));
        const auto expected = store(Isa::kReference, test.format, x);
        for (const Isa isa : supported_isas()) {
          ASSERT_EQ(store(isa, test.format, x), expected)
              << isa_name(isa) << ", format " << static_cast<int>(test.format) << ", " << cols << " columns";
        }
      }
    }
  }
}

TEST(MatmulActivations, Bf16RoundsToNearestEvenAndPadsWithZeros) {
  const std::vector<float> x = {1.0f, 1.00390625f, 1.01171875f, -3.14159265f, kNaN};
  const auto bytes = store(Isa::kReference, ActivationFormat::kBF16, x);
  std::vector<uint16_t> stored(32);
  ASSERT_EQ(bytes.size(), 64u);
  std::memcpy(stored.data(), bytes.data(), 64);
  EXPECT_THAT(std::vector(stored.begin(), stored.begin() + 4), testing::ElementsAre(0x3f80, 0x3f80, 0x3f82, 0xc049));
  EXPECT_TRUE(std::isnan(bf16_to_f32(stored[4])));
  for (size_t i = 5; i < 32; ++i) EXPECT_EQ(stored[i], 0);
}

TEST(MatmulActivations, Int8ErrorIsAtMostHalfAStepOfItsBlock) {
  const auto x = random_rows(1, 1408, 5)[0];
  const auto per32 = store(Isa::kReference, ActivationFormat::kInt8Per32, x);
  const auto* groups = reinterpret_cast<const Int8Per32Group*>(per32.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const Int8Per32Group& group = groups[i / 256];
    const float scale = group.scale[i % 256 / 32];
    EXPECT_LE(std::abs(x[i] - scale * static_cast<float>(group.q[i % 256])), 0.5001f * scale);
  }
  const auto per256 = store(Isa::kReference, ActivationFormat::kInt8Per256, {x.begin(), x.begin() + 1280});
  const auto* blocks = reinterpret_cast<const Int8Per256Block*>(per256.data());
  for (size_t i = 0; i < 1280; ++i) {
    const Int8Per256Block& block = blocks[i / 256];
    EXPECT_LE(std::abs(x[i] - block.scale * static_cast<float>(block.q[i % 256])), 0.5001f * block.scale);
  }
}

TEST(MatmulActivations, BlockSumsAreThoseOfTheQuants) {
  const auto x = random_rows(1, 512, 6)[0];
  const auto per32 = store(Isa::kReference, ActivationFormat::kInt8Per32, x);
  const auto per256 = store(Isa::kReference, ActivationFormat::kInt8Per256, x);
  for (int64_t c = 0; c < 2; ++c) {
    const auto& group = reinterpret_cast<const Int8Per32Group*>(per32.data())[c];
    const auto& block = reinterpret_cast<const Int8Per256Block*>(per256.data())[c];
    for (int b = 0; b < 8; ++b) {
      EXPECT_EQ(group.offset[b], -128 * std::accumulate(group.q + 32 * b, group.q + 32 * b + 32, 0));
      EXPECT_EQ(block.sum[b], std::accumulate(block.q + 32 * b, block.q + 32 * b + 32, 0));
    }
    for (int b = 0; b < 16; ++b) {
      EXPECT_EQ(block.offset[b], -32 * std::accumulate(block.q + 16 * b, block.q + 16 * b + 16, 0));
    }
  }
}

TEST(MatmulActivations, ABlockWithAnInfinityHasScaleNaNAndATinyOneIsZero) {
  auto x = std::vector<float>(96, 1.0f);
  x[3] = kInfinity;
  std::fill(x.begin() + 32, x.begin() + 64, 1e-40f);
  const auto bytes = store(Isa::kReference, ActivationFormat::kInt8Per32, x);
  const auto& group = *reinterpret_cast<const Int8Per32Group*>(bytes.data());
  EXPECT_TRUE(std::isnan(group.scale[0]));
  EXPECT_EQ(group.scale[1], 0.0f);
  EXPECT_EQ(group.q[32], 0);
  EXPECT_EQ(group.scale[2], 1.0f / 127.0f);
  EXPECT_EQ(group.q[64], 127);
}

TEST(MatmulActivations, RowsTakeWholeCacheLines) {
  EXPECT_EQ(activation_bytes(ActivationFormat::kF32, 17), 128);
  EXPECT_EQ(activation_bytes(ActivationFormat::kBF16, 33), 128);
  EXPECT_EQ(activation_bytes(ActivationFormat::kInt8Per32, 1408), 6 * 384);
  EXPECT_EQ(activation_bytes(ActivationFormat::kInt8Per256, 2048), 8 * 384);
}

}  // namespace
}  // namespace witan
