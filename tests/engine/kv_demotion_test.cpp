// KV policies that round older entries to fewer bits or leave out channels of their keys, and those that judge
// entries while the prompt is computed.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
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
using test::kPrompt;
using test::KvModelTest;
using test::ModelCase;
using test::options_for;
using test::prompt_tokens;
using test::request_for;
using test::small_options;

// Policies that make older entries smaller, alone or of what others keep or read.
class KvDemotionTest : public KvModelTest {
 protected:
  static std::string smaller_type() {
    switch (GetParam().codec) {
      case KvCodec::kBF16:  // latents
        return "k=q8_0";
      case KvCodec::kF16:
        return "k=int8-hadamard,v=int4";
      default:
        return "k=int2-hadamard";
    }
  }
  // Of the room that four take at once, for some to be preempted. From 4 bits to 2, with windows that are never
  // demoted, a sequence comes to hold little less than its peak, which it is admitted by.
  static int64_t preempting_percent() { return GetParam().codec == KvCodec::kHadamard4 ? 90 : 60; }
  static std::vector<std::string> policies() {
    std::vector<std::string> all = {"residual=16,", "residual=0,snapkv(window=8),tokens=64,",
                                    "residual=8,keydiff,tokens=60,every=4,", "residual=16,quest(tokens=96,dense=0),"};
    if (!std::string_view(GetParam().arch).starts_with("deepseek")) {
      all.emplace_back("residual=20,adakv(window=8),keep=0.5,generated_tokens=4,every=3,");
    }
    for (std::string& policy : all) policy += smaller_type();
    switch (GetParam().codec) {
      case KvCodec::kBF16:
        all.emplace_back("snapkv(window=8),tokens=90,residual=8,k=int4-latent");
        break;
      case KvCodec::kF16:
        all.insert(all.end(), {"kivi(bits=4,residual=8)", "adakv(window=8),keep=0.6,kivi(residual=0)",
                               "think(window=8,residual=16)", "think(keep=0.25,residual=0),kivi",
                               "think(keep=0.6,residual=8),snapkv(window=8),keep=0.6,every=4",
                               "think(residual=16),quest(tokens=96,dense=0)",
                               "think(window=40,residual=8),snapkv(window=8),tokens=155,every=6,k=int8-hadamard"});
        break;
      default:
        all.emplace_back("think(residual=16),k=int2-hadamard");
        break;
    }
    return all;
  }
};

TEST_P(KvDemotionTest, TheAnswerDoesNotDependOnChunksThreadsBatchOrCache) {
  for (const std::string& policy : policies()) expect_the_same_answer_everywhere(options(), policy);
}

TEST_P(KvDemotionTest, PreemptionDoesNotChangeAnything) {
  int64_t num_preemptions = 0;
  for (const std::string& policy : policies()) {
    num_preemptions += expect_the_same_answers_in_little_room(options(), policy, preempting_percent());
  }
  EXPECT_GT(num_preemptions, 0);
}

TEST_P(KvDemotionTest, WithNothingOldEnoughOrTheCachesOwnTypeNothingChanges) {
  Engine engine(options());
  const Answer dense = ask(engine, request_for(prompt_tokens(kPrompt, 5), ""));
  EXPECT_EQ(ask(engine, request_for(prompt_tokens(kPrompt, 5), "residual=200," + smaller_type())).steps, dense.steps);
  const std::string own = fmt::format("k={},residual=0", kv_codec_name(GetParam().codec));
  EXPECT_EQ(ask(engine, request_for(prompt_tokens(kPrompt, 5), own)).steps, dense.steps);
  EXPECT_EQ(ask(engine, request_for(prompt_tokens(kPrompt, 5), "think(keep=1,residual=0)")).steps, dense.steps);
}

