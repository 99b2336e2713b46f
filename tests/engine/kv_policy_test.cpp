// KV policies in the engine: what they give depends on the request alone, they free what they drop, and at a budget of
// everything they change nothing.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/engine.h"
#include "kv_policy_test_support.h"
#include "support/expect_error.h"
#include "support/goldens.h"

namespace witan {
namespace {

using test::Answer;
using test::ask;
using test::bytes_held_since;
using test::bytes_of_all_blocks;
using test::bytes_of_blocks;
using test::expect_the_same_answer_everywhere;
using test::expect_the_same_answers_in_little_room;
using test::kModels;
using test::kNewTokens;
using test::kPrompt;
using test::ModelCase;
using test::options_for;
using test::prompt_tokens;
using test::Reading;
using test::request_for;
using test::run_all;
using test::small_options;

constexpr std::string_view kWithWindow[] = {"snapkv",    "chunkkv", "pyramidkv", "adakv",
                                            "kvcompose", "shotkv",  "finch",     "criticalkv"};

class KvPolicyTest : public testing::TestWithParam<std::tuple<ModelCase, KvPolicyPart>> {
 protected:
  static ModelOptions options() { return options_for(std::get<0>(GetParam())); }
  // Where only the prompt has parts that stay together, generated tokens need a budget of their own; where only the
  // prompt is read a second time, they are not judged.
  static bool applies(std::string_view budget) {
    const std::string_view name = std::get<1>(GetParam()).name;
    const bool judges_again = budget.find("every") != std::string_view::npos;
    if (name == "kvzip") return !judges_again;
    return name != "shotkv" || !judges_again || budget.find("generated") != std::string_view::npos;
  }

  Reading read(Engine& engine, const std::string& policy, int32_t num_tokens) const {
    return test::read(engine, test::reading_request(prompt_tokens(kPrompt, 5), prompt_tokens(num_tokens, 31), policy));
  }

  static bool is_auto() { return std::get<1>(GetParam()).name == "auto"; }

