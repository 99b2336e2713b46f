#include "moe/router.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

namespace witan {
namespace {

struct Route {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Route route_logits(const RouterSpec& spec, std::vector<float> logits, const float* bias = nullptr) {
  Route result{std::vector<int32_t>(spec.top_k), std::vector<float>(spec.top_k)};
  route(Isa::kReference, spec, bias, logits.data(), result.experts.data(), result.weights.data());
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

// Every way of routing that a model uses, against code that follows the papers step by step.
struct Variant {
  const char* name;
  RouterSpec spec;
  bool biased;
};

class RouterVariantTest : public testing::TestWithParam<Variant> {};

Route route_naively(const RouterSpec& spec, const std::vector<float>& logits, const std::vector<double>& bias) {
  const auto n = static_cast<size_t>(spec.num_experts);
  std::vector<double> scores(logits.begin(), logits.end());
  if (spec.scoring == RouterScoring::kSigmoid) {
    for (double& s : scores) s = 1.0 / (1.0 + std::exp(-s));
  } else if (spec.scoring == RouterScoring::kSoftmax) {
    double sum = 0.0;
    for (double& s : scores) sum += s = std::exp(s);
    for (double& s : scores) s /= sum;
  }
  std::vector<double> choice(n);
  for (size_t e = 0; e < n; ++e) choice[e] = scores[e] + bias[e];
  const size_t group_size = n / static_cast<size_t>(spec.num_groups);
  std::vector<std::pair<double, size_t>> groups;
  for (size_t g = 0; g < static_cast<size_t>(spec.num_groups); ++g) {
    std::vector<double> members(choice.begin() + static_cast<std::ptrdiff_t>(g * group_size),
                                choice.begin() + static_cast<std::ptrdiff_t>((g + 1) * group_size));
    std::ranges::sort(members, std::greater());
    groups.emplace_back(spec.group_score == GroupScore::kMax ? members[0] : members[0] + members[1], g);
  }
  std::ranges::stable_sort(groups, [](const auto& a, const auto& b) { return a.first > b.first; });
  groups.resize(static_cast<size_t>(spec.num_groups_used));
  std::vector<int32_t> order;
  for (size_t e = 0; e < n; ++e) {
    const bool allowed = std::ranges::any_of(groups, [&](const auto& g) { return g.second == e / group_size; });
    if (spec.num_groups == 1 || allowed) order.push_back(static_cast<int32_t>(e));
  }
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return choice[a] > choice[b]; });
  order.resize(static_cast<size_t>(spec.top_k));

  std::vector<double> weights;
  for (const int32_t e : order) {
    weights.push_back(spec.scoring == RouterScoring::kSoftmaxOfChosen ? std::exp(scores[e]) : scores[e]);
  }
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  Route route{order, {}};
  for (double w : weights) {
    if (spec.normalize || spec.scoring == RouterScoring::kSoftmaxOfChosen) w /= sum;
    route.weights.push_back(static_cast<float>(w * static_cast<double>(spec.scale)));
  }
  return route;
}

TEST_P(RouterVariantTest, FollowsItsDefinition) {
  const Variant& variant = GetParam();
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 300; ++round) {
    std::vector<float> logits(static_cast<size_t>(variant.spec.num_experts));
    std::vector<float> bias(logits.size(), 0.0f);
    for (float& logit : logits) logit = 2.0f * normal(rng);
    if (variant.biased) {
      for (float& b : bias) b = 0.3f * normal(rng) - 1.0f;  // mostly below 0: masked groups must not win by being 0
    }
    const Route expected = route_naively(variant.spec, logits, {bias.begin(), bias.end()});
    const Route actual = route_logits(variant.spec, logits, variant.biased ? bias.data() : nullptr);
    ASSERT_EQ(actual.experts, expected.experts) << "round " << round;
    for (size_t i = 0; i < actual.weights.size(); ++i) {
      ASSERT_NEAR(actual.weights[i], expected.weights[i], 2e-6f * std::max(1.0f, variant.spec.scale));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, RouterVariantTest,
    testing::Values(
        Variant{"Mixtral", {.num_experts = 8, .top_k = 2, .normalize = true}, false},
        Variant{"Qwen2Moe", {.num_experts = 60, .top_k = 4}, false},
        Variant{"DeepSeekV2",
                {.num_experts = 160, .top_k = 6, .scale = 16.0f, .num_groups = 8, .num_groups_used = 3},
                false},
        Variant{"DeepSeekV3",
                {.num_experts = 256,
                 .top_k = 8,
                 .scoring = RouterScoring::kSigmoid,
                 .normalize = true,
                 .scale = 2.5f,
                 .num_groups = 8,
                 .num_groups_used = 4,
                 .group_score = GroupScore::kTopTwoSum},
                true},
        Variant{
            "Glm4Moe", {.num_experts = 128, .top_k = 8, .scoring = RouterScoring::kSigmoid, .normalize = true}, true},
        Variant{"GptOss", {.num_experts = 32, .top_k = 4, .scoring = RouterScoring::kSoftmaxOfChosen}, false},
        Variant{"Switch", {.num_experts = 8, .top_k = 1}, false}),
    [](const auto& variant) { return variant.param.name; });

TEST(RouterTest, GroupsOfEqualScoreGoToTheLowerIndex) {
  const Route route =
      route_logits({.num_experts = 8, .top_k = 3, .num_groups = 4, .num_groups_used = 2}, {1, 1, 1, 1, 1, 1, 1, 1});
  EXPECT_EQ(route.experts, (std::vector<int32_t>{0, 1, 2}));
}

TEST(RouterTest, ScoresThatVanishGiveFiniteWeights) {
  const Route route = route_logits(
      {.num_experts = 4, .top_k = 2, .scoring = RouterScoring::kSigmoid, .normalize = true}, {-200, -200, -200, -200});
  for (const float weight : route.weights) EXPECT_TRUE(std::isfinite(weight));
}

}  // namespace
}  // namespace witan
