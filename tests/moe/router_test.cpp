#include "moe/router.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

namespace witan {
namespace {

struct Route {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Route route_logits(const RouterSpec& spec, std::vector<float> logits) {
  Route result{std::vector<int32_t>(spec.top_k), std::vector<float>(spec.top_k)};
  route(Isa::kReference, spec, logits.data(), result.experts.data(), result.weights.data());
  return result;
}

TEST(RouterTest, ChoosesTheLargestProbabilitiesInDescendingOrder) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  for (const auto& [num_experts, top_k] : {std::pair{8, 2}, {60, 4}, {64, 6}, {128, 8}, {4, 4}, {1, 1}}) {
    for (int round = 0; round < 50; ++round) {
      std::vector<float> logits(num_experts);
      for (float& logit : logits) logit = normal(rng);
      std::vector<int32_t> order(num_experts);
      std::iota(order.begin(), order.end(), 0);
      std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
      order.resize(top_k);
      const Route actual = route_logits({.num_experts = num_experts, .top_k = top_k}, logits);
      EXPECT_EQ(actual.experts, order);
      double denominator = 0.0;
      for (const float logit : logits) denominator += std::exp(double{logit});
      for (int i = 0; i < top_k; ++i) {
        EXPECT_NEAR(actual.weights[i], std::exp(double{logits[order[i]]}) / denominator, 1e-6);
      }
    }
  }
}

TEST(RouterTest, TiesGoToTheLowerIndex) {
  EXPECT_EQ(route_logits({.num_experts = 5, .top_k = 3}, {1, 1, 1, 1, 1}).experts, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(route_logits({.num_experts = 5, .top_k = 3}, {0, 2, 1, 2, 1}).experts, (std::vector<int32_t>{1, 3, 2}));
}

TEST(RouterTest, NormalizedWeightsSumToTheScale) {
  const Route raw = route_logits({.num_experts = 6, .top_k = 2}, {0, 1, 2, 3, 4, 5});
  const Route normalized =
      route_logits({.num_experts = 6, .top_k = 2, .normalize = true, .scale = 2.5f}, {0, 1, 2, 3, 4, 5});
  EXPECT_NEAR(normalized.weights[0] + normalized.weights[1], 2.5f, 1e-6f);
  EXPECT_NEAR(normalized.weights[0] / normalized.weights[1], raw.weights[0] / raw.weights[1], 1e-5f);
  const Route scaled =
      route_logits({.num_experts = 6, .top_k = 2, .normalize = false, .scale = 16.0f}, {0, 1, 2, 3, 4, 5});
  EXPECT_NEAR(scaled.weights[0], 16.0f * raw.weights[0], 1e-5f);
}

TEST(RouterTest, LogitsThatAreNoNumbersStillNameExperts) {
  const float nan = std::nanf("");
  for (const int32_t expert : route_logits({.num_experts = 4, .top_k = 2}, {nan, nan, nan, nan}).experts) {
    EXPECT_TRUE(expert >= 0 && expert < 4) << expert;
  }
}

}  // namespace
}  // namespace witan
