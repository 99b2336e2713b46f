#include "kernels/rope/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/supported_isas.h"
#include "tensor/random_bits.h"

namespace witan {
namespace {

struct RopeCase {
  std::vector<float> cos;
  std::vector<float> sin;
  std::vector<float> x;

  explicit RopeCase(int64_t dim) {
    RandomBits random(static_cast<uint64_t>(dim));
    for (int64_t i = 0; i < dim / 2; ++i) {
      const float angle = 3.2f * random.next_signed_unit();
      cos.push_back(std::cos(angle));
      sin.push_back(std::sin(angle));
    }
    for (int64_t i = 0; i < dim; ++i) x.push_back(4.0f * random.next_signed_unit());
  }
};

TEST(Rope, RotatesTheComponentsThatTheLayoutPairs) {
  // A quarter turn takes (a, b) to (-b, a).
  const std::vector<float> cos(3, 0.0f);
  const std::vector<float> sin(3, 1.0f);
  for (Isa isa : test::supported_isas()) {
    std::vector<float> x = {1, 2, 3, 4, 5, 6};
    rope(isa, RopeLayout::kHalves, cos.data(), sin.data(), 6, x.data());
    EXPECT_EQ(x, (std::vector<float>{-4, -5, -6, 1, 2, 3})) << isa_name(isa);
    x = {1, 2, 3, 4, 5, 6};
    rope(isa, RopeLayout::kPairs, cos.data(), sin.data(), 6, x.data());
    EXPECT_EQ(x, (std::vector<float>{-2, 1, -4, 3, -6, 5})) << isa_name(isa);
  }
}

TEST(Rope, MatchesTheReferenceForAnyEvenDimAndTouchesNothingElse) {
  for (Isa isa : test::supported_isas()) {
    for (RopeLayout layout : {RopeLayout::kHalves, RopeLayout::kPairs}) {
      for (int64_t dim : {0, 2, 4, 6, 8, 10, 14, 16, 18, 20, 30, 32, 34, 48, 64, 80, 96, 126, 128, 192, 256}) {
        const RopeCase input(dim);
        std::vector<float> expected = input.x;
        rope(Isa::kReference, layout, input.cos.data(), input.sin.data(), dim, expected.data());
        std::vector<float> x = input.x;
        x.push_back(7.0f);
        rope(isa, layout, input.cos.data(), input.sin.data(), dim, x.data());
        EXPECT_EQ(x.back(), 7.0f);
        for (size_t i = 0; i < expected.size(); ++i) {
          // A rounded product and a rounded fma of terms of at most 4 each.
          const double tolerance = std::numeric_limits<float>::epsilon() * (4.0 + std::fabs(expected[i]));
          EXPECT_NEAR(x[i], expected[i], tolerance) << isa_name(isa) << " dim " << dim << " component " << i;
        }
      }
    }
  }
}

TEST(Rope, AComponentDoesNotDependOnTheDimAfterIt) {
  const RopeCase input(128);
  for (Isa isa : test::supported_isas()) {
    std::vector<float> whole = input.x;
    rope(isa, RopeLayout::kPairs, input.cos.data(), input.sin.data(), 128, whole.data());
    for (int64_t dim = 2; dim < 128; dim += 2) {
      std::vector<float> part = input.x;
      rope(isa, RopeLayout::kPairs, input.cos.data(), input.sin.data(), dim, part.data());
      for (size_t i = 0; i < 128; ++i) {
        ASSERT_EQ(part[i], i < static_cast<size_t>(dim) ? whole[i] : input.x[i]) << isa_name(isa) << " dim " << dim;
      }
    }
  }
}

}  // namespace
}  // namespace witan