TEST_P(KvDemotionTest, BytesAndEntriesAreReportedAndFreed) {
  ModelOptions o = options();
  o.prefix_cache = false;
  Engine engine(o);
  const Answer answer = ask(engine, request_for(prompt_tokens(kPrompt, 5), "residual=20," + smaller_type(), 40));
  ASSERT_NE(answer.usage.kv, nullptr);
  const KvCompression& kv = *answer.usage.kv;
  EXPECT_EQ(kv.num_times, 0) << "nothing was judged";
  EXPECT_EQ(kv.num_tokens, kPrompt + 32);
  EXPECT_EQ(kv.kept[0][0], kPrompt + 32);
  EXPECT_EQ(kv.demoted[0][0], (kPrompt + 32 - 20) / 32 * 32);
  EXPECT_LT(kv.bytes_after, kv.bytes_before);
  int64_t dense_bytes = 0;  // of the text so far, windows apart
  int64_t bytes = 0;
  size_t told = 0;  // layers that the report has
  for (const KvLayerSpec& layer : engine.model_info().kv_layers) {
    if (layer.window > 0) continue;
    const KvBlockFormat format{GetParam().codec, layer.key_dim, layer.value_dim, layer.value_in_key};
    ASSERT_EQ(std::ssize(kv.bytes[told]), layer.num_kv_heads);
    const int64_t of_head = kv.bytes[told++][0];
    const int64_t as_it_was = format.block_bytes() * ((kPrompt + 32 - kv.demoted[0][0] + 31) / 32);
    EXPECT_GT(of_head, as_it_was);
    EXPECT_LT(of_head, as_it_was + format.block_bytes() * kv.demoted[0][0] / 32);
    dense_bytes += layer.num_kv_heads * format.block_bytes() * ((kPrompt + 32 + 31) / 32);
    bytes += layer.num_kv_heads * format.block_bytes() * ((kPrompt + 32 - kv.demoted[0][0] + 31) / 32);
  }
  if (std::ranges::all_of(engine.model_info().kv_layers, [](const KvLayerSpec& layer) { return layer.window == 0; })) {
    EXPECT_EQ(kv.bytes_before, dense_bytes);
    int64_t of_heads = 0;
    for (const std::vector<int64_t>& layer : kv.bytes) of_heads = std::accumulate(layer.begin(), layer.end(), of_heads);
    EXPECT_EQ(of_heads, kv.bytes_after);
  } else {
    EXPECT_GT(kv.bytes_before, dense_bytes);
  }
  EXPECT_GT(kv.bytes_before - kv.bytes_after, 0);
  EXPECT_LT(kv.bytes_before - kv.bytes_after, dense_bytes - bytes) << "demoted entries take some";
  EXPECT_EQ(engine.stats().kv.block_bytes_held, 0);
}

INSTANTIATE_TEST_SUITE_P(All, KvDemotionTest, testing::ValuesIn(kModels), arch_name);

// Policies that round what does not stay.
class KvDemotedOthersTest : public KvDemotionTest {
 protected:
  static std::vector<std::string> policies() {
    std::vector<std::string> all = {"snapkv(window=8),tokens=64,", "keydiff,global,keep=0.3,", "h2o,keep=0.45,",
                                    "pyramidkv(window=8),keep=0.5,", "tova,keep=0.2,guard=0.01,"};
    for (std::string& policy : all) policy += "action=demote," + smaller_type();
    if (GetParam().codec == KvCodec::kF16) {
      all.insert(all.end(),
                 {"adakv(window=8),keep=0.37,kivi(bits=4),action=demote", "keydiff,global,keep=0.3,kivi,action=demote",
                  "snapkv(window=8),keep=0.3,think(window=8),action=demote",
                  "keydiff,adakv,keep=0.3,think(window=40,keep=0.25),k=int2-hadamard,action=demote"});
    }
    return all;
  }
};

TEST_P(KvDemotedOthersTest, TheAnswerDoesNotDependOnChunksThreadsBatchOrCache) {
  for (const std::string& policy : policies()) expect_the_same_answer_everywhere(options(), policy);
}

TEST_P(KvDemotedOthersTest, PreemptionDoesNotChangeAnything) {
  int64_t num_preemptions = 0;
  for (const std::string& policy : policies()) {
    num_preemptions += expect_the_same_answers_in_little_room(options(), policy, preempting_percent());
  }
  EXPECT_GT(num_preemptions, 0);
}

