#include "engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>

#include "base/error.h"

namespace witan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The definitions, in double, with full sorts.
std::vector<double> adjusted(const SamplingParams& params, std::span<const float> logits,
                             const std::vector<TokenId>& prompt, const std::vector<TokenId>& output) {
  std::vector<double> values(logits.begin(), logits.end());
  for (const auto& [token, bias] : params.logit_bias) values[token] += static_cast<double>(bias);
  for (TokenId token = 0; token < std::ssize(values); ++token) {
    const auto in_prompt = std::ranges::count(prompt, token);
    const auto in_output = static_cast<double>(std::ranges::count(output, token));
    double& value = values[token];
    const auto repetition = static_cast<double>(params.repetition_penalty);
    if (in_prompt > 0 || in_output > 0) value = value > 0 ? value / repetition : value * repetition;
    if (in_output > 0) value -= static_cast<double>(params.presence_penalty);
    value -= in_output * static_cast<double>(params.frequency_penalty);
  }
  return values;
}

std::vector<double> softmax(const std::vector<double>& values, double temperature) {
  const double max = *std::ranges::max_element(values);
  std::vector<double> result(values.size());
  for (size_t i = 0; i < values.size(); ++i) result[i] = std::exp((values[i] - max) / temperature);
  const double sum = std::accumulate(result.begin(), result.end(), 0.0);
  for (double& value : result) value /= sum;
  return result;
}

void renormalize(std::vector<double>& probabilities) {
  const double sum = std::accumulate(probabilities.begin(), probabilities.end(), 0.0);
  for (double& value : probabilities) value /= sum;
}

std::vector<double> distribution(const SamplingParams& params, std::span<const float> logits,
                                 const std::vector<TokenId>& prompt = {}, const std::vector<TokenId>& output = {}) {
  const std::vector<double> values = adjusted(params, logits, prompt, output);
  std::vector<double> result = softmax(values, static_cast<double>(params.temperature));
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) { return values[a] > values[b]; });
  if (params.top_k > 0) {
    for (size_t rank = static_cast<size_t>(params.top_k); rank < order.size(); ++rank) result[order[rank]] = 0;
    renormalize(result);
  }
  if (params.top_p < 1) {
    double sum = 0;
    for (size_t token : order) {
      if (sum >= static_cast<double>(params.top_p)) result[token] = 0;
      sum += result[token];
    }
    renormalize(result);
  }
  const double least = *std::ranges::max_element(result) * static_cast<double>(params.min_p);
  for (double& probability : result) probability = probability < least ? 0 : probability;
  renormalize(result);
  return result;
}

std::vector<float> random_logits(int64_t size, float deviation, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> logits(size);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (double probability : probabilities) logits.push_back(static_cast<float>(std::log(probability)));
  return logits;
}

SamplingParams at_temperature(float temperature) { return {.temperature = temperature}; }

// Draws with many seeds and compares the counts with the distribution.
void expect_draws_follow(SamplingParams params, std::span<const float> logits, const std::vector<TokenId>& prompt = {},
                         const std::vector<TokenId>& output = {}, int num_draws = 6000) {
  const std::vector<double> expected = distribution(params, logits, prompt, output);
  std::vector<int64_t> counts(logits.size());
  for (int i = 0; i < num_draws; ++i) {
    params.seed = static_cast<uint64_t>(i);
    ++counts[sample(params, logits, prompt, output).token];
  }
  // Pearson's statistic; tokens that should come up less than five times are taken together.
  double statistic = 0;
  int degrees = -1;
  double rare_expected = 0;
  double rare_count = 0;
  for (size_t token = 0; token < counts.size(); ++token) {
    const double mean = expected[token] * num_draws;
    if (expected[token] == 0) {
      EXPECT_EQ(counts[token], 0) << "token " << token << " is excluded";
    } else if (mean < 5) {
      rare_expected += mean;
      rare_count += static_cast<double>(counts[token]);
    } else {
      statistic += std::pow(static_cast<double>(counts[token]) - mean, 2) / mean;
      ++degrees;
    }
  }
  if (rare_expected > 0) {
    statistic += std::pow(rare_count - rare_expected, 2) / std::max(rare_expected, 1.0);
    ++degrees;
  }
  // Mean and deviation of a chi-square variable; four deviations and a little for few degrees of freedom.
  EXPECT_LE(statistic, degrees + 4 * std::sqrt(2.0 * std::max(degrees, 1)) + 8) << degrees << " degrees of freedom";
}

