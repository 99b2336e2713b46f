#include "kernels/elementwise/elementwise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/supported_isas.h"
#include "support/special_floats.h"
#include "tensor/random_bits.h"

namespace witan {
namespace {

constexpr double kEps = std::numeric_limits<float>::epsilon();
using test::kInfinity;
using test::kNaN;
constexpr int64_t kLengths[] = {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 60, 64, 100, 128, 256, 1000};

std::vector<float> random_floats(int64_t n, float magnitude, uint64_t seed) {
  RandomBits random(seed);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& v : values) v = magnitude * random.next_signed_unit();
  return values;
}

TEST(Swiglu, MatchesTheReference) {
  for (Isa isa : test::supported_isas()) {
    for (float magnitude : {1.0f, 10.0f, 120.0f}) {
      for (int64_t n : kLengths) {
        const std::vector<float> gate = random_floats(n, magnitude, 5);
        const std::vector<float> up = random_floats(n, 3.0f, 6);
        std::vector<float> expected(gate.size());
        std::vector<float> out(gate.size());
        swiglu(Isa::kReference, gate.data(), up.data(), n, expected.data());
        swiglu(isa, gate.data(), up.data(), n, out.data());
        for (size_t i = 0; i < gate.size(); ++i) {
          // exp within an ulp, then four roundings; and exp is 0 below 1.2e-38.
          EXPECT_NEAR(out[i], expected[i], 4.0 * kEps * std::fabs(expected[i]) + 1e-35)
              << isa_name(isa) << " " << gate[i];
        }
      }
    }
  }
}

TEST(Swiglu, MayOverwriteEitherInput) {
  for (Isa isa : test::supported_isas()) {
    const std::vector<float> gate = random_floats(37, 4.0f, 7);
    const std::vector<float> up = random_floats(37, 4.0f, 8);
    std::vector<float> expected(37);
    swiglu(isa, gate.data(), up.data(), 37, expected.data());
    std::vector<float> over_gate = gate;
    swiglu(isa, over_gate.data(), up.data(), 37, over_gate.data());
    EXPECT_EQ(over_gate, expected);
    std::vector<float> over_up = up;
    swiglu(isa, gate.data(), over_up.data(), 37, over_up.data());
    EXPECT_EQ(over_up, expected);
  }
}

TEST(Swiglu, ExtremeGatesGiveTheLimits) {
  const std::vector<float> gate = {1e30f, -1e30f, 1e38f, -1e38f, kInfinity, 0.0f, -0.0f, 89.0f, -89.0f};
  const std::vector<float> up(gate.size(), 1.0f);
  const std::vector<float> expected = {1e30f, 0.0f, 1e38f, 0.0f, kInfinity, 0.0f, 0.0f, 89.0f, 0.0f};
  for (Isa isa : test::supported_isas()) {
    std::vector<float> out(gate.size());
    swiglu(isa, gate.data(), up.data(), static_cast<int64_t>(gate.size()), out.data());
    for (size_t i = 0; i < gate.size(); ++i) {
      if (std::isinf(expected[i])) {
        EXPECT_EQ(out[i], expected[i]) << isa_name(isa);
      } else {
        EXPECT_NEAR(out[i], expected[i], 1e-7f * expected[i] + 1e-35f) << isa_name(isa) << " of " << gate[i];
      }
    }
  }
}

TEST(Swiglu, AnElementHasTheSameBitsAtAnyPlace) {
  for (Isa isa : test::supported_isas()) {
    const std::vector<float> gate = random_floats(50, 20.0f, 9);
    const std::vector<float> up = random_floats(50, 2.0f, 10);
    std::vector<float> whole(50);
    swiglu(isa, gate.data(), up.data(), 50, whole.data());
    for (size_t i = 0; i < 50; ++i) {
      float one = 0.0f;
      swiglu(isa, &gate[i], &up[i], 1, &one);
      EXPECT_EQ(one, whole[i]) << isa_name(isa);
    }
  }
}

TEST(ClampedSwiglu, MatchesTheReferenceOnBothSidesOfTheLimit) {
  for (Isa isa : test::supported_isas()) {
    for (int64_t n : kLengths) {
      const std::vector<float> gate = random_floats(n, 12.0f, 17);
      const std::vector<float> up = random_floats(n, 12.0f, 18);
      std::vector<float> out(gate.size());
      clamped_swiglu(isa, gate.data(), up.data(), n, 7.0f, out.data());
      for (size_t i = 0; i < gate.size(); ++i) {
        const double g = std::min(static_cast<double>(gate[i]), 7.0);
        const double u = std::clamp(static_cast<double>(up[i]), -7.0, 7.0);
        const double expected = (u + 1.0) * g / (1.0 + std::exp(-1.702 * g));
        // 1.702 g is rounded before it is an exponent; u + 1 may cancel.
        EXPECT_NEAR(out[i], expected, 24.0 * kEps * (std::fabs(expected) + std::fabs(g))) << isa_name(isa) << gate[i];
      }
    }
  }
}

TEST(ClampedSwiglu, MayOverwriteItsInputAndDoesNotHideNaN) {
  for (Isa isa : test::supported_isas()) {
    std::vector<float> gate = random_floats(21, 9.0f, 19);
    const std::vector<float> up = random_floats(21, 9.0f, 20);
    gate[4] = kNaN;
    std::vector<float> expected(21);
    clamped_swiglu(isa, gate.data(), up.data(), 21, 7.0f, expected.data());
    clamped_swiglu(isa, gate.data(), up.data(), 21, 7.0f, gate.data());
    EXPECT_TRUE(std::isnan(gate[4])) << isa_name(isa);
    gate[4] = expected[4] = 0.0f;
    EXPECT_EQ(gate, expected) << isa_name(isa);
  }
}

TEST(ReluAndClamp, AreExactOnEveryInstructionSet) {
  for (Isa isa : test::supported_isas()) {
    for (int64_t n : kLengths) {
      std::vector<float> x = random_floats(n, 4.0f, 21);
      std::vector<float> clamped = x;
      std::vector<float> expected_relu = x;
      std::vector<float> expected_clamp = x;
      for (float& v : expected_relu) v = std::max(v, 0.0f);
      for (float& v : expected_clamp) v = std::clamp(v, -1.5f, 1.5f);
      for (auto* values : {&x, &clamped, &expected_relu, &expected_clamp}) values->push_back(-9.0f);
      relu(isa, n, x.data());
      clamp(isa, 1.5f, n, clamped.data());
      EXPECT_EQ(x, expected_relu) << isa_name(isa);
      EXPECT_EQ(clamped, expected_clamp) << isa_name(isa);
    }
  }
}

TEST(Add, IsExactOnEveryInstructionSet) {
  for (Isa isa : test::supported_isas()) {
    for (int64_t n : kLengths) {
      const std::vector<float> x = random_floats(n, 1.0f, 11);
      std::vector<float> y = random_floats(n, 100.0f, 12);
      std::vector<float> expected = y;
      for (size_t i = 0; i < x.size(); ++i) expected[i] += x[i];
      y.push_back(7.0f);
      expected.push_back(7.0f);
      add(isa, x.data(), n, y.data());
      EXPECT_EQ(y, expected) << isa_name(isa) << " n " << n;
    }
  }
}

TEST(Axpy, IsOneFmaPerElementOnEveryInstructionSet) {
  for (Isa isa : test::supported_isas()) {
    for (int64_t n : kLengths) {
      const std::vector<float> x = random_floats(n, 1.0f, 13);
      std::vector<float> y = random_floats(n, 1.0f, 14);
      std::vector<float> expected = y;
      for (size_t i = 0; i < x.size(); ++i) expected[i] = std::fma(0.7f, x[i], expected[i]);
      y.push_back(7.0f);
      expected.push_back(7.0f);
      axpy(isa, 0.7f, x.data(), n, y.data());
      EXPECT_EQ(y, expected) << isa_name(isa) << " n " << n;
    }
  }
}

TEST(Softmax, MatchesTheReference) {
  for (Isa isa : test::supported_isas()) {
    for (float magnitude : {1.0f, 30.0f, 200.0f}) {
      for (int64_t n : kLengths) {
        std::vector<float> x = random_floats(n, magnitude, 15);
        std::vector<float> expected = x;
        softmax(Isa::kReference, n, expected.data());
        x.push_back(7.0f);
        softmax(isa, n, x.data());
        EXPECT_EQ(x.back(), 7.0f);
        for (size_t i = 0; i < expected.size(); ++i) {
          // x - max is rounded (it is the exponent: its error is relative in the result), then exp, division, and a sum
          // whose lanes add n / 8 terms each.
          const double relative = kEps * (magnitude + 4.0 + static_cast<double>(n) / 8.0);
          EXPECT_NEAR(x[i], expected[i], relative * static_cast<double>(expected[i]) + 1e-37)
              << isa_name(isa) << " n " << n;
        }
      }
    }
  }
}

TEST(Softmax, EqualLogitsHaveEqualBitsWhereverTheyStand) {
  for (Isa isa : test::supported_isas()) {
    for (int64_t n : {9, 40, 60, 129}) {
      std::vector<float> x = random_floats(n, 3.0f, 16);
      x.front() = x.back() = x[static_cast<size_t>(n / 2)] = 1.25f;
      softmax(isa, n, x.data());
      EXPECT_EQ(x.front(), x.back()) << isa_name(isa);
      EXPECT_EQ(x.front(), x[static_cast<size_t>(n / 2)]) << isa_name(isa);
    }
  }
}

TEST(Softmax, ExtremeLogitsAreSane) {
  for (Isa isa : test::supported_isas()) {
    std::vector<float> x(21, -kInfinity);
    x[3] = 1e30f;
    x[4] = -1e30f;
    x[20] = 1e30f;
    softmax(isa, 21, x.data());
    std::vector<float> expected(21, 0.0f);
    expected[3] = expected[20] = 0.5f;
    EXPECT_EQ(x, expected) << isa_name(isa);

    x.assign(21, -1e30f);
    softmax(isa, 21, x.data());
    for (float p : x) EXPECT_NEAR(p, 1.0 / 21.0, 1e-8) << isa_name(isa);

    x.assign(21, -kInfinity);
    softmax(isa, 21, x.data());
    EXPECT_EQ(x, std::vector<float>(21, 0.0f)) << isa_name(isa);
  }
}

TEST(Softmax, ANaNIsNotHidden) {
  for (Isa isa : test::supported_isas()) {
    for (size_t at : {size_t{0}, size_t{5}, size_t{18}}) {
      for (float other : {1.0f, -kInfinity}) {
        std::vector<float> x(19, other);
        x[at] = kNaN;
        softmax(isa, 19, x.data());
        EXPECT_TRUE(std::all_of(x.begin(), x.end(), [](float p) { return std::isnan(p); })) << isa_name(isa);
      }
    }
  }
}

TEST(Softmax, ExpIsWithinAnUlpOverItsWholeRange) {
  // softmax of (0, x) is (1 / (1 + e), e / (1 + e)); e is their quotient but for two roundings.
  for (Isa isa : test::supported_isas()) {
    if (isa == Isa::kReference) continue;
    for (float x = -86.0f; x < 0.0f; x += 0.0137f) {
      float p[2] = {0.0f, x};
      softmax(isa, 2, p);
      const double e = static_cast<double>(p[1]) / static_cast<double>(p[0]);
      const double expected = std::exp(static_cast<double>(x));
      ASSERT_NEAR(e / expected, 1.0, 2.0 * kEps) << isa_name(isa) << " exp " << x;
    }
  }
}

}  // namespace
}  // namespace witan
