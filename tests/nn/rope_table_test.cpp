#include "nn/rope_table.h"

#include <gtest/gtest.h>

#include <cmath>

namespace witan {
namespace {

TEST(RopeTableTest, AnglesArePositionTimesThetaToTheMinusTwoIOverDim) {
  const RopeTable table({.layout = RopeLayout::kHalves, .dim = 8, .theta = 10000.0, .yarn = std::nullopt});
  float cos[4];
  float sin[4];
  table.angles(3, cos, sin);
  for (int i = 0; i < 4; ++i) {
    const double angle = 3.0 * std::pow(10000.0, -2.0 * i / 8.0);
    EXPECT_FLOAT_EQ(cos[i], static_cast<float>(std::cos(angle)));
    EXPECT_FLOAT_EQ(sin[i], static_cast<float>(std::sin(angle)));
  }
}

// DeepSeek-V2: dim 64, base 10000, factor 40, original context 4096: dimensions up to 10 keep their frequency, from 23
// on it is divided by the factor, between it changes linearly.
TEST(RopeTableTest, YarnInterpolatesBetweenTheCorrectionDimensions) {
  const RopeTable plain({.layout = RopeLayout::kPairs, .dim = 64, .theta = 10000.0, .yarn = std::nullopt});
  const RopeTable yarn({.layout = RopeLayout::kPairs,
                        .dim = 64,
                        .theta = 10000.0,
                        .yarn = YarnScaling{.factor = 40.0, .original_context = 4096, .attention_factor = 1.5}});
  for (int i = 0; i < 32; ++i) {
    const double ratio = yarn.frequencies()[i] / plain.frequencies()[i];
    const double ramp = i <= 10 ? 0.0 : i >= 23 ? 1.0 : (i - 10) / 13.0;
    EXPECT_NEAR(ratio, 1.0 - ramp + ramp / 40.0, 1e-12) << i;
  }
  float cos[32];
  float sin[32];
  yarn.angles(0, cos, sin);
  EXPECT_FLOAT_EQ(cos[0], 1.5f);
}

// gpt-oss: dim 64, base 150000, factor 32, no rounding of the range: it is 8.0928 to 17.398.
TEST(RopeTableTest, YarnWithoutTruncationUsesTheFractionalRange) {
  const RopeTable plain({.layout = RopeLayout::kHalves, .dim = 64, .theta = 150000.0, .yarn = std::nullopt});
  const RopeTable yarn({.layout = RopeLayout::kHalves,
                        .dim = 64,
                        .theta = 150000.0,
                        .yarn = YarnScaling{.factor = 32.0, .original_context = 4096, .truncate = false}});
  const double ramp = (12 - 8.0928) / (17.398 - 8.0928);
  EXPECT_NEAR(yarn.frequencies()[12] / plain.frequencies()[12], 1.0 - ramp + ramp / 32.0, 1e-4);
  EXPECT_DOUBLE_EQ(yarn.frequencies()[8], plain.frequencies()[8]);
}

}  // namespace
}  // namespace witan