// ---------------------------------------------------------------- greedy

TEST(SamplerTest, TheDefaultIsGreedyAndTakesTheLowestIdAmongEquals) {
  for (int64_t size : {1, 2, 127, 128, 129, 1000}) {
    for (int64_t winner : {int64_t{0}, size / 2, size - 1}) {
      std::vector<float> logits(size, -3.0f);
      logits[winner] = 2.0f;
      EXPECT_EQ(sample({}, logits, {}, {}).token, winner) << size;
      logits[size - 1] = 2.0f;
      EXPECT_EQ(sample({}, logits, {}, {}).token, winner) << size;
    }
    EXPECT_EQ(sample({}, std::vector<float>(size, 0.0f), {}, {}).token, 0);
  }
}

TEST(SamplerTest, GreedyDoesNotUseTheParametersBehindTemperature) {
  const std::vector<float> logits = random_logits(500, 1);
  const TokenId best = sample({}, logits, {}, {}).token;
  EXPECT_EQ(best, std::ranges::max_element(logits) - logits.begin());
  EXPECT_EQ(sample({.top_k = 3, .top_p = 0.1f, .min_p = 1.0f, .seed = 9}, logits, {}, {}).token, best);
}

TEST(SamplerTest, GreedyHonoursBiasAndPenalties) {
  const std::vector<float> logits = {1.0f, 2.0f, 3.0f};
  EXPECT_EQ(sample({.logit_bias = {{2, -kInfinity}}}, logits, {}, {}).token, 1);
  EXPECT_EQ(sample({.logit_bias = {{0, 5.0f}}}, logits, {}, {}).token, 0);
  EXPECT_EQ(sample({.repetition_penalty = 2.0f}, logits, std::vector<TokenId>{2}, {}).token, 1);
  EXPECT_EQ(sample({.presence_penalty = 1.5f}, logits, {}, std::vector<TokenId>{2}).token, 1);
  EXPECT_EQ(sample({.frequency_penalty = 1.5f}, logits, {}, std::vector<TokenId>{2}).token, 1);
}

// ---------------------------------------------------------------- bias and penalties, seen in the logprobs

TEST(SamplerTest, LogprobsAreThoseAfterBiasAndPenalties) {
  const std::vector<TokenId> prompt = {1, 1, 5, 200};
  const std::vector<TokenId> output = {2, 5, 2, 2, 7, 201};
  const std::vector<float> logits = random_logits(300, 2);
  const auto check = [&](SamplingParams params) {
    params.num_logprobs = 300;
    const SampleResult result = sample(params, logits, prompt, output);
    const std::vector<double> expected = softmax(adjusted(params, logits, prompt, output), 1.0);
    ASSERT_THAT(result.alternatives, SizeIs(300));
    double sum = 0;
    for (size_t i = 0; i < 300; ++i) {
      const TokenLogprob& entry = result.alternatives[i];
      EXPECT_NEAR(entry.logprob, std::log(expected[entry.token]), 2e-6 * (1 + std::abs(entry.logprob)));
      EXPECT_TRUE(i == 0 || result.alternatives[i - 1].logprob >= entry.logprob) << i;
      sum += std::exp(static_cast<double>(entry.logprob));
    }
    EXPECT_NEAR(sum, 1, 1e-6);
    EXPECT_NEAR(result.logprob, std::log(expected[result.token]), 2e-6 * (1 + std::abs(result.logprob)));
  };
  for (float temperature : {0.0f, 0.7f}) {
    check({.temperature = temperature, .top_k = 40});
    check({.logit_bias = {{3, 2.5f}, {4, -1.0f}, {299, 100.0f}}, .temperature = temperature});
    check({.logit_bias = {{3, 1.0f}, {3, 1.5f}}, .temperature = temperature});
    check({.repetition_penalty = 1.7f, .temperature = temperature});
    check({.repetition_penalty = 0.6f, .temperature = temperature});
    check({.presence_penalty = 1.2f, .temperature = temperature});
    check({.presence_penalty = -1.2f, .temperature = temperature});
    check({.frequency_penalty = 0.7f, .temperature = temperature});
    check({.frequency_penalty = -0.7f, .temperature = temperature});
    check({.logit_bias = {{2, 3.0f}, {5, -3.0f}, {9, 1.0f}},
           .repetition_penalty = 1.3f,
           .presence_penalty = 0.4f,
           .frequency_penalty = 0.3f,
           .temperature = temperature,
           .top_k = 3});
  }
}