TEST_P(KvDemotedOthersTest, WhereAllStayNothingChanges) {
  Engine engine(options());
  const Answer dense = ask(engine, request_for(prompt_tokens(kPrompt, 5), ""));
  for (const char* all : {"keydiff,keep=1,", "snapkv(window=8),tokens=150,", "tova,tokens=9,guard=1,"}) {
    const std::string policy = std::string(all) + "action=demote," + smaller_type();
    EXPECT_EQ(ask(engine, request_for(prompt_tokens(kPrompt, 5), policy)).steps, dense.steps) << policy;
  }
}

// 96 of 150 entries are old with the last 54 staying, until 32 more are generated.
TEST_P(KvDemotedOthersTest, OlderOnesAreRoundedAsForTheirAge) {
  Engine engine(options());
  const Answer expected = ask(engine, request_for(prompt_tokens(kPrompt, 5), "residual=54," + smaller_type(), 32));
  const std::string policy = "streamingllm(sinks=0),tokens=54,action=demote," + smaller_type();
  const Answer answer = ask(engine, request_for(prompt_tokens(kPrompt, 5), policy, 32));
  EXPECT_EQ(answer.steps, expected.steps);
  EXPECT_EQ(answer.usage.kv->demoted, expected.usage.kv->demoted);
  EXPECT_EQ(answer.usage.kv->bytes, expected.usage.kv->bytes);
}

TEST_P(KvDemotedOthersTest, AllEntriesAndTheRoundedOnesAreReported) {
  Engine engine(options());
  const Answer answer =
      ask(engine, request_for(prompt_tokens(kPrompt, 5), "keydiff,keep=0.3,action=demote," + smaller_type(), 40));
  ASSERT_NE(answer.usage.kv, nullptr);
  const KvCompression& kv = *answer.usage.kv;
  EXPECT_EQ(kv.num_times, 1);
  EXPECT_EQ(kv.num_tokens, kPrompt);
  for (const std::vector<int32_t>& layer : kv.kept) EXPECT_THAT(layer, testing::Each(kPrompt));
  for (const std::vector<int32_t>& layer : kv.demoted) EXPECT_THAT(layer, testing::Each(kPrompt - 45));
  EXPECT_LT(kv.bytes_after, kv.bytes_before);
}

INSTANTIATE_TEST_SUITE_P(All, KvDemotedOthersTest, testing::ValuesIn(kModels), arch_name);

// Whichever they are: 8 bits change next to nothing, where without these entries the answer is another.
TEST(KvDemotedOthers, AreReadWhereTheyWereInTheText) {
  Engine engine(small_options());
  const auto logprobs = [&](const std::string& policy) {
    const test::Reading reading =
        test::read(engine, test::reading_request(prompt_tokens(kPrompt, 5), prompt_tokens(60, 31), policy));
    std::vector<float> all;
    for (const uint32_t bits : reading.bits) all.push_back(std::bit_cast<float>(bits));
    return all;
  };
  const std::vector<float> dense = logprobs("");
  const auto distance = [&](const std::string& policy) {
    const std::vector<float> other = logprobs(policy);
    double sum = 0;
    for (size_t i = 0; i < dense.size(); ++i) sum += std::abs(other[i] - dense[i]);
    return sum / static_cast<double>(dense.size());
  };
  for (const std::string policy : {"keydiff,global,keep=0.3", "h2o,keep=0.2", "adakv(window=8),keep=0.25"}) {
    const double lost = distance(policy);
    EXPECT_LT(distance(policy + ",action=demote,k=int8-hadamard"), lost / 8) << policy;
  }
}

