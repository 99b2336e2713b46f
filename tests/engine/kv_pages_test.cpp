// KV policies whose generated tokens read pages, and those that merge the values of what they drop.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "kv_policy_test_support.h"

namespace witan {
namespace {

using test::Answer;
using test::arch_name;
using test::ask;
using test::expect_the_same_answer_everywhere;
using test::expect_the_same_answers_in_little_room;
using test::kModels;
using test::kNewTokens;
using test::kPrompt;
using test::KvModelTest;
using test::prompt_tokens;
using test::request_for;
using test::run_all;

// Policies whose generated tokens read some pages.
class KvPagesTest : public KvModelTest {};

TEST_P(KvPagesTest, ReadingAllPagesChangesNoBit) {
  Engine engine(options());
  const Answer dense = ask(engine, request_for(prompt_tokens(kPrompt, 5), ""));
  EXPECT_EQ(ask(engine, request_for(prompt_tokens(kPrompt, 5), "quest(tokens=192,dense=0)")).steps, dense.steps);
  EXPECT_EQ(ask(engine, request_for(prompt_tokens(kPrompt, 5), "quest(keep=1,dense=0,page=16)")).steps, dense.steps);
  EXPECT_EQ(ask(engine, request_for(prompt_tokens(kPrompt, 5), "quest(tokens=1,dense=1000)")).steps, dense.steps);
  EXPECT_EQ(ask(engine, request_for(prompt_tokens(kPrompt, 5), "rocketkv(read=192,dense=0),keep=1")).steps,
            dense.steps);
  EXPECT_EQ(ask(engine, request_for(prompt_tokens(70, 5), "quest(tokens=1,dense=0)")).steps,
            ask(engine, request_for(prompt_tokens(70, 5), "")).steps)
      << "three pages are always read";
}

TEST_P(KvPagesTest, TheAnswerDoesNotDependOnChunksThreadsBatchOrCache) {
  expect_the_same_answer_everywhere(options(), "quest(tokens=96,dense=0)");
  expect_the_same_answer_everywhere(options(), "quest(tokens=64,dense=0,page=16)");
  expect_the_same_answer_everywhere(options(), "quest(keep=0.7,dense=1)");
  expect_the_same_answer_everywhere(options(), "rocketkv(window=8,read=96,dense=1),keep=0.9");
  expect_the_same_answer_everywhere(options(), "rocketkv(window=8,read=0.7,dense=1,page=16),keep=0.9");
  expect_the_same_answer_everywhere(options(), "rocketkv(window=4,read=96,dense=0),tokens=130,every=5");
}

TEST_P(KvPagesTest, PreemptionDoesNotChangeAnything) {
  EXPECT_GT(expect_the_same_answers_in_little_room(options(), "quest(tokens=96,dense=0)") +
                expect_the_same_answers_in_little_room(options(), "rocketkv(window=8,read=96,dense=0),keep=0.95"),
            0);
}

TEST_P(KvPagesTest, WhatTokensReadIsReported) {
  Engine engine(options());
  EXPECT_FALSE(ask(engine, request_for(prompt_tokens(kPrompt, 5), "")).usage.kv_reads);
  int64_t all = 0;  // bytes of the entries that the last but one of the tokens, which are computed, see
  int64_t half_dense = 0;
  int64_t read = 0;
  const std::vector<KvLayerSpec>& layers = engine.model_info().kv_layers;
  for (int64_t num_seen = kPrompt + 1; num_seen < kPrompt + kNewTokens; ++num_seen) {
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      const KvLayerSpec& spec = layers[layer];
      const KvBlockFormat format{GetParam().codec, spec.key_dim, spec.value_dim, spec.value_in_key};
      const int64_t bytes = spec.num_kv_heads * format.block_bytes() / kKvBlockSize;
      const int64_t visible = spec.window > 0 ? std::min<int64_t>(spec.window, num_seen) : num_seen;
      const int64_t of_pages = spec.window > 0 ? visible : 2 * 32 + (num_seen - 1) % 32 + 1;
      all += visible * bytes;
      read += of_pages * bytes;
      half_dense += (layer == 0 ? visible : of_pages) * bytes;
    }
  }
  const auto reads_of = [&](const std::string& policy) {
    const Answer answer = ask(engine, request_for(prompt_tokens(kPrompt, 5), policy));
    EXPECT_TRUE(answer.usage.kv_reads) << policy;
    return answer.usage.kv_reads.value_or(KvReads());
  };
  EXPECT_EQ(reads_of("quest(tokens=1,dense=100)").bytes, all);
  EXPECT_EQ(reads_of("quest(tokens=1,dense=100)").bytes_of_all, all);
  EXPECT_EQ(reads_of("quest(tokens=96,dense=0)").bytes, read);
  EXPECT_EQ(reads_of("quest(tokens=96,dense=0)").bytes_of_all, all);
  EXPECT_EQ(reads_of("quest(tokens=96,dense=1)").bytes, half_dense);
  EXPECT_EQ(reads_of("rocketkv(read=1000),keep=0.5").bytes_of_all, all);
  EXPECT_LT(reads_of("rocketkv(read=1000),keep=0.5").bytes, all);
}

// What generated tokens compute is not what they would compute exactly: none of it may reach other requests.
TEST_P(KvPagesTest, ExactRequestsFindNothingOfWhatWasGenerated) {
  Engine engine(options());
  const Answer lossy = ask(engine, request_for(prompt_tokens(kPrompt, 5), "quest(tokens=96,dense=0)", 100));
  std::vector<TokenId> longer = prompt_tokens(kPrompt, 5);
  for (const auto& [token, logprobs] : lossy.steps) longer.push_back(token);
  const Answer exact = ask(engine, request_for(longer, ""));
  EXPECT_EQ(exact.usage.cached_prompt_tokens, kPrompt / 32 * 32);
  ModelOptions o = options();
  o.prefix_cache = false;
  Engine without_cache(o);
  EXPECT_EQ(exact.steps, ask(without_cache, request_for(longer, "")).steps);
}

INSTANTIATE_TEST_SUITE_P(All, KvPagesTest, testing::ValuesIn(kModels), arch_name);

// Policies that merge the values of what they drop.
class KvMergingTest : public KvModelTest {};

constexpr const char* kMerging[] = {"keydiff,merge", "snapkv(window=8),cam", "h2o,cam(next=4)"};

TEST_P(KvMergingTest, TheAnswerDoesNotDependOnChunksThreadsBatchOrCache) {
  Engine engine(options());
  for (const std::string policy : kMerging) {
    expect_the_same_answer_everywhere(options(), policy + ",tokens=40,every=4");
    const auto answer_of = [&](const std::string& text) {
      return ask(engine, request_for(prompt_tokens(kPrompt, 5), text)).steps;
    };
    EXPECT_NE(answer_of(policy + ",keep=0.3"), answer_of(policy.substr(0, policy.rfind(',')) + ",keep=0.3"))
        << policy << ": without merging";
    EXPECT_EQ(answer_of(policy + ",keep=1"), answer_of("")) << policy;
  }
}

TEST_P(KvMergingTest, PreemptionDoesNotChangeAnything) {
  int64_t num_preemptions = 0;
  for (const std::string policy : kMerging) {
    num_preemptions += expect_the_same_answers_in_little_room(options(), policy + ",keep=0.8,every=12");
  }
  EXPECT_GT(num_preemptions, 0);
}

// While the merged values are in use and after it, the same prompt gives others what it would alone.
TEST_P(KvMergingTest, ExactRequestsOfTheSamePromptSeeNoMergedValue) {
  ModelOptions o = options();
  o.prefix_cache = false;
  Engine without_cache(o);
  const Answer expected = ask(without_cache, request_for(prompt_tokens(kPrompt, 5), ""));
  Engine engine(options());
  for (const std::string policy : kMerging) {
    Answer beside;
    engine.submit(request_for(prompt_tokens(kPrompt, 5), policy + ",keep=0.3", 30), {});
    for (int i = 0; i < 6; ++i) engine.step();
    engine.submit(request_for(prompt_tokens(kPrompt, 5), ""),
                  [&](const GenerationOutput& output) { beside.take(output); });
    run_all(engine);
    EXPECT_GE(beside.usage.cached_prompt_tokens, 96) << policy;
    EXPECT_EQ(beside.steps, expected.steps) << policy;
    EXPECT_EQ(ask(engine, request_for(prompt_tokens(kPrompt, 5), "")).steps, expected.steps) << policy;
  }
}

INSTANTIATE_TEST_SUITE_P(All, KvMergingTest, testing::Values(kModels[0], kModels[2]), arch_name);

}  // namespace
}  // namespace witan
