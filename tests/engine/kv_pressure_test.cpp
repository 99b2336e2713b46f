// when=pressure in the engine: dense as long as there is room, and where there is none, entries go before sequences
// do.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/engine.h"
#include "kv_policy_test_support.h"

namespace witan {
namespace {

using test::Answer;
using test::ask;
using test::kModels;
using test::kPrompt;
using test::KvModelTest;
using test::ModelCase;
using test::options_for;
using test::prompt_tokens;
using test::request_for;
using test::run_all;
using test::small_options;

// Methods with small windows, of every kind of evidence.
constexpr const char* kPolicies[] = {"snapkv(window=8)",
                                     "h2o",
                                     "expectedattention(future=7)",
                                     "criticalkv(window=8),global",
                                     "adakv(window=8)",
                                     "rkv",
                                     "keydiff",
                                     "lagkv(lag=16)",
                                     "pyramidkv(window=8)",
                                     "chunkkv(window=8)",
                                     "finch(window=8)",
                                     "rocketkv(window=8,read=64)"};

// Of a KV cache, one block of every head.
int64_t row_bytes(ModelOptions options) {
  options.prefix_cache = false;
  Engine engine(options);
  ask(engine, request_for(prompt_tokens(20, 1), "", 4));
  return engine.stats().kv.peak_block_bytes_held;
}

using KvPressureTest = KvModelTest;

TEST_P(KvPressureTest, WithRoomNoBitChanges) {
  Engine engine(options());
  const Answer dense = ask(engine, request_for(prompt_tokens(kPrompt, 5), ""));
  for (const char* policy : kPolicies) {
    if (std::string_view(policy).starts_with("rocketkv")) continue;  // generated tokens read pages
    const Answer answer =
        ask(engine, request_for(prompt_tokens(kPrompt, 5), fmt::format("{},keep=0.2,when=pressure", policy)));
    EXPECT_EQ(answer.steps, dense.steps) << policy;
    ASSERT_NE(answer.usage.kv, nullptr) << policy;
    EXPECT_EQ(answer.usage.kv->num_times, 0) << policy;
  }
  EXPECT_EQ(ask(engine, request_for(prompt_tokens(kPrompt, 5), "snapkv,tokens=200,when=pressure")).usage.kv, nullptr)
      << "the text is within the budget";
}

// Dense requests and others in a cache that has no room for all of them.
TEST_P(KvPressureTest, WithoutRoomEntriesGoBeforeSequencesAndOthersAreNotChanged) {
  ModelOptions o = options();
  o.context_length = 256;
  o.max_decode_slowdown = 0;  // who is judged or preempted does not depend on times
  const auto run = [&](Engine& engine, const std::string& policy) {
    std::vector<Answer> answers(6);
    for (int32_t i = 0; i < 6; ++i) {
      engine.submit(request_for(prompt_tokens(60 + i, 20 + i), i % 2 == 0 ? policy : "", 150),
                    [&answers, i](const GenerationOutput& output) { answers[static_cast<size_t>(i)].take(output); });
    }
    run_all(engine);
    for (const Answer& answer : answers) EXPECT_TRUE(answer.error.empty()) << answer.error;
    return answers;
  };
  Engine calm(o);
  const std::vector<Answer> expected = run(calm, "");
  ModelOptions tight = o;
  tight.kv_capacity_bytes = calm.stats().kv.peak_block_bytes_held * 55 / 100;
  Engine dense(tight);
  run(dense, "");
  ASSERT_GT(dense.stats().scheduler.num_preemptions, 0);
  for (const char* policy : kPolicies) {
    SCOPED_TRACE(policy);
    Engine engine(tight);
    const std::vector<Answer> answers = run(engine, fmt::format("{},keep=0.2,when=pressure", policy));
    const EngineStats stats = engine.stats();
    EXPECT_LT(stats.scheduler.num_preemptions, dense.stats().scheduler.num_preemptions);
    EXPECT_GT(stats.scheduler.num_judged_for_room, 0);
    EXPECT_LE(stats.kv.peak_block_bytes_held, tight.kv_capacity_bytes);
    for (size_t i = 0; i < answers.size(); ++i) {
      EXPECT_EQ(answers[i].steps.size(), 150) << i;
      if (i % 2 == 1) {
        EXPECT_EQ(answers[i].steps, expected[i].steps) << i;
        continue;
      }
      const KvCompression& kv = *answers[i].usage.kv;
      int64_t num_kept = 0;
      int64_t num_heads = 0;
      for (const auto& layer : kv.kept) {
        num_kept += std::accumulate(layer.begin(), layer.end(), int64_t{0});
        num_heads += std::ssize(layer);
      }
      EXPECT_EQ(num_kept, num_heads * (kv.num_tokens / 5)) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, KvPressureTest, testing::ValuesIn(kModels), test::arch_name);

// Alone with room for 160 tokens it is judged when its prompt of as many is computed.
TEST(KvPressureEngine, JudgedAtTheEndOfThePromptItGivesWhatItGivesWithoutPressure) {
  for (const ModelCase& model : {kModels[0], kModels[1]}) {
    ModelOptions o = options_for(model);
    Engine roomy(o);
    for (const bool prefix_cache : {true, false}) {
      o.prefix_cache = prefix_cache;
      o.kv_capacity_bytes = 5 * row_bytes(o);
      Engine engine(o);
      for (const char* policy : kPolicies) {
        SCOPED_TRACE(fmt::format("{} {}", model.arch, policy));
        if (std::string_view(policy).starts_with("rkv")) continue;  // judges again without pressure
        const std::string with_budget = fmt::format("{},keep=0.2", policy);
        const Answer answer =
            ask(engine, request_for(prompt_tokens(160, 5), with_budget + ",when=pressure,every=64", 50));
        EXPECT_EQ(answer.usage.kv->num_times, 1);
        EXPECT_EQ(answer.usage.kv->num_tokens, 160);
        EXPECT_EQ(answer.steps, ask(roomy, request_for(prompt_tokens(160, 5), with_budget, 50)).steps);
      }
    }
  }
}

// Beside a more valuable request it is judged with 192 tokens, and later preempted; alone, with room for 192, it is
// judged there too, and then has room.
TEST(KvPressureEngine, WhatIsComputedAgainIsJudgedWhereItWas) {
  for (const ModelCase& model : {kModels[0], kModels[1]}) {
    ModelOptions o = options_for(model);
    o.max_decode_slowdown = 0;
    const int64_t bytes = row_bytes(o);
    for (const char* policy : kPolicies) {
      SCOPED_TRACE(fmt::format("{} {}", model.arch, policy));
      const GenerationRequest request =
          request_for(prompt_tokens(150, 5), fmt::format("{},keep=0.1,when=pressure,every=100", policy), 160);
      o.kv_capacity_bytes = 6 * bytes;
      Engine alone(o);
      const Answer expected = ask(alone, request);
      EXPECT_EQ(expected.usage.kv->num_tokens, 192);
      EXPECT_EQ(alone.stats().scheduler.num_preemptions, 0);
      o.kv_capacity_bytes = 8 * bytes;
      Engine engine(o);
      engine.submit(request_for(prompt_tokens(20, 6), "", 230), {});
      EXPECT_EQ(ask(engine, request).steps, expected.steps);
      EXPECT_EQ(engine.stats().scheduler.num_preemptions, 1);
      EXPECT_EQ(engine.stats().scheduler.num_judged_for_room, 1);
    }
  }
}

// It is judged with 160, 232 and 264 tokens, of which 20 stay: less than its window of 64, and the last time there are
// no more than 52.
TEST(KvPressureEngine, AWindowMayBeLongerThanWhatIsLeft) {
  ModelOptions o = small_options();
  o.max_decode_slowdown = 0;
  o.kv_capacity_bytes = 9 * row_bytes(o);
  Engine engine(o);
  engine.submit(request_for(prompt_tokens(20, 6), "", 230), {});
  const Answer answer =
      ask(engine, request_for(prompt_tokens(60, 5), "snapkv(window=64),tokens=20,every=4,when=pressure", 220));
  EXPECT_EQ(answer.usage.kv->num_times, 3);
  EXPECT_EQ(answer.usage.kv->num_tokens, 264);
  EXPECT_EQ(answer.usage.kv->kept[0][0], 20);
}

TEST(KvPressureEngine, PinnedTokensStay) {
  ModelOptions o = small_options();
  o.kv_capacity_bytes = 5 * row_bytes(o);
  Engine engine(o);
  GenerationRequest request = request_for(prompt_tokens(160, 5), "keynorm,keep=0.2,when=pressure", 20);
  const Answer answer = ask(engine, request);
  request.kv_pinned = {{.begin = 50, .end = 70}};
  EXPECT_NE(ask(engine, request).steps, answer.steps);
  request.kv_pinned = {{.begin = 50, .end = 90}};
  try {
    engine.submit(request, {});
    FAIL() << "40 of 160 are pinned, 32 may stay";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("the room of 40 entries, but of the 32"));
  }
}

TEST(KvPressureEngine, AGuardKeepsEverythingAndSomebodyIsPreempted) {
  ModelOptions o = small_options();
  o.max_decode_slowdown = 0;
  o.kv_capacity_bytes = 8 * row_bytes(o);
  Engine engine(o);
  const Answer dense = ask(engine, request_for(prompt_tokens(90, 5), "", 120));
  engine.submit(request_for(prompt_tokens(20, 6), "", 200), {});
  const Answer guarded = ask(engine, request_for(prompt_tokens(90, 5), "keydiff,keep=0.1,when=pressure,guard=1", 120));
  EXPECT_EQ(guarded.steps, dense.steps);
  EXPECT_TRUE(guarded.usage.kv->fell_back);
  EXPECT_GT(engine.stats().scheduler.num_preemptions, 0);
}

}  // namespace
}  // namespace witan