TEST(KvChannels, HalfOfTheChannelsOfOlderKeysAreAQuarterOfTheirBytes) {
  ModelOptions o = options_for(kModels[0]);
  o.prefix_cache = false;
  Engine engine(o);
  const Answer answer = ask(engine, request_for(prompt_tokens(kPrompt, 5), "think(residual=16)", 40));
  ASSERT_NE(answer.usage.kv, nullptr);
  const KvCompression& kv = *answer.usage.kv;
  EXPECT_EQ(kv.num_times, 0) << "nothing was judged";
  EXPECT_EQ(kv.num_tokens, kPrompt + 32);
  int64_t block_bytes = 0;
  for (const KvLayerSpec& layer : engine.model_info().kv_layers) {
    block_bytes += layer.num_kv_heads * KvBlockFormat{o.kv_codec, layer.key_dim, layer.value_dim}.block_bytes();
    ASSERT_EQ(layer.key_dim, layer.value_dim);
  }
  for (const auto& layer : kv.demoted) EXPECT_EQ(layer, std::vector<int32_t>(layer.size(), 160));
  EXPECT_EQ(kv.bytes_before - kv.bytes_after, 160 / kKvBlockSize * block_bytes / 4);
  EXPECT_EQ(engine.stats().kv.block_bytes_held, 0);
}

// What is generated is demoted too, and a prompt that had nothing old yet.
TEST(KvChannels, AreChosenWhereEntriesAreDemotedFirst) {
  Engine engine(options_for(kModels[0]));
  const GenerationRequest dense = request_for(prompt_tokens(50, 5), "", 100);
  const GenerationRequest request = request_for(prompt_tokens(50, 5), "think(window=8,residual=40)", 100);
  const Answer expected = ask(engine, dense);
  const Answer answer = ask(engine, request);
  EXPECT_NE(answer.steps, expected.steps);
  // 50, 82 tokens: the first 32 are old. The token sampled there is the last that none were lost for.
  EXPECT_EQ(std::vector(answer.steps.begin(), answer.steps.begin() + 33),
            std::vector(expected.steps.begin(), expected.steps.begin() + 33));
  EXPECT_NE(answer.steps[33], expected.steps[33]);
  EXPECT_EQ(answer.usage.kv->demoted[0][0], 96);
}

