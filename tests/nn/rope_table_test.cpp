#include "nn/rope_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

namespace witan {
namespace {

TEST(RopeTableTest, AnglesArePositionTimesThetaToTheMinusTwoIOverDim) {
  const RopeTable table({.layout = RopeLayout::kHalves, .dim = 8, .theta = 10000.0});
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
  const RopeTable plain({.layout = RopeLayout::kPairs, .dim = 64, .theta = 10000.0});
  const RopeTable yarn({.layout = RopeLayout::kPairs,
                        .dim = 64,
                        .theta = 10000.0,
                        .scaling = YarnScaling{.factor = 40.0, .original_context = 4096, .attention_factor = 1.5}});
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

// What was rotated at one position and is rotated on by a distance is as it is at the position so much further on; the
// scale of YaRN comes in once.
TEST(RopeTableTest, RotatingOnIsRotatingAtThePositionFurtherOn) {
  const RopeScaling scalings[] = {{},
                                  LinearScaling{.factor = 4.0},
                                  YarnScaling{.factor = 40.0, .original_context = 4096, .attention_factor = 1.5},
                                  Llama3Scaling{.factor = 8.0, .original_context = 8192}};
  for (const RopeScaling& scaling : scalings) {
    for (const RopeLayout layout : {RopeLayout::kHalves, RopeLayout::kPairs}) {
      const RopeTable table({.layout = layout, .dim = 64, .theta = 10000.0, .scaling = scaling});
      ASSERT_TRUE(table.can_shift());
      for (const auto& [position, distance] : {std::pair{0, 77}, {130, 1}, {5000, 27000}, {12, 0}}) {
        float cos[32];
        float sin[32];
        std::vector<float> moved(64);
        for (size_t i = 0; i < moved.size(); ++i) moved[i] = std::sin(1.0f + static_cast<float>(i * i));
        std::vector<float> expected = moved;
        table.angles(position, cos, sin);
        rope(Isa::kReference, layout, cos, sin, 64, moved.data());
        table.shift_angles(distance, cos, sin);
        rope(Isa::kReference, layout, cos, sin, 64, moved.data());
        table.angles(position + distance, cos, sin);
        rope(Isa::kReference, layout, cos, sin, 64, expected.data());
        for (size_t i = 0; i < moved.size(); ++i) {
          EXPECT_NEAR(moved[i], expected[i], 1e-6) << scaling.index() << " " << position << "+" << distance;
        }
      }
    }
  }
}

TEST(RopeTableTest, ABaseThatDependsOnThePositionCannotBeRotatedOn) {
  const RopeTable table({.dim = 64, .scaling = DynamicScaling{.factor = 2.0, .original_context = 100}});
  EXPECT_FALSE(table.can_shift());
}

// gpt-oss: dim 64, base 150000, factor 32, no rounding of the range: it is 8.0928 to 17.398.
TEST(RopeTableTest, YarnWithoutTruncationUsesTheFractionalRange) {
  const RopeTable plain({.layout = RopeLayout::kHalves, .dim = 64, .theta = 150000.0});
  const RopeTable yarn({.layout = RopeLayout::kHalves,
                        .dim = 64,
                        .theta = 150000.0,
                        .scaling = YarnScaling{.factor = 32.0, .original_context = 4096, .truncate = false}});
  const double ramp = (12 - 8.0928) / (17.398 - 8.0928);
  EXPECT_NEAR(yarn.frequencies()[12] / plain.frequencies()[12], 1.0 - ramp + ramp / 32.0, 1e-4);
  EXPECT_DOUBLE_EQ(yarn.frequencies()[8], plain.frequencies()[8]);
}

TEST(RopeTableTest, LinearScalingDividesEveryFrequency) {
  const RopeTable plain({.dim = 16, .theta = 10000.0});
  const RopeTable linear({.dim = 16, .theta = 10000.0, .scaling = LinearScaling{.factor = 4.0}});
  for (int i = 0; i < 8; ++i) EXPECT_DOUBLE_EQ(linear.frequencies()[i], plain.frequencies()[i] / 4.0);
}

// Llama 3.1: wavelengths under 8192 / 4 are kept, those over 8192 / 1 are stretched by 8.
TEST(RopeTableTest, Llama3ScalingDependsOnTheWavelength) {
  const RopeTable plain({.dim = 128, .theta = 500000.0});
  const RopeTable scaled(
      {.dim = 128,
       .theta = 500000.0,
       .scaling =
           Llama3Scaling{.factor = 8.0, .low_freq_factor = 1.0, .high_freq_factor = 4.0, .original_context = 8192}});
  int between = 0;
  for (int i = 0; i < 64; ++i) {
    const double wavelength = 2.0 * 3.14159265358979323846 / plain.frequencies()[i];
    double expected = plain.frequencies()[i];
    if (wavelength > 8192.0) {
      expected /= 8.0;
    } else if (wavelength >= 8192.0 / 4.0) {
      const double smooth = (8192.0 / wavelength - 1.0) / 3.0;
      expected = (1.0 - smooth) * expected / 8.0 + smooth * expected;
      ++between;
    }
    EXPECT_NEAR(scaled.frequencies()[i] / expected, 1.0, 1e-12) << i;
  }
  EXPECT_GT(between, 0);
}

TEST(RopeTableTest, DynamicScalingChangesPositionsBeyondTheOriginalContextOnly) {
  const RopeTable plain({.dim = 8, .theta = 10000.0});
  const RopeTable dynamic(
      {.dim = 8, .theta = 10000.0, .scaling = DynamicScaling{.factor = 2.0, .original_context = 100}});
  for (const int position : {0, 50, 99, 100, 400}) {
    const double stretch = position < 100 ? 1.0 : 2.0 * (position + 1) / 100.0 - 1.0;
    const double theta = 10000.0 * std::pow(stretch, 8.0 / 6.0);
    float cos[4];
    float sin[4];
    dynamic.angles(position, cos, sin);
    for (int i = 0; i < 4; ++i) EXPECT_NEAR(sin[i], std::sin(position * std::pow(theta, -2.0 * i / 8.0)), 1e-6);
  }
}

TEST(RopeTableTest, FrequenciesCanBeDividedOneByOne) {
  const RopeTable plain({.dim = 4, .theta = 100.0});
  RopeTable divided({.dim = 4, .theta = 100.0});
  const float factors[] = {1.0f, 8.0f};
  divided.divide_frequencies(factors);
  EXPECT_DOUBLE_EQ(divided.frequencies()[0], plain.frequencies()[0]);
  EXPECT_DOUBLE_EQ(divided.frequencies()[1], plain.frequencies()[1] / 8.0);
}

}  // namespace
}  // namespace witan