float logprob_gap(const SamplingParams& params, const std::vector<float>& logits, const std::vector<TokenId>& prompt,
                  const std::vector<TokenId>& output) {
  SamplingParams with_logprobs = params;
  with_logprobs.num_logprobs = 2;
  const SampleResult result = sample(with_logprobs, logits, prompt, output);
  std::map<TokenId, float> logprobs;
  for (const TokenLogprob& entry : result.alternatives) logprobs[entry.token] = entry.logprob;
  return logprobs.at(0) - logprobs.at(1);
}

TEST(SamplerTest, BiasComesBeforeTheRepetitionPenaltyAndThatBeforeTheOthers) {
  const std::vector<float> logits = {-1.0f, 0.0f};
  // (-1 + 3) / 2, not -1 * 2 + 3
  EXPECT_FLOAT_EQ(logprob_gap({.logit_bias = {{0, 3.0f}}, .repetition_penalty = 2.0f}, logits, {0}, {}), 1.0f);
  // 4 / 2 - 1 - 2 * 0.25, not (4 - 1.5) / 2
  EXPECT_FLOAT_EQ(
      logprob_gap(
          {.logit_bias = {{0, 5.0f}}, .repetition_penalty = 2.0f, .presence_penalty = 1.0f, .frequency_penalty = 0.25f},
          logits, {}, {0, 0}),
      0.5f);
}

TEST(SamplerTest, RepetitionCountsPromptAndOutputOncePresenceAndFrequencyOutputOnly) {
  const std::vector<float> logits = {4.0f, 0.0f};
  EXPECT_FLOAT_EQ(logprob_gap({.repetition_penalty = 2.0f}, logits, {0, 0}, {0, 0}), 2.0f);
  EXPECT_FLOAT_EQ(logprob_gap({.presence_penalty = 1.0f}, logits, {0, 0}, {}), 4.0f);
  EXPECT_FLOAT_EQ(logprob_gap({.presence_penalty = 1.0f}, logits, {0, 0}, {0, 0, 0}), 3.0f);
  EXPECT_FLOAT_EQ(logprob_gap({.frequency_penalty = 1.0f}, logits, {0, 0}, {}), 4.0f);
  EXPECT_FLOAT_EQ(logprob_gap({.frequency_penalty = 1.0f}, logits, {0, 0}, {0, 0, 0}), 1.0f);
}

TEST(SamplerTest, LogprobsAreGivenAsAsked) {
  const std::vector<float> logits = {1.0f, 2.0f, 2.0f, -kInfinity, 0.0f};
  const auto tokens = [&](int32_t num_logprobs) {
    std::vector<TokenId> result;
    for (const TokenLogprob& entry : sample({.num_logprobs = num_logprobs}, logits, {}, {}).alternatives) {
      result.push_back(entry.token);
    }
    return result;
  };
  EXPECT_THAT(tokens(-1), IsEmpty());
  EXPECT_EQ(sample({}, logits, {}, {}).logprob, 0.0f);
  EXPECT_THAT(tokens(0), IsEmpty());
  EXPECT_LT(sample({.num_logprobs = 0}, logits, {}, {}).logprob, -0.5f);
  EXPECT_THAT(tokens(3), ElementsAre(1, 2, 0));
  EXPECT_THAT(tokens(5), ElementsAre(1, 2, 0, 4));  // impossible tokens are no alternatives
}

TEST(SamplerTest, AGivenTokensReportIsThatOfTheLogitsAsTheyAre) {
  const std::vector<float> logits{0.5f, 2.0f, -kInfinity, 1.0f};
  const SampleResult sampled = sample({.num_logprobs = 2}, logits, {}, {});
  for (const TokenId token : {0, 1, 3}) {
    const SampleResult given = report_token(token, 2, logits);
    EXPECT_EQ(given.token, token);
    ASSERT_THAT(given.alternatives, SizeIs(2));
    EXPECT_EQ(given.alternatives[0].token, 1);
    EXPECT_EQ(given.alternatives[1].token, 3);
    EXPECT_FLOAT_EQ(given.logprob, sampled.logprob + logits[static_cast<size_t>(token)] - 2.0f);
  }
  EXPECT_THAT(report_token(0, 0, logits).alternatives, IsEmpty());
  EXPECT_EQ(report_token(2, 0, logits).logprob, -kInfinity);
  EXPECT_FLOAT_EQ(report_token(1, 0, std::vector<float>{0.0f, kInfinity, kInfinity}).logprob, std::log(0.5f));
  EXPECT_THROW(report_token(4, 0, logits), Error) << "outside of the vocabulary";
  EXPECT_THROW(report_token(0, 0, std::vector<float>{0.0f, kNan}), Error);
}