  // Small windows, and no least budget, so that a short prompt has something to judge.
  static std::string policy(const std::string& budget) {
    const std::string name(std::get<1>(GetParam()).name);
    if (is_auto() && budget.find("floor") == std::string::npos) return "auto,floor=0," + budget;
    const bool has_window = std::ranges::find(kWithWindow, name) != std::end(kWithWindow);
    return name + (has_window ? "(window=8)," : name == "lagkv" ? "(lag=16)," : ",") + budget;
  }
};

// Mean over layers of the share of experts that tokens of two readings have in common.
double route_overlap(const std::vector<int32_t>& routes, const std::vector<int32_t>& others, int32_t top_k) {
  const auto k = static_cast<size_t>(top_k);
  double sum = 0.0;
  for (size_t i = 0; i < routes.size(); i += k) {
    sum += witan::route_overlap(std::span(routes).subspan(i, k), std::span(others).subspan(i, k));
  }
  return sum * top_k / static_cast<double>(routes.size());
}

TEST_P(KvPolicyTest, ABudgetOfEverythingChangesNoBit) {
  Engine engine(options());
  const Answer dense = ask(engine, request_for(prompt_tokens(kPrompt, 5), ""));
  for (const char* budget : {"keep=1", "tokens=150", "keep=0.1,floor=1000"}) {
    const Answer answer = ask(engine, request_for(prompt_tokens(kPrompt, 5), policy(budget)));
    EXPECT_EQ(answer.steps, dense.steps) << budget;
    EXPECT_EQ(answer.usage.kv, nullptr) << budget;
  }
}

TEST_P(KvPolicyTest, ABudgetOfEverythingChangesNoRouteOfAContinuation) {
  Engine engine(options());
  const Reading dense = read(engine, "", 40);
  ASSERT_EQ(dense.bits.size(), 40u);
  for (const char* budget : {"keep=1", "tokens=190", "keep=0.1,floor=1000"}) {
    const Reading reading = read(engine, policy(budget), 40);
    EXPECT_EQ(reading.bits, dense.bits) << budget;
    EXPECT_EQ(reading.routes, dense.routes) << budget;
  }
}

TEST_P(KvPolicyTest, ASmallBudgetChangesSomeRoutesOfAContinuation) {
  Engine engine(options());
  const Reading dense = read(engine, "", 40);
  const Reading reading = read(engine, policy("keep=0.2"), 40);
  EXPECT_EQ(reading.bits[0], dense.bits[0]) << "before the policy acts";
  EXPECT_NE(reading.bits, dense.bits);
  double overlap = 0.0;    // with the same tokens
  double by_chance = 0.0;  // and with all others
  const auto num_tokens = static_cast<double>(dense.routes.size());
  for (size_t i = 0; i < dense.routes.size(); ++i) {
    for (size_t j = 0; j < dense.routes.size(); ++j) {
      const double one = route_overlap(reading.routes[i], dense.routes[j], engine.model_info().top_k);
      (i == j ? overlap : by_chance) += one / (i == j ? num_tokens : num_tokens * (num_tokens - 1));
    }
  }
  RecordProperty("route_overlap", fmt::format("{:.4f}", overlap));
  RecordProperty("route_overlap_by_chance", fmt::format("{:.4f}", by_chance));
  EXPECT_LT(overlap, 1.0);
  EXPECT_GT(overlap, 1.5 * by_chance) << "a token's routes are mostly its own";
}

TEST_P(KvPolicyTest, WhatIsReportedIsHeldAndTheRestIsFree) {
  ModelOptions o = options();
  o.prefix_cache = false;
  Engine engine(o);
  Answer answer;
  engine.submit(request_for(prompt_tokens(kPrompt, 5), policy("keep=0.3")),
                [&](const GenerationOutput& output) { answer.take(output); });
  const KvCodec codec = o.kv_codec;
  size_t num_checked = 0;
  while (engine.step()) {
    if (answer.usage.kv == nullptr || answer.steps.size() == kNewTokens) continue;
    const int32_t num_tokens = kPrompt + static_cast<int32_t>(answer.steps.size()) - 1;  // that are computed
    EXPECT_EQ(engine.stats().kv.block_bytes_held,
              bytes_held_since(engine.model_info(), codec, *answer.usage.kv, num_tokens))
        << "at " << num_tokens << " tokens";
    ++num_checked;
  }
  EXPECT_GE(num_checked, kNewTokens - 2) << "from the end of the prompt on";
  ASSERT_NE(answer.usage.kv, nullptr);
  const KvCompression& kv = *answer.usage.kv;
  EXPECT_EQ(kv.num_tokens, kPrompt);
  EXPECT_EQ(kv.num_times, 1);
  int64_t num_kept = 0;
  int64_t num_heads = 0;
  for (const auto& layer : kv.kept) {
    num_kept += std::accumulate(layer.begin(), layer.end(), int64_t{0});
    num_heads += std::ssize(layer);
  }
  if (is_auto()) {
    EXPECT_GE(num_kept, num_heads * 45) << "in the memory of so many, where need be rounded";
  } else {
    EXPECT_EQ(num_kept, num_heads * 45) << "0.3 of 150 in every head, on average";
  }
  EXPECT_LT(kv.bytes_after, kv.bytes_before);
  EXPECT_EQ(kv.bytes_before, bytes_of_all_blocks(engine.model_info(), codec, kPrompt));
  if (!is_auto()) {  // which rounds some
    EXPECT_THAT(kv.demoted, testing::Each(testing::Each(0)));
    EXPECT_EQ(kv.bytes_after, bytes_of_blocks(engine.model_info(), codec, kPrompt, kv.kept));
  }
  EXPECT_EQ(engine.stats().kv.block_bytes_held, 0);
}

TEST_P(KvPolicyTest, BudgetsHoldWhileTokensAreGenerated) {
  ModelOptions o = options();
  o.prefix_cache = false;
  Engine engine(o);
  struct Case {
    std::string budget;
    int32_t times;
    int32_t tokens;
    int32_t kept;  // of each head, on average, when they were judged last
  };
  for (const Case& c : {Case{"tokens=40,every=8", 4, kPrompt + 24, 40}, Case{"keep=0.3,every=10", 3, kPrompt + 20, 51},
                        Case{"tokens=160,every=8", 2, kPrompt + 24, 160},
                        Case{"keep=0.3,generated_tokens=10,every=8", 3, kPrompt + 24, 55},
                        Case{"generated_keep=0.5,every=8", 3, kPrompt + 24, kPrompt + 12}}) {
    if (!applies(c.budget)) continue;
    const Answer answer = ask(engine, request_for(prompt_tokens(kPrompt, 5), policy(c.budget), 30));
    ASSERT_NE(answer.usage.kv, nullptr) << c.budget;
    const KvCompression& kv = *answer.usage.kv;
    EXPECT_EQ(kv.num_times, c.times) << c.budget;
    EXPECT_EQ(kv.num_tokens, c.tokens) << c.budget;
    int64_t num_kept = 0;
    int64_t num_heads = 0;
    for (const auto& layer : kv.kept) {
      num_kept += std::accumulate(layer.begin(), layer.end(), int64_t{0});
      num_heads += std::ssize(layer);
    }
    EXPECT_EQ(num_kept, num_heads * c.kept) << c.budget;
  }
}

TEST_P(KvPolicyTest, TheAnswerDoesNotDependOnChunksThreadsBatchOrCache) {
  for (const char* budget : {"tokens=40,every=4", "keep=0.3,generated_tokens=4,every=3"}) {
    if (applies(budget)) expect_the_same_answer_everywhere(options(), policy(budget));
  }
  if (!applies("every=1")) expect_the_same_answer_everywhere(options(), policy("keep=0.3"));
}

TEST_P(KvPolicyTest, PreemptionDoesNotChangeAnything) {
  int64_t num_preemptions = 0;
  for (const char* budget : {"keep=0.5", "keep=0.8,generated_keep=0.9,every=12"}) {
    if (applies(budget)) num_preemptions += expect_the_same_answers_in_little_room(options(), policy(budget));
  }
  // Room that is set aside for repetitions may suffice for all that follows: KvRepetitionTest has less.
  if (std::get<1>(GetParam()).name != "kvzip") {
    EXPECT_GT(num_preemptions, 0);
  }
}

std::vector<KvPolicyPart> methods() {
  std::vector<KvPolicyPart> all;
  std::ranges::copy_if(kv_policy_parts(), std::back_inserter(all), &KvPolicyPart::is_method);
  return all;
}

std::string case_name(const testing::TestParamInfo<std::tuple<ModelCase, KvPolicyPart>>& info) {
  std::string name = fmt::format("{}_{}", std::get<0>(info.param).arch, std::get<1>(info.param).name);
  std::ranges::replace(name, '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, KvPolicyTest, testing::Combine(testing::ValuesIn(kModels), testing::ValuesIn(methods())),
                         case_name);

TEST(KvPolicyEngine, PinnedTokensNeedRoomWhereEntriesAreJudgedFirst) {
  Engine engine(small_options());
  const auto with_pins = [&](const std::string& policy, int32_t end) {
    GenerationRequest request = request_for(prompt_tokens(200, 1), policy, 4);
    request.kv_pinned = {{.begin = 0, .end = end}};
    return ask(engine, request);
  };
  EXPECT_EQ(with_pins("keydiff,tokens=100,prefill_every=40", 70).usage.kv->kept[0][0], 100)
      << "the first 80 tokens are within the budget";
  EXPECT_EQ(with_pins("keydiff,generated_tokens=64,prefill_every=40", 150).usage.kv, nullptr) << "the prompt stays";
  EXPECT_THROW((void)with_pins("keydiff,keep=0.5,prefill_every=40", 30), Error) << "only 20 of the first 40 stay";
}

TEST(KvPolicyEngine, EightCompressedSequencesFitWhereTwoDenseOnesDo) {
  ModelOptions o = small_options();
  o.prefix_cache = false;
  o.max_step_tokens = 1000;
  o.max_mixed_prompt_tokens = 1000;
  o.max_decode_slowdown = 0;
  {
    Engine probe(o);
    ask(probe, request_for(prompt_tokens(320, 1), "", 30));
    o.kv_capacity_bytes = probe.stats().kv.peak_block_bytes_held * 2;
  }
  const auto most_running = [&](const std::string& policy) {
    Engine engine(o);
    for (int32_t i = 0; i < 8; ++i) engine.submit(request_for(prompt_tokens(320, i), policy, 30), {});
    int64_t most = 0;
    while (engine.step()) most = std::max(most, engine.stats().scheduler.num_running);
    EXPECT_LE(engine.stats().kv.peak_block_bytes_held, o.kv_capacity_bytes);
    EXPECT_EQ(engine.stats().scheduler.num_preemptions, 0);
    return most;
  };
  EXPECT_EQ(most_running(""), 2);
  EXPECT_GE(most_running("snapkv,tokens=32"), 7);
  EXPECT_GE(most_running("k=int2-hadamard,residual=32"), 4);
}

TEST(KvPolicyEngine, PromptsThatEndTogetherInLittleRoomGiveWhatTheyGiveInPlenty) {
  ModelOptions o = small_options();
  o.max_step_tokens = 2000;
  const auto run = [&](Engine& engine) {
    std::map<int32_t, Answer> answers;
    for (int32_t i = 0; i < 12; ++i) {
      engine.submit(request_for(prompt_tokens(64 + 8 * i, i), "snapkv(window=8),keep=0.8", 100),
                    [&answers, i](const GenerationOutput& output) { answers[i].take(output); });
    }
    run_all(engine);
    std::vector<decltype(Answer::steps)> steps;
    for (auto& [i, answer] : answers) {
      EXPECT_TRUE(answer.error.empty()) << answer.error;
      steps.push_back(std::move(answer.steps));
    }
    return steps;
  };
  Engine calm(o);
  const auto expected = run(calm);
  int64_t num_preemptions = 0;
  for (const int64_t percent : {14, 20, 30, 45}) {
    ModelOptions tight = o;
    tight.kv_capacity_bytes = calm.stats().kv.peak_block_bytes_held * percent / 100;
    Engine engine(tight);
    EXPECT_EQ(run(engine), expected) << percent << " % of the room";
    num_preemptions += engine.stats().scheduler.num_preemptions;
  }
  EXPECT_GT(num_preemptions, 0);
}

TEST(KvPolicyEngine, AGuardFallsBackToAllEntriesAndSaysSo) {
  Engine engine(small_options());
  const Answer dense = ask(engine, request_for(prompt_tokens(150, 1), "", 40));
  const Answer guarded = ask(engine, request_for(prompt_tokens(150, 1), "keynorm,keep=0.1,guard=0.999", 40));
  EXPECT_EQ(guarded.steps, dense.steps);
  ASSERT_NE(guarded.usage.kv, nullptr);
  EXPECT_TRUE(guarded.usage.kv->fell_back);
  EXPECT_LT(guarded.usage.kv->attention_kept, 0.999);
  EXPECT_EQ(guarded.usage.kv->bytes_after, guarded.usage.kv->bytes_before);
  EXPECT_EQ(guarded.usage.kv->kept[0][0], 150);
  const Answer content = ask(engine, request_for(prompt_tokens(150, 1), "keynorm,keep=0.1,guard=0.001", 40));
  EXPECT_EQ(content.steps, ask(engine, request_for(prompt_tokens(150, 1), "keynorm,keep=0.1", 40)).steps);
  EXPECT_FALSE(content.usage.kv->fell_back);
  // Each time anew.
  const Answer again = ask(engine, request_for(prompt_tokens(150, 1), "keynorm,keep=0.1,guard=0.999,every=10", 40));
  EXPECT_EQ(again.steps, dense.steps);
  EXPECT_EQ(again.usage.kv->num_times, 4);
  EXPECT_EQ(again.usage.kv->kept[0][0], 180);
}

TEST(KvPolicyEngine, HeadsOfAKindKeepEverythingAndTheOthersTheProtected) {
  Engine engine(small_options());
  const size_t num_layers = engine.model_info().kv_layers.size();
  std::string kinds = "10";
  for (size_t l = 1; l < num_layers; ++l) kinds += "/01";
  const std::string policy = "duoattention(heads=" + kinds + ",sinks=4,recent=16),every=10";
  const Answer answer = ask(engine, request_for(prompt_tokens(150, 1), policy, 36));
  ASSERT_NE(answer.usage.kv, nullptr);
  EXPECT_EQ(answer.usage.kv->num_tokens, 180);
  EXPECT_EQ(answer.usage.kv->kept[0], (std::vector<int32_t>{180, 20}));
  EXPECT_EQ(answer.usage.kv->kept[1], (std::vector<int32_t>{20, 180}));
  expect_the_same_answer_everywhere(small_options(), policy);
  for (const char* wrong : {"duoattention(heads=10)", "duoattention(heads=101)"}) {
    EXPECT_THROW(engine.submit(request_for(prompt_tokens(50, 1), wrong), {}), Error) << wrong;
  }
}

TEST(KvPolicyEngine, LayersKeepWhatATableSays) {
  Engine engine(small_options());
  ASSERT_EQ(engine.model_info().kv_layers.size(), 2u);
  const std::string policy = "keydiff,layershares(shares=3/1),recent=20,tokens=60,every=10";
  const Answer answer = ask(engine, request_for(prompt_tokens(150, 1), policy, 36));
  ASSERT_NE(answer.usage.kv, nullptr);
  EXPECT_EQ(answer.usage.kv->kept, (std::vector<std::vector<int32_t>>{{80, 80}, {40, 40}})) << "20, and 3 to 1 of 80";
  expect_the_same_answer_everywhere(small_options(), policy);
  expect_the_same_answer_everywhere(small_options(),
                                    "layershares(shares=0/1,window=8),adakv(window=8),keep=0.4,every=7");
  test::expect_error(ErrorCode::kInvalidArgument, "shares of 3 layers; the model has 2 without a window",
                     [&] { engine.submit(request_for(prompt_tokens(50, 1), "layershares(shares=1*3),keep=0.5"), {}); });
}

TEST(KvPolicyEngine, LazyLayersKeepTheProtectedAndTheOthersEverything) {
  Engine engine(small_options());
  const Answer dense = ask(engine, request_for(prompt_tokens(150, 1), "", 36));
  const Answer none = ask(engine, request_for(prompt_tokens(150, 1), "simlayerkv(threshold=1,sinks=4,recent=16)", 36));
  EXPECT_EQ(none.steps, dense.steps) << "no layer is as lazy";
  const std::string all = "simlayerkv(threshold=0,sinks=4,recent=16),every=10";
  const Answer lazy = ask(engine, request_for(prompt_tokens(150, 1), all, 36));
  for (const auto& layer : lazy.usage.kv->kept) EXPECT_THAT(layer, testing::Each(20));
  expect_the_same_answer_everywhere(small_options(), all);
}

TEST(KvPolicyEngine, PinnedTokensMustBeInThePromptAndInTheBudget) {
  Engine engine(small_options());
  GenerationRequest request = request_for(prompt_tokens(100, 1), "streamingllm,tokens=30");
  const Answer expected = ask(engine, request);
  request.kv_pinned = {{.begin = 40, .end = 50}};
  EXPECT_NE(ask(engine, request).steps, expected.steps);
  const auto error_of = [&](std::vector<KvSpan> pinned) -> std::string {
    request.kv_pinned = std::move(pinned);
    try {
      engine.submit(request, {});
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return error.what();
    }
    return "none";
  };
  EXPECT_THAT(error_of({{90, 101}}), testing::HasSubstr("pinned tokens 90 to 101 are not in the prompt of 100"));
  EXPECT_THAT(error_of({{7, 7}}), testing::HasSubstr("pinned tokens 7 to 7"));
  EXPECT_THAT(error_of({{-1, 7}}), testing::HasSubstr("pinned tokens -1 to 7"));
  EXPECT_THAT(error_of({{0, 20}, {50, 61}}), testing::HasSubstr("the room of 27 entries, but of the 30"))
      << "4 of them are sinks anyway";
  EXPECT_EQ(error_of({{0, 20}, {10, 30}}), "none") << "those in both count once";
  request.kv_policy = parse_kv_policy("snapkv(window=20),tokens=30");
  EXPECT_EQ(error_of({{80, 100}}), "none") << "they are the most recent";
  request.kv_policy = parse_kv_policy("snapkv(window=20),tokens=30,every=8");
  EXPECT_THAT(error_of({{80, 100}}), testing::HasSubstr("the room of 20 entries")) << "later they are not any more";
  request.kv_policy = parse_kv_policy("snapkv(window=20),tokens=100,every=8");
  EXPECT_THAT(error_of({{10, 100}}), testing::HasSubstr("the room of 90 entries")) << "the prompt alone would fit";
  request.kv_policy = parse_kv_policy("chunkkv(window=8,chunk=10),tokens=30");
  EXPECT_EQ(error_of({{10, 11}, {40, 41}}), "none");
  EXPECT_THAT(error_of({{10, 11}, {40, 41}, {70, 71}}), testing::HasSubstr("the room of 30 entries"));
  for (const char* policy : {"pyramidkv,tokens=30", "simlayerkv(sinks=4,recent=8)", "kvcompose,tokens=30"}) {
    request.kv_policy = parse_kv_policy(policy);
    EXPECT_THAT(error_of({{40, 41}}), testing::HasSubstr("cannot be pinned")) << policy;
  }
}

// Whatever parts are put together: they are refused by name, or keep what their budget says.
TEST(KvPolicyEngine, AnyTwoPartsAreRefusedOrKeepTheirBudget) {
  Engine engine(small_options());
  struct Variant {
    const char* keys;
    bool pinned;
    int64_t kept;  // of each head, on average, when entries were judged last; -1: everything, by guard or action
  };
  constexpr int32_t kLength = 100;
  constexpr int32_t kNew = 22;
  const Variant variants[] = {{",tokens=40", false, 40},
                              {",tokens=40,every=8", false, 40},
                              {",keep=0.5,generated_tokens=5,every=6", false, 55},
                              {",tokens=40,every=8,guard=1", false, -1},
                              {",tokens=40", true, 40},
                              {",tokens=40,prefill_every=32", false, 40},
                              {",tokens=40,every=8,k=int4-hadamard,residual=8", false, 40},
                              {",tokens=40,guard=1,k=int4-hadamard,residual=8", false, -1},
                              {",tokens=40,action=demote,k=int4-hadamard", true, -1}};
  const auto text_of = [](const KvPolicyPart& part) {
    const bool has_window = std::ranges::find(kWithWindow, part.name) != std::end(kWithWindow);
    const std::string name(part.name);
    if (name == "duoattention") return name + "(heads=10/01,recent=16)";
    if (name == "layershares") return name + "(shares=3/1,window=4)";
    if (name == "kivi") return name + "(residual=8)";
    if (name == "kvtuner") return name + "(layers=int4-hadamard/k4v2-hadamard,residual=8)";
    if (name == "think") return name + "(window=4,residual=8)";
    return has_window ? name + "(window=4)" : name;
  };
  int32_t num_run = 0;
  int32_t num_demoting = 0;
  for (const KvPolicyPart& first : kv_policy_parts()) {
    for (const KvPolicyPart& second : kv_policy_parts()) {
      for (const Variant& v : variants) {
        const std::string text = fmt::format("{},{}{}", text_of(first), text_of(second), v.keys);
        Answer answer;
        try {
          GenerationRequest request = request_for(prompt_tokens(kLength, 3), text, kNew);
          if (v.pinned) request.kv_pinned = {{.begin = 50, .end = 53}};
          engine.submit(request, [&](const GenerationOutput& output) { answer.take(output); });
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << text;
          continue;
        }
        run_all(engine);
        EXPECT_EQ(answer.error, "") << text;
        ASSERT_NE(answer.usage.kv, nullptr) << text;
        const auto sum_of = [](const std::vector<std::vector<int32_t>>& by_layer) {
          int64_t sum = 0;
          for (const auto& layer : by_layer) sum = std::accumulate(layer.begin(), layer.end(), sum);
          return sum;
        };
        const KvCompression& kv = *answer.usage.kv;
        const auto num_heads = std::ssize(kv.kept) * std::ssize(kv.kept[0]);
        EXPECT_EQ(sum_of(kv.kept), num_heads * (v.kept < 0 ? kv.num_tokens : v.kept)) << text;
        const bool demotes_others = text.find("action=demote") != std::string::npos;
        const bool demotes = demotes_others || text.find("residual") != std::string::npos;
        EXPECT_EQ(sum_of(kv.demoted) > 0, demotes) << text;
        if (demotes_others) {
          EXPECT_EQ(sum_of(kv.demoted), num_heads * (kLength - 40)) << text;
        }
        ++num_run;
        num_demoting += demotes ? 1 : 0;
      }
    }
  }
  EXPECT_GT(num_run, 200);
  EXPECT_GT(num_demoting, 100);
}

// With a guard that always falls back, what is collected must have room for the whole text.
TEST(KvPolicyEngine, AttentionMassHasRoomForWhatAGuardKeeps) {
  ModelOptions o = small_options();
  o.context_length = 1500;
  Engine engine(o);
  const Answer dense = ask(engine, request_for(prompt_tokens(500, 1), "", 200));
  const Answer guarded = ask(engine, request_for(prompt_tokens(500, 1), "h2o,tokens=100,every=32,guard=1", 200));
  EXPECT_EQ(guarded.steps, dense.steps);
  EXPECT_EQ(guarded.usage.kv->num_times, 7);
}

TEST(KvPolicyEngine, ThePoolOfGeneratedTokensMayGrow) {
  for (const ModelCase& model : kModels) {
    SCOPED_TRACE(model.arch);
    Engine engine(options_for(model));
    const std::string growing = ",keep=0.3,generated_tokens=10,every=4,generated_growth=adaptive";
    // One more than the recent ones every 26/6 or 25/5 of 30 tokens.
    for (const auto& [method, kept] : {std::pair("snapkv(window=4)", 45 + 4 + 5), std::pair("h2o", 45 + 5 + 4)}) {
      const Answer answer = ask(engine, request_for(prompt_tokens(kPrompt, 5), method + growing, 30));
      ASSERT_NE(answer.usage.kv, nullptr);
      EXPECT_EQ(answer.usage.kv->num_tokens, kPrompt + 28);
      EXPECT_EQ(answer.usage.kv->kept[0].empty() ? 0 : answer.usage.kv->kept[0][0], kept) << method;
    }
    expect_the_same_answer_everywhere(options_for(model),
                                      "h2o,keep=0.3,generated_tokens=6,every=2,generated_growth=adaptive");
  }
  expect_the_same_answers_in_little_room(small_options(),
                                         "snapkv(window=8),keep=0.8,generated_keep=0.9,every=12,"
                                         "generated_growth=adaptive");
}

TEST(KvPolicyEngine, VariantsOfMethodsGiveTheSameEverywhere) {
  for (const ModelCase& model : kModels) {
    SCOPED_TRACE(model.arch);
    for (const char* policy :
         {"finch(window=8,chunk=32),tokens=40,every=4", "expectedattention(covariance=off,future=7),tokens=40,every=4",
          "expectedattention(sinks=40),tokens=60,every=4", "criticalkv(window=8),adakv(window=8),tokens=40,every=4",
          "expectedattention(values=off),criticalkv(window=8),global,tokens=40,every=4",
          "h2o,criticalkv(window=8),keep=0.3,generated_tokens=4,every=3"}) {
      expect_the_same_answer_everywhere(options_for(model), policy);
    }
  }
}

// What the moments have of one token, rotated by its position, is what the window has of it.
TEST(KvPolicyEngine, MomentsAreOfQueriesBeforeTheirRotation) {
  constexpr int32_t kLast = 5;
  for (const ModelCase& c : kModels) {
    LoadedModel model(options_for(c));
    KvEvidence evidence;
    evidence.window = model.make_query_window(kLast, 1);
    evidence.moments = model.make_query_moments({.order = QueryMoments::Order::kCovariance, .first_token = kLast});
    const SequenceId sequence = model.kv().create();
    ASSERT_TRUE(model.kv().reserve(sequence, kLast + 1));
    ForwardBatch batch;
    batch.slices.push_back({.kv_sequence = sequence, .num_tokens = kLast + 1, .evidence = &evidence});
    for (int32_t i = 0; i <= kLast; ++i) {
      batch.tokens.push_back(10 + i);
      batch.positions.push_back(i);
      batch.roles.push_back(TokenRole::kPrompt);
    }
    model.forward(batch);
    int32_t num_layers = 0;
    for (int32_t layer = 0; layer < model.info().num_layers; ++layer) {
      const KvLayerSpec& spec = model.info().kv_layers[static_cast<size_t>(layer)];
      if (spec.window > 0) continue;
      const auto& scoring = evidence.moments->scoring(layer);
      ASSERT_NE(scoring.rope, nullptr);
      EXPECT_EQ(scoring.scale, evidence.window->scoring(layer).scale);
      EXPECT_EQ(scoring.sinks, evidence.window->scoring(layer).sinks);
      std::vector<float> cos(static_cast<size_t>(scoring.rope->dim() / 2));
      std::vector<float> sin(cos.size());
      scoring.rope->angles(kLast, cos.data(), sin.data());
      const auto dim = static_cast<size_t>(spec.key_dim);
      for (int32_t head = 0; head < model.info().num_heads; ++head) {
        std::vector<double> mean(dim);
        evidence.moments->mean(layer, head, mean.data());
        std::vector<double> covariance(dim * dim);
        evidence.moments->covariance(layer, head, mean.data(), covariance.data());
        EXPECT_THAT(covariance, testing::Each(0.0)) << "of one token";
        std::vector<float> query(mean.begin(), mean.end());
        EXPECT_NE(query, std::vector<float>(dim));
        rope(model.isa(), scoring.rope->layout(), cos.data(), sin.data(), scoring.rope->dim(),
             query.data() + scoring.rope_offset);
        const float* rotated = evidence.window->queries(layer, kLast) + head * spec.key_dim;
        EXPECT_EQ(query, std::vector<float>(rotated, rotated + spec.key_dim)) << c.arch << " " << layer << " " << head;
      }
      ++num_layers;
    }
    EXPECT_GT(num_layers, 0);
    model.kv().release(sequence);
  }
}

TEST(KvPolicyEngine, TheSecondStageChangesWhatStays) {
  for (const ModelCase& model : kModels) {
    Engine engine(options_for(model));
    const auto steps_of = [&](const char* policy) {
      return ask(engine, request_for(prompt_tokens(kPrompt, 5), policy)).steps;
    };
    EXPECT_EQ(steps_of("criticalkv(first=1,window=8),tokens=40"), steps_of("snapkv(window=8),tokens=40")) << model.arch;
    EXPECT_NE(steps_of("criticalkv(first=0,window=8),tokens=40"), steps_of("snapkv(window=8),tokens=40")) << model.arch;
  }
}

TEST(KvPolicyEngine, TokensMayBePinnedWhereEntriesAreJudgedTwiceButNotByChunks) {
  Engine engine(small_options());
  GenerationRequest request = request_for(prompt_tokens(100, 1), "criticalkv(window=8),tokens=30");
  const Answer expected = ask(engine, request);
  request.kv_pinned = {{.begin = 40, .end = 50}};
  EXPECT_NE(ask(engine, request).steps, expected.steps);
  request.kv_policy = parse_kv_policy("finch(window=8,chunk=20),tokens=30");
  EXPECT_THROW(engine.submit(request, {}), Error);
}

TEST(KvPolicyEngine, AnAnswerThatIsThereIsNotJudged) {
  Engine engine(small_options());
  GenerationRequest request = request_for(prompt_tokens(100, 1), "snapkv(window=8),keep=0.2", 20);
  const Answer answer = ask(engine, request);
  ASSERT_NE(answer.usage.kv, nullptr);
  request.stop_tokens = {answer.steps.front().first};
  const Answer stopped = ask(engine, request);
  EXPECT_EQ(stopped.steps.size(), 1u);
  EXPECT_EQ(stopped.usage.kv, nullptr);
}

TEST(KvPolicyEngine, TokensWithoutANameEndNoPart) {
  Engine engine(small_options());
  std::vector<TokenId> prompt = prompt_tokens(60, 1);
  prompt[20] = engine.model_info().vocab_size - 1;
  EXPECT_EQ(ask(engine, request_for(prompt, "shotkv(window=4),tokens=20", 4)).usage.kv->kept[0][0], 20);
}

TEST(KvPolicyEngine, AWindowOrABudgetBeyondThePromptIsNoError) {
  Engine engine(small_options());
  const Answer tiny = ask(engine, request_for(prompt_tokens(5, 1), "snapkv(window=64),tokens=3"));
  ASSERT_NE(tiny.usage.kv, nullptr);
  EXPECT_EQ(tiny.usage.kv->kept[0][0], 3);
  const Answer one = ask(engine, request_for(prompt_tokens(1, 1), "snapkv,keep=0.1"));
  EXPECT_EQ(one.usage.kv, nullptr);
}

TEST(KvPolicyEngine, AnAnswerOfOneTokenAndCancellingWhileComputingAreFine) {
  Engine engine(small_options());
  EXPECT_EQ(ask(engine, request_for(prompt_tokens(100, 1), "snapkv,keep=0.2", 1)).steps.size(), 1u);
  Answer answer;
  const RequestId id = engine.submit(request_for(prompt_tokens(100, 2), "snapkv,keep=0.2", 50),
                                     [&](const GenerationOutput& output) { answer.take(output); });
  engine.step();
  engine.cancel(id);
  run_all(engine);
  EXPECT_EQ(engine.stats().kv.block_bytes_held, engine.stats().kv.block_bytes_cached);
}

TEST(KvPolicyEngine, ModelsWithoutValuesOfTheirOwnRefuseToMergeThem) {
  Engine engine(options_for(kModels[1]));
  for (const char* policy : {"keynorm,merge,keep=0.5", "snapkv,cam,keep=0.5"}) {
    try {
      engine.submit(request_for(prompt_tokens(50, 1), policy), {});
      FAIL() << policy << " is accepted";
    } catch (const KvPolicyError& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
      EXPECT_THAT(error.what(), testing::HasSubstr("MLA"));
    }
  }
}

TEST(KvPolicyEngine, ModelsWithAnEncoderRefuseThem) {
  WITAN_GOLDEN_OR_SKIP(golden, "switch/hf");
  Engine engine({.path = golden, .num_threads = 1, .memory_bytes = int64_t{512} << 20, .context_length = 128});
  try {
    GenerationRequest request;
    request.prompt = {5, 6};
    request.kv_policy = parse_kv_policy("snapkv,keep=0.5");
    engine.submit(request, {});
    FAIL() << "accepted";
  } catch (const KvPolicyError& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_THAT(error.what(), testing::HasSubstr("encoder"));
  }
}

}  // namespace
}  // namespace witan
