// Requests whose tokens are given: what the model makes of a text that is there, and the experts it uses for it.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/engine.h"
#include "kv_policy_test_support.h"
#include "support/expect_error.h"
#include "support/goldens.h"

namespace witan {
namespace {

using test::prompt_tokens;
using test::read;
using test::Reading;
using test::reading_request;
using test::small_options;

class ContinuationTest : public test::KvModelTest {};

// What score_tokens makes of a whole text.
struct Scored {
  std::vector<double> logprobs;              // [tokens - 1] of each but the first
  std::vector<std::vector<int32_t>> routes;  // [tokens] [MoE layers, top_k]
};

Scored score(const ModelOptions& options, const std::vector<TokenId>& tokens) {
  LoadedModel model(options);
  Scored scored;
  const auto vocab_size = static_cast<size_t>(model.info().vocab_size);
  score_tokens(model, tokens, 64, [&](int32_t first, int32_t count, std::span<const float> logits) {
    for (int32_t i = 0; i < count; ++i) {
      const RouterTelemetry& telemetry = model.telemetry();
      std::vector<int32_t>& routes = scored.routes.emplace_back();
      for (int32_t layer = 0; layer < telemetry.num_moe_layers(); ++layer) {
        const auto experts = telemetry.last_experts(layer).subspan(i * telemetry.top_k(), telemetry.top_k());
        routes.insert(routes.end(), experts.begin(), experts.end());
      }
      const auto next = static_cast<size_t>(first + i + 1);
      if (next == tokens.size()) continue;
      const auto row = logits.subspan(static_cast<size_t>(i) * vocab_size, vocab_size);
      double sum = 0.0;
      for (const float logit : row) sum += std::exp(static_cast<double>(logit));
      scored.logprobs.push_back(row[static_cast<size_t>(tokens[next])] - std::log(sum));
    }
  });
  return scored;
}

TEST_P(ContinuationTest, LogprobsAndRoutesAreThoseOfThePromptThatHasItsTokens) {
  ModelOptions o = options();
  // Latents that the prompt's and the generated tokens' forms of attention round differently would tell them apart.
  const bool is_mla = std::string(GetParam().arch) == "deepseek2";
  if (is_mla) {
    o.kv_codec = KvCodec::kF32;
    o.precision = Precision::kExact;
  }
  const std::vector<TokenId> prompt = prompt_tokens(50, 5);
  const std::vector<TokenId> continuation = prompt_tokens(40, 31);
  Engine engine(o);
  const Reading reading = read(engine, reading_request(prompt, continuation, ""));
  EXPECT_EQ(reading.last.finish, FinishReason::kLength);
  EXPECT_EQ(reading.last.usage.generated_tokens, 40);
  ASSERT_EQ(reading.bits.size(), continuation.size());

  std::vector<TokenId> tokens = prompt;
  tokens.insert(tokens.end(), continuation.begin(), continuation.end());
  const Scored expected = score(o, tokens);
  for (size_t i = 0; i < continuation.size(); ++i) {
    const size_t row = prompt.size() - 1 + i;  // whose logits predict it
    EXPECT_NEAR(std::bit_cast<float>(reading.bits[i]), expected.logprobs[row], 1e-5) << "token " << i;
    EXPECT_EQ(reading.routes[i], expected.routes[row]) << "token " << i;
  }
}

TEST_P(ContinuationTest, ItDoesNotDependOnWhatElseRunsNorOnHavingBeenPreempted) {
  const auto request_of = [](int32_t i) {
    return reading_request(prompt_tokens(60 + i, 20 + i), prompt_tokens(190, 3 + i),
                           i % 2 == 0 ? "" : "keydiff,keep=0.5");
  };
  ModelOptions o = options();
  o.prefix_cache = false;
  Engine alone(o);
  std::vector<Reading> expected;
  for (int32_t i = 0; i < 4; ++i) expected.push_back(read(alone, request_of(i)));
  o.kv_capacity_bytes = alone.stats().kv.peak_block_bytes_held * 2;
  Engine crowded(o);
  std::vector<Reading> readings(4);
  for (int32_t i = 0; i < 4; ++i) {
    crowded.submit(request_of(i),
                   [&readings, i](const GenerationOutput& output) { readings[static_cast<size_t>(i)].take(output); });
    crowded.submit(test::request_for(prompt_tokens(30, i), "", 8), {});
  }
  test::run_all(crowded);
  EXPECT_GT(crowded.stats().scheduler.num_preemptions, 0);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(readings[i].bits, expected[i].bits) << "request " << i;
    EXPECT_EQ(readings[i].routes, expected[i].routes) << "request " << i;
  }
}

TEST_P(ContinuationTest, GivenItsOwnAnswerAModelReadsWhatItWrote) {
  Engine engine(options());
  GenerationRequest request = test::request_for(prompt_tokens(50, 5), "keydiff,keep=0.3", 20);
  request.wants_routes = true;
  Reading written;
  std::vector<TokenId> answer;
  engine.submit(request, [&](const GenerationOutput& output) {
    written.take(output);
    answer.push_back(output.token->token);
  });
  test::run_all(engine);
  const Reading reading = read(engine, reading_request(prompt_tokens(50, 5), answer, "keydiff,keep=0.3"));
  EXPECT_EQ(reading.bits, written.bits);
  EXPECT_EQ(reading.routes, written.routes);
}

INSTANTIATE_TEST_SUITE_P(All, ContinuationTest, testing::ValuesIn(test::kModels), test::arch_name);

TEST(Continuation, EndTokensDoNotEndIt) {
  Engine engine(small_options());
  const std::vector<TokenId> end_tokens = engine.checkpoint().end_of_generation_tokens();
  ASSERT_FALSE(end_tokens.empty());
  GenerationRequest request = reading_request({5, 6, 7}, {8, end_tokens[0], 9}, "");
  request.max_new_tokens = 2;
  const Reading reading = read(engine, request);
  EXPECT_EQ(reading.bits.size(), 3u);
  EXPECT_EQ(reading.last.finish, FinishReason::kLength);
}

TEST(Continuation, SamplingDoesNotChangeItsLogprobs) {
  Engine engine(small_options());
  GenerationRequest request = reading_request({5, 6, 7}, {8, 9, 8, 9}, "");
  const Reading plain = read(engine, request);
  request.sampling = {.logit_bias = {{8, 5.0f}}, .repetition_penalty = 2.0f, .temperature = 3.0f, .top_k = 1};
  EXPECT_EQ(read(engine, request).bits, plain.bits);
}

TEST(Continuation, WhatCannotGoWithItIsRefused) {
  Engine engine(small_options());
  const auto refused = [&](const auto& change, const char* says) {
    GenerationRequest request = reading_request({5, 6, 7}, {8, 9}, "");
    change(request);
    test::expect_error(ErrorCode::kInvalidArgument, says, [&] { engine.submit(request, {}); });
  };
  refused([](GenerationRequest& r) { r.num_choices = 2; }, "2 choices");
  refused([](GenerationRequest& r) { r.stop_strings = {"."}; }, "stop strings");
  refused([](GenerationRequest& r) { r.stop_tokens = {4}; }, "stop tokens");
  refused([](GenerationRequest& r) { r.continuation = {8, 512}; }, "the continuation: token 1 is 512");
  refused([](GenerationRequest& r) { r.continuation = {-1}; }, "the continuation: token 0 is -1");
  refused([](GenerationRequest& r) { r.continuation.assign(510, 8); },
          "a prompt of 3 tokens and a continuation of 510 are more than the context of 512");
  EXPECT_FALSE(engine.step());
}

TEST(Continuation, ModelsWithAnEncoderRefuseItAndRoutes) {
  WITAN_GOLDEN_OR_SKIP(golden, "switch/hf");
  Engine engine({.path = golden, .num_threads = 1, .memory_bytes = int64_t{512} << 20, .context_length = 128});
  GenerationRequest request = reading_request({5, 6, 7}, {8, 9}, "");
  test::expect_error(ErrorCode::kUnsupported, "continuation", [&] { engine.submit(request, {}); });
  request.continuation.clear();
  test::expect_error(ErrorCode::kUnsupported, "routes", [&] { engine.submit(request, {}); });
}

}  // namespace
}  // namespace witan