// ---------------------------------------------------------------- distributions

TEST(SamplerTest, DrawsFollowTheDefinition) {
  const std::vector<float> logits = random_logits(300, 1.5f);
  std::vector<float> with_ties = logits;
  for (size_t i = 0; i < with_ties.size(); ++i) with_ties[i] = std::round(with_ties[i]);
  const std::vector<TokenId> prompt = {7, 9, 11};
  const std::vector<TokenId> output = {7, 7, 12, 200};
  int num_cases = 0;
  const auto check = [&](const SamplingParams& params) {
    SCOPED_TRACE("case " + std::to_string(num_cases++));
    expect_draws_follow(params, logits, prompt, output);
    expect_draws_follow(params, with_ties, prompt, output, 2000);
  };
  check({.temperature = 1.0f});
  check({.temperature = 0.5f});
  check({.temperature = 3.0f});
  check({.temperature = 1.0f, .top_k = 1});
  check({.temperature = 1.0f, .top_k = 2});
  check({.temperature = 1.0f, .top_k = 50});
  check({.temperature = 1.0f, .top_k = 299});
  check({.temperature = 1.0f, .top_k = 300});
  check({.temperature = 1.0f, .top_k = 1000000});
  check({.temperature = 1.0f, .top_p = 0.02f});
  check({.temperature = 1.0f, .top_p = 0.5f});
  check({.temperature = 1.0f, .top_p = 0.9f});
  check({.temperature = 1.0f, .top_p = 0.995f});
  check({.temperature = 1.0f, .min_p = 0.05f});
  check({.temperature = 1.0f, .min_p = 0.7f});
  check({.temperature = 1.0f, .min_p = 1.0f});
  check({.temperature = 2.0f, .min_p = 0.3f});
  check({.temperature = 0.8f, .top_k = 40, .top_p = 0.9f});
  check({.temperature = 0.8f, .top_k = 40, .top_p = 0.9f, .min_p = 0.1f});
  check({.temperature = 0.8f, .top_p = 0.9f, .min_p = 0.02f});
  check({.temperature = 0.8f, .top_k = 30, .min_p = 0.1f});
  check({.logit_bias = {{7, 3.0f}, {0, -kInfinity}, {299, 4.0f}},
         .repetition_penalty = 1.2f,
         .presence_penalty = 0.5f,
         .frequency_penalty = 0.25f,
         .temperature = 0.9f,
         .top_k = 100,
         .top_p = 0.95f,
         .min_p = 0.01f});
}

TEST(SamplerTest, FlatDistributionsOverManyTokensAreTruncatedExactly) {
  // Sets of hundreds and thousands of tokens, with many of nearly the same weight at the border.
  for (int64_t size : {600, 6000}) {
    const std::vector<float> logits = random_logits(size, 0.1f, 3);
    for (float top_p : {0.3f, 0.8f, 0.999f}) {
      SCOPED_TRACE(std::to_string(size) + " " + std::to_string(top_p));
      SamplingParams params = {.temperature = 1.0f, .top_p = top_p};
      const std::vector<double> expected = distribution(params, logits);
      const auto num_kept = std::ranges::count_if(expected, [](double p) { return p > 0; });
      std::set<TokenId> seen;
      std::vector<int64_t> bins(32);  // by id
      constexpr int kNumDraws = 1000;
      for (int i = 0; i < kNumDraws; ++i) {
        params.seed = static_cast<uint64_t>(i);
        const TokenId token = sample(params, logits, {}, {}).token;
        EXPECT_GT(expected[token], 0) << token;
        seen.insert(token);
        ++bins[token * 32 / size];
      }
      // Of n tokens, all about as likely, this many come up at least once.
      const auto n = static_cast<double>(num_kept);
      EXPECT_NEAR(static_cast<double>(seen.size()), n * (1 - std::exp(-kNumDraws / n)), 5 * std::sqrt(n));
      double statistic = 0;
      for (int64_t bin = 0; bin < 32; ++bin) {
        double mean = 0;
        for (int64_t token = 0; token < size; ++token) mean += token * 32 / size == bin ? expected[token] : 0;
        statistic += std::pow(static_cast<double>(bins[bin]) - mean * kNumDraws, 2) / (mean * kNumDraws);
      }
      EXPECT_LE(statistic, 31 + 4 * std::sqrt(2.0 * 31));
    }
  }
}