TEST(KvChannels, CannotBeLeftOutOfLatentsNorOfTurnedKeysThatStayOfTheirType) {
  const auto error_of = [](const ModelCase& model) {
    Engine engine(options_for(model));
    try {
      engine.submit(request_for(prompt_tokens(kPrompt, 1), "think"), {});
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(error_of(kModels[0]), "");
  EXPECT_THAT(error_of(kModels[1]), testing::HasSubstr("(MLA)"));
  EXPECT_THAT(error_of(kModels[2]), testing::HasSubstr("of type int4-hadamard, whose keys are turned"));
}

// Policies that judge entries while the prompt is computed.
class KvPrefillTest : public KvDemotionTest {
 protected:
  static std::vector<std::string> policies() {
    std::vector<std::string> all = {"snapkv(window=8),tokens=40,prefill_every=50",
                                    "keydiff,keep=0.4,prefill_every=33",
                                    "h2o,tokens=30,prefill_every=40,every=5",
                                    "expectedattention,tokens=30,prefill_every=64",
                                    "pyramidkv(window=8),keep=0.4,prefill_every=70,residual=8," + smaller_type(),
                                    "prefill_every=64,residual=8," + smaller_type()};
    if (GetParam().codec == KvCodec::kF16) all.emplace_back("think(residual=16),keydiff,tokens=60,prefill_every=64");
    return all;
  }
};

TEST_P(KvPrefillTest, TheAnswerDoesNotDependOnChunksThreadsBatchOrCache) {
  for (const std::string& policy : policies()) expect_the_same_answer_everywhere(options(), policy);
}

TEST_P(KvPrefillTest, PreemptionDoesNotChangeAnything) {
  int64_t num_preemptions = 0;
  for (const char* policy : {"keydiff,keep=0.8,prefill_every=33", "snapkv(window=8),keep=0.7,prefill_every=40"}) {
    num_preemptions += expect_the_same_answers_in_little_room(options(), policy, 60);
  }
  EXPECT_GT(num_preemptions, 0);
}

TEST_P(KvPrefillTest, APromptNeverHoldsMoreThanItsBudgetAndWhatIsComputedUntilItIsJudged) {
  ModelOptions o = options();
  o.prefix_cache = false;
  o.max_step_tokens = 32;
  const auto peak = [&](const std::string& policy) {
    Engine engine(o);
    const Answer answer = ask(engine, request_for(prompt_tokens(400, 5), policy, 2));
    if (!policy.empty()) {
      EXPECT_EQ(answer.usage.kv->kept[0][0], 64);
      EXPECT_EQ(answer.usage.kv->num_tokens, 400);
      EXPECT_EQ(answer.usage.kv->num_times,
                policy.find("prefill_every") == std::string::npos ? 1 : 6);  // from 128 tokens on
    }
    return engine.stats().kv.peak_block_bytes_held;
  };
  const int64_t dense = peak("");
  EXPECT_EQ(peak("keydiff,tokens=64"), dense);
  EXPECT_LE(peak("keydiff,tokens=64,prefill_every=64"), dense * 60 / 100);
}

// What policies that look at keys and values alone left of a prompt's beginning, at every N of its tokens, is found by
// later requests.
TEST_P(KvPrefillTest, ALaterRequestOfThePolicyGoesOnFromWhatItLeftOfTheSameBeginning) {
  std::vector<std::string> all = {"keydiff,keep=0.4,prefill_every=33",
                                  "keynorm,tokens=50,prefill_every=64,every=16",
                                  "lagkv(lag=16),keep=0.6,prefill_every=50",
                                  "prefill_every=64,residual=8," + smaller_type(),
                                  "keydiff,global,keep=0.5,prefill_every=40,residual=8," + smaller_type(),
                                  "keydiff,keep=0.7,prefill_every=45,quest(tokens=96,dense=0)",
                                  "prefill_every=64,residual=8,quest(tokens=96,dense=0)," + smaller_type()};
  if (!std::string_view(GetParam().arch).starts_with("deepseek")) {
    all.emplace_back("keydiff,merge,keep=0.5,prefill_every=60");
  }
  const auto ends_with = [](int32_t seed) {  // the same beginning of kPrompt tokens
    std::vector<TokenId> prompt = prompt_tokens(kPrompt, 5);
    const std::vector<TokenId> question = prompt_tokens(20, seed);
    prompt.insert(prompt.end(), question.begin(), question.end());
    return prompt;
  };
  ModelOptions o = options();
  o.prefix_cache = false;
  Engine alone(o);
  const Answer dense = ask(alone, request_for(ends_with(7), ""));
  for (const std::string& policy : all) {
    SCOPED_TRACE(policy);
    const int32_t every = parse_kv_policy(policy).prefill_every;
    const Answer expected = ask(alone, request_for(ends_with(7), policy));
    Engine engine(options());
    EXPECT_EQ(ask(engine, request_for(ends_with(6), policy)).usage.cached_prompt_tokens, 0);
    EXPECT_GT(engine.stats().kv.compressed_bytes, 0);
    const Answer answer = ask(engine, request_for(ends_with(7), policy));
    EXPECT_EQ(answer.steps, expected.steps);
    EXPECT_EQ(answer.usage.cached_prompt_tokens, kPrompt / every * every);
    EXPECT_EQ(answer.usage.kv->kept, expected.usage.kv->kept);
    EXPECT_EQ(answer.usage.kv->demoted, expected.usage.kv->demoted);
    const Answer again = ask(engine, request_for(ends_with(7), policy));
    EXPECT_EQ(again.steps, expected.steps);
    EXPECT_EQ(again.usage.cached_prompt_tokens, (kPrompt + 20 - 1) / every * every);
    EXPECT_EQ(ask(engine, request_for(ends_with(7), "")).steps, dense.steps) << "all entries";
    const std::string other = policy + ",sinks=1";
    if (policy.starts_with("prefill")) continue;  // it drops none
    EXPECT_EQ(ask(engine, request_for(ends_with(7), other)).steps, ask(alone, request_for(ends_with(7), other)).steps);
  }
}

TEST_P(KvPrefillTest, WhatDependsOnMoreThanTheBeginningIsNotFound) {
  Engine engine(options());
  const auto ask_twice = [&](GenerationRequest request) {
    ask(engine, request);
    EXPECT_EQ(engine.stats().kv.compressed_bytes, 0);
    EXPECT_LT(ask(engine, request).usage.cached_prompt_tokens, 50) << "of the prefix cache";
  };
  for (const char* policy :
       {"snapkv(window=8),tokens=40,prefill_every=50", "h2o,tokens=30,prefill_every=50",
        "keydiff,guard=0.1,tokens=40,prefill_every=50", "expectedattention,tokens=40,prefill_every=50"}) {
    SCOPED_TRACE(policy);
    ask_twice(request_for(prompt_tokens(kPrompt, 5), policy));
  }
  GenerationRequest pinned = request_for(prompt_tokens(kPrompt, 5), "keydiff,tokens=40,prefill_every=50");
  pinned.kv_pinned = {{100, 110}};
  ask_twice(pinned);
}

INSTANTIATE_TEST_SUITE_P(All, KvPrefillTest, testing::ValuesIn(kModels), arch_name);

// Where nothing is ever judged, within the budget, queries alone are looked at, to choose channels.
TEST(KvDemotionEngine, ChannelsAreChosenWhereNothingIsJudged) {
  Engine engine(small_options());
  for (const char* method : {"h2o,tokens=400", "expectedattention,tokens=400", "criticalkv(window=8),tokens=400"}) {
    const Answer answer =
        ask(engine, request_for(prompt_tokens(kPrompt, 5), fmt::format("{},think(window=8,residual=8)", method)));
    ASSERT_NE(answer.usage.kv, nullptr) << method;
    EXPECT_EQ(answer.usage.kv->num_times, 0) << method;
    EXPECT_GT(answer.usage.kv->demoted[0][0], 0) << method;
    const Answer same = ask(engine, request_for(prompt_tokens(kPrompt, 5), "think(window=8,residual=8)"));
    EXPECT_EQ(answer.steps, same.steps) << method;
  }
}

// With a tenth of their entries, all generating at once, each having been computed in the same room.
TEST(KvPrefill, EightSequencesFitWhereOneDid) {
  constexpr int32_t kLength = 4000;
  constexpr size_t kGenerated = 280;
  ModelOptions o = small_options();
  o.context_length = 8192;
  o.prefix_cache = false;
  o.max_decode_slowdown = 0.0;  // prompts go on in every step, so that the last begins before the first ends
  Engine one(o);
  ask(one, request_for(prompt_tokens(kLength, 5), "", 1));
  o.kv_capacity_bytes = one.stats().kv.peak_block_bytes_held;
  Engine engine(o);
  std::vector<Answer> answers(8);
  for (int32_t i = 0; i < 8; ++i) {
    GenerationRequest request =
        request_for(prompt_tokens(kLength, 5 + i), "keydiff,keep=0.1,prefill_every=128,every=32", kGenerated);
    request.sampling.num_logprobs = 0;
    engine.submit(request,
                  [&answers, i](const GenerationOutput& output) { answers[static_cast<size_t>(i)].take(output); });
  }
  int64_t most_at_once = 0;
  while (engine.step()) {
    const auto generates = [](const Answer& answer) {
      return !answer.steps.empty() && answer.steps.size() < kGenerated;
    };
    most_at_once = std::max<int64_t>(most_at_once, std::ranges::count_if(answers, generates));
  }
  EXPECT_EQ(most_at_once, 8);
  EXPECT_EQ(engine.stats().scheduler.num_preemptions, 0);
  EXPECT_LE(engine.stats().kv.peak_block_bytes_held, o.kv_capacity_bytes);
  for (const Answer& answer : answers) {
    EXPECT_EQ(answer.steps.size(), kGenerated) << answer.error;
    for (const std::vector<int32_t>& layer : answer.usage.kv->kept) {
      EXPECT_THAT(layer, testing::Each(answer.usage.kv->num_tokens / 10));
    }
  }
}

}  // namespace
}  // namespace witan
