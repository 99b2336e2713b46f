#include "kernels/norm/norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/supported_isas.h"
#include "tensor/random_bits.h"

namespace witan {
namespace {

constexpr double kEps = std::numeric_limits<float>::epsilon();

std::vector<float> random_floats(int64_t n, float magnitude, uint64_t seed) {
  RandomBits random(seed);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& v : values) v = magnitude * random.next_signed_unit();
  return values;
}

TEST(RmsNorm, MatchesTheReferenceAtAnyLength) {
  for (Isa isa : test::supported_isas()) {
    for (int64_t n : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 128, 576, 1000, 2048, 5120}) {
      const std::vector<float> x = random_floats(n, 3.0f, 1);
      const std::vector<float> weight = random_floats(n, 2.0f, 2);
      std::vector<float> expected(x.size());
      std::vector<float> out(x.size());
      rms_norm(Isa::kReference, x.data(), weight.data(), 1e-6f, n, expected.data());
      rms_norm(isa, x.data(), weight.data(), 1e-6f, n, out.data());
      for (size_t i = 0; i < x.size(); ++i) {
        // The scale and two products are rounded, half an epsilon each, and the reference once.
        EXPECT_NEAR(out[i], expected[i], 2.1 * kEps * std::fabs(expected[i]))
            << isa_name(isa) << " n " << n << " " << i;
      }
    }
  }
}

TEST(RmsNorm, DoesNotDependOnAlignmentAndWorksInPlace) {
  for (Isa isa : test::supported_isas()) {
    for (int64_t n : {5, 16, 100, 513}) {
      const std::vector<float> x = random_floats(n, 1.0f, 3);
      const std::vector<float> weight = random_floats(n, 1.0f, 4);
      std::vector<float> expected(x.size());
      rms_norm(isa, x.data(), weight.data(), 1e-5f, n, expected.data());
      for (size_t offset = 1; offset < 16; ++offset) {
        std::vector<float> moved(x.size() + 16, 7.0f);
        std::memcpy(moved.data() + offset, x.data(), x.size() * sizeof(float));
        rms_norm(isa, moved.data() + offset, weight.data(), 1e-5f, n, moved.data() + offset);
        ASSERT_EQ(std::memcmp(moved.data() + offset, expected.data(), x.size() * sizeof(float)), 0) << isa_name(isa);
        EXPECT_EQ(moved[offset - 1], 7.0f);
        EXPECT_EQ(moved[offset + x.size()], 7.0f);
      }
    }
  }
}

TEST(RmsNorm, SquaresThatOverflowAFloatAreFine) {
  for (Isa isa : test::supported_isas()) {
    for (float magnitude : {1e30f, 1e-30f, 0.0f}) {
      std::vector<float> x(24, magnitude);
      const std::vector<float> weight(24, 1.0f);
      rms_norm(isa, x.data(), weight.data(), 1e-6f, 24, x.data());
      const float expected = magnitude == 1e30f ? 1.0f : magnitude * 1e3f;
      for (float v : x) EXPECT_NEAR(v, expected, 1e-6f * expected) << isa_name(isa) << " of " << magnitude;
    }
  }
}

}  // namespace
}  // namespace witan