// The tokens that can come up at all.
std::set<TokenId> support(SamplingParams params, const std::vector<float>& logits) {
  std::set<TokenId> tokens;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    params.seed = seed;
    tokens.insert(sample(params, logits, {}, {}).token);
  }
  return tokens;
}

TEST(SamplerTest, TruncationsKeepExactlyWhatTheyName) {
  const std::vector<float> even(10, 0.25f);
  const std::vector<float> halves = logits_of({0.125, 0.5, 0.25, 0.125});
  const auto check = [](const char* name, const SamplingParams& params, const std::vector<float>& logits,
                        const std::set<TokenId>& expected) { EXPECT_EQ(support(params, logits), expected) << name; };
  check("top_k among equals: lower ids", {.temperature = 1, .top_k = 3}, even, {0, 1, 2});
  check("top_p among equals", {.temperature = 1, .top_p = 0.3f}, even, {0, 1, 2});
  check("top_p just above", {.temperature = 1, .top_p = 0.301f}, even, {0, 1, 2, 3});
  check("top_p of a tenth", {.temperature = 1, .top_p = 0.1f}, even, {0});
  check("tiny top_p keeps one", {.temperature = 1, .top_p = 1e-30f}, even, {0});
  check("top_p of one keeps all", {.temperature = 1, .top_p = 1.0f}, halves, {0, 1, 2, 3});
  check("top_p reached exactly", {.temperature = 1, .top_p = 0.75f}, halves, {1, 2});
  check("top_p missed", {.temperature = 1, .top_p = 0.76f}, halves, {0, 1, 2});
  check("min_p exactly", {.temperature = 1, .min_p = 0.5f}, halves, {1, 2});
  check("min_p above", {.temperature = 1, .min_p = 0.51f}, halves, {1});
  check("min_p of one keeps all that are largest", {.temperature = 1, .min_p = 1.0f}, even,
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  // 0.5 / 0.75 of what top_k leaves is enough; of all, it would not be.
  check("top_k before top_p", {.temperature = 1, .top_k = 2, .top_p = 0.6f}, halves, {1});
  // At temperature 2 the largest has 0.374 only.
  check("temperature before top_p", {.temperature = 2, .top_p = 0.5f}, halves, {1, 2});
  check("temperature before min_p", {.temperature = 2, .min_p = 0.6f}, halves, {1, 2});
  check("min_p within top_k", {.temperature = 1, .top_k = 3, .min_p = 0.2f}, halves, {0, 1, 2});
  check("impossible tokens do not count", {.temperature = 1, .top_k = 3}, {-kInfinity, 1, -kInfinity, 1}, {1, 3});
  check("nor with top_p", {.temperature = 1, .top_p = 0.9f}, {-kInfinity, 1, -kInfinity, 1}, {1, 3});
  check("nor with all", {.temperature = 100}, {-kInfinity, 1, -kInfinity, 1}, {1, 3});
}

TEST(SamplerTest, ExtremeTemperaturesAreTheirLimits) {
  const std::vector<float> logits = {1.0f, 1.5f, 1.5f, -2.0f};
  for (float temperature : {1e-3f, 1e-20f, std::numeric_limits<float>::denorm_min()}) {
    EXPECT_EQ(support(at_temperature(temperature), logits), (std::set<TokenId>{1, 2})) << temperature;
  }
  for (float temperature : {1e6f, 1e20f, std::numeric_limits<float>::max()}) {
    expect_draws_follow(at_temperature(temperature), logits);
  }
}

TEST(SamplerTest, ExtremeLogitsAreNoProblem) {
  const float max = std::numeric_limits<float>::max();
  EXPECT_EQ(support(at_temperature(1.0f), {max, -max, 0.0f, max}), (std::set<TokenId>{0, 3}));
  EXPECT_EQ(support({.temperature = 1.0f, .top_p = 0.9f, .min_p = 0.1f}, {-max, -max}), (std::set<TokenId>{0, 1}));
  // What only differs far below the largest logit still does not come up.
  EXPECT_EQ(support(at_temperature(1.0f), {0.0f, -200.0f, -1000.0f}), (std::set<TokenId>{0}));
  const SampleResult result = sample({.logit_bias = {{0, max}, {0, max}}, .temperature = 1.0f, .num_logprobs = 3},
                                     std::vector<float>{1, 2, 3}, std::vector<TokenId>{0}, std::vector<TokenId>{0});
  EXPECT_EQ(result.token, 0);
  EXPECT_EQ(result.logprob, 0.0f);
}

TEST(SamplerTest, InfiniteLogitsShareAllTheProbability) {
  std::vector<float> logits(300, 5.0f);
  logits[3] = logits[250] = kInfinity;
  logits[4] = -kInfinity;
  EXPECT_EQ(sample({}, logits, {}, {}).token, 3);
  EXPECT_EQ(support(at_temperature(0.7f), logits), (std::set<TokenId>{3, 250}));
  EXPECT_EQ(support({.temperature = 1.0f, .top_p = 0.4f}, logits), (std::set<TokenId>{3}));
  const SampleResult result = sample({.num_logprobs = 3}, logits, {}, {});
  EXPECT_FLOAT_EQ(result.logprob, std::log(0.5f));
  ASSERT_THAT(result.alternatives, SizeIs(2));
  EXPECT_EQ(result.alternatives[1].token, 250);
  EXPECT_EQ(sample({.logit_bias = {{3, -kInfinity}}}, logits, {}, {}).token, 250);
}

void expect_refused(const SamplingParams& params, const std::vector<float>& logits, const char* words,
                    const std::vector<TokenId>& prompt = {}, const std::vector<TokenId>& output = {}) {
  try {
    sample(params, logits, prompt, output);
    ADD_FAILURE() << "sampled: " << words;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(error.what(), HasSubstr(words));
  }
}

TEST(SamplerTest, LogitsThatGiveNoDistributionAreRefused) {
  for (float temperature : {0.0f, 1.0f}) {
    for (int64_t size : {1, 5, 128, 200, 1000}) {
      for (int64_t place : {int64_t{0}, size / 2, size - 1}) {
        std::vector<float> logits(size, 1.0f);
        logits[place] = kNan;
        expect_refused(at_temperature(temperature), logits, ("logit of token " + std::to_string(place) + " ").c_str());
      }
      expect_refused(at_temperature(temperature), std::vector<float>(size, -kInfinity), "logits are -inf");
    }
    SamplingParams forbidding = {.logit_bias = {{0, -kInfinity}, {1, -kInfinity}}, .temperature = temperature};
    expect_refused(forbidding, {3, 4}, "all 2 logits are -inf");
  }
}

TEST(SamplerTest, TokensOutsideOfTheVocabularyAreRefused) {
  expect_refused({.repetition_penalty = 2.0f}, {1, 2}, "token 2 is outside of the vocabulary of 2", {0, 2});
  expect_refused({.presence_penalty = 2.0f}, {1, 2}, "token -1 ", {}, {-1});
}

// ---------------------------------------------------------------- random numbers

TEST(SamplerTest, TheSameSeedAndLengthGiveTheSameToken) {
  const std::vector<float> logits = random_logits(5000, 1);
  const std::vector<TokenId> output = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<TokenId> other = {8, 7, 6, 5, 4, 3, 2, 1};
  std::set<TokenId> tokens;
  for (uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{2}, ~uint64_t{0}}) {
    SamplingParams params = at_temperature(1.0f);
    params.seed = seed;
    for (size_t length = 0; length <= output.size(); ++length) {
      const std::vector<float> copy = logits;
      const TokenId token = sample(params, logits, {}, std::span(output).first(length)).token;
      EXPECT_EQ(sample(params, copy, output, std::span(other).first(length)).token, token);
      tokens.insert(token);
    }
  }
  EXPECT_GT(tokens.size(), 30);
}

