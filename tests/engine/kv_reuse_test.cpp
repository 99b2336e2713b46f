// KV policies that reuse documents' entries at other positions.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "engine/document_reuse.h"
#include "kv_policy_test_support.h"
#include "support/expect_error.h"

namespace witan {
namespace {

using test::Answer;
using test::arch_name;
using test::ask;
using test::kModels;
using test::ModelCase;
using test::options_for;
using test::prompt_tokens;
using test::request_for;
using test::run_all;
using test::small_options;

// Documents with a beginning and a question around them, and some tokens between the second and the third.
struct Documents {
  std::vector<std::vector<TokenId>> texts;

  static Documents in_order(std::initializer_list<int32_t> order) {
    Documents documents;
    for (const int32_t i : order) documents.texts.push_back(prompt_tokens(40 + 30 * i, 30 + i));
    return documents;
  }

  GenerationRequest request(const std::string& policy, int32_t num_question = 17) const {
    GenerationRequest request = request_for(prompt_tokens(21, 5), policy);
    std::vector<TokenId>& prompt = request.prompt;
    for (size_t i = 0; i < texts.size(); ++i) {
      if (i == 2) prompt.insert(prompt.end(), {9, 10, 11});
      const auto begin = static_cast<int32_t>(prompt.size());
      prompt.insert(prompt.end(), texts[i].begin(), texts[i].end());
      request.kv_documents.push_back({begin, static_cast<int32_t>(prompt.size())});
    }
    const std::vector<TokenId> question = prompt_tokens(num_question, 77);
    prompt.insert(prompt.end(), question.begin(), question.end());
    return request;
  }
};

GenerationRequest some_request(const std::string& policy) { return Documents::in_order({1, 2, 0, 3}).request(policy); }

constexpr const char* kPolicies[] = {"epic",
                                     "epic(first=0)",
                                     "cacheblend",
                                     "cacheblend(recompute=0.4,first=3)",
                                     "routeblend(recompute=0.2)",
                                     "randomblend(recompute=0.3)",
                                     "epic,keydiff,keep=0.5",
                                     "cacheblend,snapkv(window=8),keep=0.4",
                                     "routeblend,quest(tokens=64,dense=0)"};

// Of every model without sliding windows, and types of entries that make copies inexact.
class KvReuseTest : public testing::TestWithParam<ModelCase> {
 protected:
  // With layers enough that some are not probed.
  static ModelOptions options() {
    ModelOptions o = options_for(GetParam());
    o.path = test::made_model(GetParam().arch, "tiny", GetParam().dtype, 4);
    return o;
  }
  static std::string policy(const std::string& text) {  // DeepSeek's first layer has no experts
    const bool is_dense_first = std::string(GetParam().arch) == "deepseek2";
    const std::string routes = "routeblend";
    if (!is_dense_first || !text.starts_with(routes)) return text;
    const std::string rest = text.substr(routes.size());
    return rest.starts_with("(") ? routes + "(layers=2," + rest.substr(1) : routes + "(layers=2)" + rest;
  }
};

TEST_P(KvReuseTest, TheAnswerDoesNotDependOnChunksThreadsBatchOrCache) {
  const bool has_latents = std::string(GetParam().arch) == "deepseek2";
  std::vector<std::string> texts(std::begin(kPolicies), std::end(kPolicies));
  texts.push_back(has_latents ? "cacheblend,k=int8-latent,residual=64" : "cacheblend,k=int4-hadamard,residual=64");
  for (const std::string& text : texts) {
    const std::string chosen = policy(text);
    SCOPED_TRACE(chosen);
    const GenerationRequest request = some_request(chosen);
    ModelOptions o = options();
    o.prefix_cache = false;
    Engine alone(o);
    const Answer expected = ask(alone, request);
    EXPECT_TRUE(expected.steps != ask(alone, some_request("")).steps) << "lossy";

    o = options();
    o.num_threads = 1;
    o.max_step_tokens = 29;
    Engine engine(o);
    EXPECT_TRUE(ask(engine, request).steps == expected.steps) << "chunks of 29";
    EXPECT_TRUE(ask(engine, request).steps == expected.steps) << "documents from the cache";
    EXPECT_TRUE(ask(engine, some_request("")).steps == ask(alone, some_request("")).steps) << "exact after it";

    // Among others, of the same documents in other places and of none.
    std::vector<GenerationRequest> requests = {request, Documents::in_order({3, 1, 2}).request(chosen),
                                               some_request("streamingllm,tokens=40"),
                                               Documents::in_order({0, 1, 2}).request(chosen), some_request("")};
    std::vector<Answer> answers(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      engine.submit(requests[i], [&answers, i](const GenerationOutput& output) { answers[i].take(output); });
    }
    run_all(engine);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(answers[i].error, "");
      EXPECT_TRUE(answers[i].steps == ask(alone, requests[i]).steps) << "request " << i;
    }
  }
}

// Test oracle: everything computed again is a full prefill.
TEST_P(KvReuseTest, WithAllTokensComputedAgainNothingChanges) {
  Engine engine(options());
  const Answer exact = ask(engine, some_request(""));
  for (const char* text : {"epic(first=1000)", "cacheblend(recompute=1)", "routeblend(recompute=1)",
                           "randomblend(recompute=1)", "cacheblend(recompute=0.9,first=500)"}) {
    const Answer answer = ask(engine, some_request(policy(text)));
    EXPECT_TRUE(answer.steps == exact.steps) << text;
  }
}

// With all layers probed, too: their entries are those of all tokens where they are.
TEST_P(KvReuseTest, WithAllLayersProbedNothingChanges) {
  Engine engine(options());
  const Answer exact = ask(engine, some_request(""));
  for (const char* text : {"cacheblend(recompute=0.1,layers=3)", "routeblend(recompute=0.1,layers=3)"}) {
    EXPECT_TRUE(ask(engine, some_request(text)).steps == exact.steps) << text;
  }
}

TEST_P(KvReuseTest, PreemptionDoesNotChangeAnything) {
  for (const char* text : {"epic", "cacheblend(first=2)", "routeblend"}) {
    const std::string chosen = policy(text);
    SCOPED_TRACE(chosen);
    ModelOptions o = options();
    o.prefix_cache = false;
    o.max_step_tokens = 40;
    o.max_decode_slowdown = 0;  // who is preempted does not depend on times
    const auto run = [&](Engine& engine) {
      std::vector<Answer> answers(4);
      for (int32_t i = 0; i < 4; ++i) {
        GenerationRequest request = Documents::in_order({i, (i + 1) % 4, (i + 2) % 4}).request(i == 1 ? "" : chosen);
        request.max_new_tokens = 100;
        engine.submit(request, [&answers, i](const GenerationOutput& output) {
          EXPECT_EQ(output.error, "");
          answers[static_cast<size_t>(i)].take(output);
        });
      }
      run_all(engine);
      std::vector<decltype(Answer::steps)> steps;
      for (const Answer& answer : answers) steps.push_back(answer.steps);
      return steps;
    };
    Engine calm(o);
    const auto expected = run(calm);
    EXPECT_EQ(calm.stats().scheduler.num_preemptions, 0);
    int64_t num_preemptions = 0;
    for (const int64_t percent : {75, 60, 50, 40}) {
      ModelOptions tight = o;
      tight.prefix_cache = percent == 50;
      tight.kv_capacity_bytes = calm.stats().kv.peak_block_bytes_held * percent / 100;
      Engine engine(tight);
      EXPECT_TRUE(run(engine) == expected) << percent << " % of the room";
      EXPECT_LE(engine.stats().kv.peak_block_bytes_held, tight.kv_capacity_bytes);
      EXPECT_EQ(engine.stats().kv.block_bytes_held, engine.stats().kv.block_bytes_cached);
      num_preemptions += engine.stats().scheduler.num_preemptions;
    }
    EXPECT_GT(num_preemptions, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, KvReuseTest,
                         testing::Values(kModels[0], kModels[1], ModelCase{"olmoe", DType::kQ8_0, KvCodec::kHadamard8}),
                         arch_name);

// The second request finds the first one's documents in other places, and what is computed of it is what has to be.
TEST(KvReuse, DocumentsAreFoundInOtherPlaces) {
  Engine engine(small_options());
  const Answer first = ask(engine, Documents::in_order({3, 1, 2}).request("epic(first=4)"));
  ASSERT_TRUE(first.usage.kv_reuse);
  EXPECT_EQ(first.usage.kv_reuse->num_reused_tokens, 128 + 64 + 96);
  EXPECT_EQ(first.usage.kv_reuse->num_found_tokens, 0);
  const int64_t num_before = engine.stats().prompt_tokens;
  const GenerationRequest request = Documents::in_order({2, 3, 1}).request("epic(first=4)");
  const Answer second = ask(engine, request);
  ASSERT_TRUE(second.usage.kv_reuse);
  const KvReuseCount& reuse = *second.usage.kv_reuse;
  EXPECT_EQ(reuse.num_reused_tokens, 96 + 128 + 64);
  EXPECT_EQ(reuse.num_found_tokens, reuse.num_reused_tokens);
  // The first 4 of each document, and the ends of the first two, of which no whole block is left, with what is between.
  const int32_t num_between = (100 - 96) + (130 - 128) + 3;
  EXPECT_EQ(reuse.num_recomputed_tokens, 3 * 4 + num_between);
  const int32_t num_around = 21 + (70 - 64) + 17;
  EXPECT_EQ(engine.stats().prompt_tokens - num_before, num_around + 3 * 4 + num_between);
  EXPECT_EQ(second.usage.prompt_tokens, std::ssize(request.prompt));
}

// A document that begins the prompt is just that: found as it is, and nothing of it is computed again.
TEST(KvReuse, ADocumentAtTheBeginningIsExact) {
  Engine engine(small_options());
  GenerationRequest request = request_for(prompt_tokens(150, 3), "epic(first=0)");
  request.kv_documents = {{0, 120}};
  const Answer exact = ask(engine, request_for(prompt_tokens(150, 3), ""));
  const Answer answer = ask(engine, request);
  EXPECT_TRUE(answer.steps == exact.steps);
  EXPECT_FALSE(answer.usage.kv_reuse);
  EXPECT_EQ(answer.usage.cached_prompt_tokens, 128);
}

TEST(KvReuse, WithoutDocumentsOrInShortOnesNothingIsReused) {
  Engine engine(small_options());
  const Answer exact = ask(engine, request_for(prompt_tokens(150, 3), ""));
  GenerationRequest request = request_for(prompt_tokens(150, 3), "cacheblend");
  EXPECT_TRUE(ask(engine, request).steps == exact.steps);
  request.kv_documents = {{10, 41}, {50, 60}, {118, 150}};
  const Answer answer = ask(engine, request);
  EXPECT_TRUE(answer.steps == exact.steps);
  EXPECT_FALSE(answer.usage.kv_reuse);
}

TEST(KvReuse, SeveralChoicesOfOnePrompt) {
  Engine engine(small_options());
  GenerationRequest request = some_request("routeblend");
  const Answer expected = ask(engine, request);
  request.num_choices = 3;
  std::vector<Answer> answers(3);
  engine.submit(request,
                [&](const GenerationOutput& output) { answers[static_cast<size_t>(output.choice)].take(output); });
  run_all(engine);
  for (const Answer& answer : answers) EXPECT_TRUE(answer.steps == expected.steps);
}

TEST(KvReuse, WhatCannotBeHadIsRefusedWithTheReason) {
  Engine engine(small_options());
  const auto submit = [](Engine& e, const GenerationRequest& request) { e.submit(request, {}); };
  const auto refused = [&](const std::string& policy, const char* reason) {
    test::expect_error(ErrorCode::kInvalidArgument, reason, [&] { submit(engine, some_request(policy)); });
  };
  refused("cacheblend(layers=400)", "in the first 400 layers");
  refused("epic,h2o,keep=0.5", "judges by the queries of all tokens");
  for (const char* policy : {"epic,cacheblend", "auto,epic", "epic,keydiff,keep=0.5,prefill_every=64", "epic(last=3)",
                             "cacheblend(recompute=1.5)", "randomblend(layers=2)"}) {
    EXPECT_THROW(parse_kv_policy(policy), Error) << policy;
  }
  GenerationRequest request = some_request("");
  request.kv_documents = {{5, 10}, {9, 20}};
  test::expect_error(ErrorCode::kInvalidArgument, "tokens 9 to 20 begins before the one before it ends, at 10",
                     [&] { submit(engine, request); });
  request.kv_documents = {{5, 4000}};
  test::expect_error(ErrorCode::kInvalidArgument, "tokens 5 to 4000 of a document are not in the prompt",
                     [&] { submit(engine, request); });
  Engine windows(options_for(kModels[2]));
  test::expect_error(ErrorCode::kUnsupported, "layers with a sliding window do not keep all",
                     [&] { submit(windows, some_request("cacheblend")); });
  ModelOptions o = small_options();
  o.path = test::made_model("qwen3", "tiny", DType::kQ8_0);
  Engine dense(o);
  test::expect_error(ErrorCode::kInvalidArgument, "which have no experts",
                     [&] { submit(dense, some_request("routeblend")); });
  EXPECT_TRUE(ask(dense, some_request("cacheblend")).usage.kv_reuse) << "needs none";
  Engine dense_first(options_for(kModels[1]));
  test::expect_error(ErrorCode::kInvalidArgument, "in the first 1 layers, which have no experts",
                     [&] { submit(dense_first, some_request("routeblend")); });
}

// Where entries are judged by the queries of the last 32 tokens, these are computed, though a document ends among them.
TEST(KvReuse, TokensWhoseQueriesAreWantedAreComputed) {
  Engine engine(small_options());
  const Answer answer = ask(engine, Documents::in_order({3, 1, 3}).request("epic,snapkv(window=32),keep=0.5", 9));
  ASSERT_TRUE(answer.usage.kv_reuse && answer.usage.kv);
  EXPECT_EQ(answer.usage.kv_reuse->num_reused_tokens, 128 + 64 + 96);
  EXPECT_EQ(answer.usage.kv->num_tokens, answer.usage.prompt_tokens);
  const Answer all = ask(engine, Documents::in_order({3, 1, 3}).request("epic", 9));
  EXPECT_EQ(all.usage.kv_reuse->num_reused_tokens, 128 + 64 + 128);
}

TEST(KvReuse, CancelledInAnyPassLeavesNothing) {
  ModelOptions options = small_options();
  options.max_step_tokens = 30;
  options.path = test::made_model("qwen3moe", "tiny", DType::kQ8_0, 4);
  const GenerationRequest request = some_request("routeblend(recompute=0.3)");
  for (int num_steps = 0; num_steps < 60; num_steps += 3) {
    Engine engine(options);
    bool is_over = false;
    const RequestId id =
        engine.submit(request, [&](const GenerationOutput& output) { is_over = output.finish.has_value(); });
    for (int i = 0; i < num_steps && engine.step(); ++i) {
    }
    engine.cancel(id);
    run_all(engine);
    EXPECT_TRUE(is_over);
    EXPECT_EQ(engine.stats().kv.block_bytes_held, engine.stats().kv.block_bytes_cached) << num_steps;
    EXPECT_FALSE(engine.stats().scheduler.num_running > 0);
  }
}

TEST(RouteDistance, IsTheTotalVariationOfWeightsThatAddUpToOne) {
  const std::vector<int32_t> experts = {3, 7};
  const std::vector<float> weights = {0.6f, 0.2f};
  EXPECT_FLOAT_EQ(route_distance(experts, weights, experts, weights), 0.0f);
  const std::vector<int32_t> none_alike = {1, 2};
  EXPECT_FLOAT_EQ(route_distance(experts, weights, none_alike, weights), 1.0f);
  const std::vector<int32_t> swapped = {7, 3};
  EXPECT_FLOAT_EQ(route_distance(experts, weights, swapped, weights), 0.5f);
  const std::vector<int32_t> one = {3, kNoExpert};
  EXPECT_FLOAT_EQ(route_distance(experts, weights, one, weights), 0.25f);
}

}  // namespace
}  // namespace witan