TEST(SamplerTest, TheTokensOfASeedStayWhatTheyWere) {
  const std::vector<float> even(1000, 0.0f);
  const std::vector<TokenId> output(3);
  const auto draw = [&](uint64_t seed, size_t length) {
    SamplingParams params = at_temperature(1.0f);
    params.seed = seed;
    return sample(params, even, {}, std::span(output).first(length)).token;
  };
  const std::vector<TokenId> tokens = {draw(0, 0), draw(0, 1), draw(0, 2), draw(1, 0), draw(1, 1), draw(~0ull, 3)};
  EXPECT_THAT(tokens, ElementsAre(652, 701, 387, 368, 943, 926));
}

TEST(SamplerTest, NumbersAreEvenAndIndependentAlongATextAndAcrossSeeds) {
  const std::vector<float> even(16, 0.0f);
  const std::vector<TokenId> text(16384);
  for (uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{0x9e3779b97f4a7c15}}) {
    std::vector<double> counts(256);  // pairs of the tokens at a place in two neighbouring seeds' texts
    std::vector<double> steps(256);   // pairs of tokens that follow each other
    TokenId before = 0;
    for (size_t length = 0; length < text.size(); ++length) {
      SamplingParams params = at_temperature(1.0f);
      params.seed = seed;
      const TokenId here = sample(params, even, {}, std::span(text).first(length)).token;
      params.seed = seed + 1;
      const TokenId there = sample(params, even, {}, std::span(text).first(length)).token;
      ++counts[here * 16 + there];
      ++steps[before * 16 + here];
      before = here;
    }
    for (const std::vector<double>& pairs : {counts, steps}) {
      double statistic = 0;
      for (double count : pairs) statistic += std::pow(count - 64, 2) / 64;
      EXPECT_NEAR(statistic, 255, 4 * std::sqrt(2.0 * 255)) << seed;
    }
  }
}

// ---------------------------------------------------------------- validation

TEST(SamplerTest, ParametersInRangeAreAccepted) {
  SamplingParams().validate(1);
  SamplingParams{.logit_bias = {{0, -kInfinity}, {99, 100.0f}},
                 .repetition_penalty = 0.01f,
                 .presence_penalty = -2.0f,
                 .frequency_penalty = 2.0f,
                 .temperature = 1000.0f,
                 .top_k = std::numeric_limits<int32_t>::max(),
                 .top_p = 1.0f,
                 .min_p = 1.0f,
                 .seed = ~uint64_t{0},
                 .num_logprobs = 100}
      .validate(100);
}

TEST(SamplerTest, ParametersOutOfRangeAreRefusedByName) {
  const auto check = [](const SamplingParams& params, const char* name, const char* value) {
    try {
      params.validate(100);
      ADD_FAILURE() << name << " " << value << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_THAT(error.what(), HasSubstr(name));
      EXPECT_THAT(error.what(), HasSubstr(value));
    }
  };
  check({.logit_bias = {{100, 1.0f}}}, "logit_bias", "token 100");
  check({.logit_bias = {{5, 1.0f}, {-1, 1.0f}}}, "logit_bias", "token -1");
  check({.logit_bias = {{5, kNan}}}, "logit_bias of token 5", "nan");
  check({.logit_bias = {{5, kInfinity}}}, "logit_bias of token 5", "inf");
  check({.repetition_penalty = 0.0f}, "repetition_penalty", "not 0");
  check({.repetition_penalty = -1.0f}, "repetition_penalty", "not -1");
  check({.repetition_penalty = kNan}, "repetition_penalty", "not nan");
  check({.repetition_penalty = kInfinity}, "repetition_penalty", "not inf");
  check({.presence_penalty = kNan}, "presence_penalty", "not nan");
  check({.presence_penalty = kInfinity}, "presence_penalty", "not inf");
  check({.frequency_penalty = kNan}, "frequency_penalty", "not nan");
  check({.frequency_penalty = -kInfinity}, "frequency_penalty", "not -inf");
  check({.temperature = -0.5f}, "temperature", "not -0.5");
  check({.temperature = kNan}, "temperature", "not nan");
  check({.temperature = kInfinity}, "temperature", "not inf");
  check({.top_k = -1}, "top_k", "not -1");
  check({.top_p = 0.0f}, "top_p", "not 0");
  check({.top_p = 1.5f}, "top_p", "not 1.5");
  check({.top_p = kNan}, "top_p", "not nan");
  check({.min_p = -0.5f}, "min_p", "not -0.5");
  check({.min_p = 1.5f}, "min_p", "not 1.5");
  check({.min_p = kNan}, "min_p", "not nan");
  check({.num_logprobs = -2}, "num_logprobs", "not -2");
  check({.num_logprobs = 101}, "num_logprobs", "not 101");
}

}  // namespace
}  // namespace witan
