// action=hide and action=offload in the engine: what is not read comes back, and nothing else differs from evicting it.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "kv_policy_test_support.h"

namespace witan {
namespace {

using test::Answer;
using test::ask;
using test::expect_the_same_answer_everywhere;
using test::expect_the_same_answers_in_little_room;
using test::kModels;
using test::kPrompt;
using test::KvModelTest;
using test::options_for;
using test::prompt_tokens;
using test::request_for;
using test::run_all;
using test::small_options;

// Methods with small windows, of every kind of evidence that can be had of entries that are not read.
constexpr const char* kPolicies[] = {"snapkv(window=8)",
                                     "streamingllm",
                                     "keynorm",
                                     "keydiff",
                                     "lagkv(lag=16)",
                                     "tova",
                                     "expectedattention(future=7)",
                                     "criticalkv(window=8),global",
                                     "adakv(window=8)",
                                     "pyramidkv(window=8)",
                                     "kvcompose(window=8)",
                                     "chunkkv(window=8)",
                                     "chunkkv(window=8,reuse=2)",
                                     "finch(window=8)",
                                     "rkv",
                                     "rocketkv(window=8,read=64)"};

ModelOptions with_directory(ModelOptions options) {
  options.kv_offload_directory = std::filesystem::temp_directory_path();
  return options;
}

Answer ask_for(Engine& engine, const std::string& policy, int32_t num_new = 12) {
  return ask(engine, request_for(prompt_tokens(kPrompt, 5), policy, num_new));
}

class KvAsideEngineTest : public KvModelTest {
 protected:
  static ModelOptions options() { return with_directory(KvModelTest::options()); }
};

TEST_P(KvAsideEngineTest, UntilItIsJudgedAgainHiddenIsEvicted) {
  Engine engine(options());
  for (const std::string policy : kPolicies) {
    Answer evicted = ask_for(engine, policy + ",tokens=40,every=20", 30);
    Answer hidden = ask_for(engine, policy + ",tokens=40,every=20,action=hide", 30);
    EXPECT_EQ(hidden.usage.kv->num_times, 2) << policy;
    EXPECT_GT(hidden.usage.kv->bytes_hidden, 0) << policy;
    evicted.steps.resize(21);  // the last of them is computed when they are judged
    hidden.steps.resize(21);
    EXPECT_EQ(hidden.steps, evicted.steps) << policy;
  }
}

TEST_P(KvAsideEngineTest, WhereItIsJudgedAgainOthersComeBack) {
  Engine engine(options());
  for (const std::string policy : {"snapkv(window=8)", "keydiff", "tova", "expectedattention(future=7)",
                                   "criticalkv(window=8),global", "chunkkv(window=8)", "rkv"}) {
    const Answer evicted = ask_for(engine, policy + ",tokens=40,every=5", 40);
    const Answer hidden = ask_for(engine, policy + ",tokens=40,every=5,action=hide", 40);
    EXPECT_EQ(hidden.usage.kv->num_times, evicted.usage.kv->num_times) << policy;
    EXPECT_NE(hidden.steps, evicted.steps) << policy;
  }
}

// The first and the last entries, and keys of the least norms, are the same among all as among those that were kept.
TEST_P(KvAsideEngineTest, WhereNothingWouldComeBackHiddenIsEvicted) {
  Engine engine(options());
  for (const std::string policy : {"streamingllm,tokens=40,every=5", "keynorm,tokens=40,every=5"}) {
    const Answer evicted = ask_for(engine, policy, 40);
    EXPECT_EQ(evicted.usage.kv->num_times, 8) << policy;
    EXPECT_EQ(ask_for(engine, policy + ",action=hide", 40).steps, evicted.steps) << policy;
  }
}

TEST_P(KvAsideEngineTest, OffloadedIsHidden) {
  Engine engine(options());
  for (const std::string policy : kPolicies) {
    for (const char* budget : {",tokens=40,every=5", ",keep=0.3,every=7", ",keep=0.3,prefill_every=50"}) {
      const bool is_in_prompt = std::string_view(budget).find("prefill") != std::string_view::npos;
      if (is_in_prompt && policy.starts_with("finch")) continue;  // it keeps a share of each chunk of a whole prompt
      const Answer hidden = ask_for(engine, policy + budget + ",action=hide", 40);
      const Answer offloaded = ask_for(engine, policy + budget + ",action=offload", 40);
      EXPECT_EQ(offloaded.steps, hidden.steps) << policy << budget;
      EXPECT_EQ(offloaded.usage.kv->kept, hidden.usage.kv->kept) << policy << budget;
    }
  }
}

TEST_P(KvAsideEngineTest, TheAnswerDependsOnTheRequestAlone) {
  for (const std::string policy : {"snapkv(window=8)", "keydiff", "criticalkv(window=8),global", "rkv"}) {
    expect_the_same_answer_everywhere(options(), policy + ",tokens=40,every=4,action=hide");
    expect_the_same_answer_everywhere(options(), policy + ",tokens=40,every=4,action=offload");
  }
  expect_the_same_answer_everywhere(options(), "keydiff,keep=0.3,prefill_every=40,every=4,action=hide");
}

TEST_P(KvAsideEngineTest, PreemptionDoesNotChangeAnything) {
  int64_t num_preemptions = 0;
  for (const char* policy : {"snapkv(window=8),tokens=40,every=16,action=hide", "keydiff,keep=0.3,every=16,action=hide",
                             "snapkv(window=8),tokens=40,every=16,action=offload",
                             "criticalkv(window=8),global,keep=0.3,every=16,action=offload"}) {
    num_preemptions += expect_the_same_answers_in_little_room(options(), policy, 60);
  }
  EXPECT_GT(num_preemptions, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, KvAsideEngineTest, testing::ValuesIn(kModels), test::arch_name);

TEST(KvAsideEngine, BytesAreHeldWhereTheReportSaysSo) {
  for (const bool is_file : {false, true}) {
    ModelOptions options = with_directory(small_options());
    options.prefix_cache = false;
    Engine engine(options);
    int64_t held = 0;
    Answer answer;
    const std::string action = is_file ? "offload" : "hide";
    engine.submit(request_for(prompt_tokens(kPrompt, 5), "snapkv(window=8),tokens=30,every=20,action=" + action, 200),
                  [&](const GenerationOutput& output) {
                    answer.take(output);
                    if (answer.steps.size() != 2) return;
                    held = engine.stats().kv.block_bytes_held;
                    const KvCompression& kv = *output.usage.kv;
                    EXPECT_EQ(kv.bytes_after, held);
                    EXPECT_GT(kv.bytes_hidden + kv.bytes_offloaded, kv.bytes_before) << "and room for 20 tokens";
                    EXPECT_EQ(is_file ? kv.bytes_hidden : kv.bytes_offloaded, 0);
                    EXPECT_EQ(kv.kept[0][0], 30);
                    if (is_file) {
                      EXPECT_LT(held, kv.bytes_before / 3);
                    } else {
                      EXPECT_GT(held, kv.bytes_before);
                    }
                  });
    run_all(engine);
    EXPECT_GT(held, 0);
    EXPECT_EQ(engine.stats().kv.block_bytes_held, 0);
    // It is not judged any more, and what is reported of blocks is the most that there were.
    const KvCompression& last = *answer.usage.kv;
    EXPECT_GE(last.bytes_hidden + last.bytes_offloaded, last.bytes_before);
    if (is_file) {
      EXPECT_LT(last.bytes_after, last.bytes_before / 3);
    } else {
      EXPECT_GT(last.bytes_after, last.bytes_hidden);
    }
  }
}

// Heads that compete for a budget may exchange their shares: what one gives up is room for another.
TEST(KvAsideEngine, HeadsThatCompeteHaveTheRoomThatOthersLeave) {
  for (const std::string action : {"hide", "offload"}) {
    ModelOptions options = with_directory(small_options());
    options.prefix_cache = false;
    const GenerationRequest request =
        request_for(prompt_tokens(400, 3), "snapkv(window=8),global,tokens=160,every=8,action=" + action, 90);
    Engine roomy(options);
    const Answer expected = ask(roomy, request);
    for (int64_t bytes = roomy.stats().kv.peak_block_bytes_held;; bytes += 1 << 14) {  // until it is accepted
      options.kv_capacity_bytes = bytes;
      Engine engine(options);
      try {
        EXPECT_EQ(ask(engine, request).steps, expected.steps);
        break;
      } catch (const Error& error) {
        ASSERT_EQ(error.code(), ErrorCode::kOutOfMemory);
        ASSERT_LT(bytes, 2 * roomy.stats().kv.peak_block_bytes_held);
      }
    }
  }
}

TEST(KvAsideEngine, PartsThatDivideTheBudgetByThemselvesGoWithIt) {
  Engine engine(with_directory(small_options()));
  const size_t num_layers = engine.model_info().kv_layers.size();
  const std::string of_layer(static_cast<size_t>(engine.model_info().kv_layers[0].num_kv_heads) - 1, '0');
  const std::string shares =
      fmt::format("snapkv(window=8),layershares(shares={}),keep=0.3", fmt::join(std::vector<int>(num_layers, 1), "/"));
  const std::string kinds = fmt::format("duoattention(heads={},sinks=4,recent=16)",
                                        fmt::join(std::vector<std::string>(num_layers, of_layer + "1"), "/"));
  for (const std::string& policy : {shares, kinds, std::string("simlayerkv(threshold=0.01,recent=16)")}) {
    const Answer evicted = ask_for(engine, policy + ",every=10", 10);
    const Answer hidden = ask_for(engine, policy + ",every=10,action=hide", 40);
    const Answer offloaded = ask_for(engine, policy + ",every=10,action=offload", 40);
    EXPECT_EQ(hidden.steps, offloaded.steps) << policy;
    ASSERT_NE(hidden.usage.kv, nullptr) << policy;
    EXPECT_GT(hidden.usage.kv->bytes_hidden, 0) << policy;
    EXPECT_TRUE(std::equal(evicted.steps.begin(), evicted.steps.end(), hidden.steps.begin())) << policy;
  }
}

TEST(KvAsideEngine, ChoicesEachHaveTheirOwn) {
  Engine engine(with_directory(small_options()));
  GenerationRequest request = request_for(prompt_tokens(kPrompt, 5), "keydiff,tokens=40,every=5,action=offload", 40);
  const Answer alone = ask(engine, request);
  request.num_choices = 3;
  std::vector<Answer> answers(3);
  engine.submit(request,
                [&](const GenerationOutput& output) { answers[static_cast<size_t>(output.choice)].take(output); });
  run_all(engine);
  for (const Answer& answer : answers) EXPECT_EQ(answer.steps, alone.steps);
}

// Documents that are copied from elsewhere lie aside with the rest.
TEST(KvAsideEngine, DocumentsMayBeReused) {
  Engine engine(with_directory(small_options()));
  const auto answer_with = [&](const std::string& action) {
    GenerationRequest request = request_for(prompt_tokens(300, 5), "epic,keydiff,tokens=60,every=5" + action, 40);
    request.kv_documents = {{.begin = 32, .end = 160}, {.begin = 160, .end = 280}};
    return ask(engine, request);
  };
  const Answer hidden = answer_with(",action=hide");
  EXPECT_EQ(answer_with(",action=offload").steps, hidden.steps);
  EXPECT_NE(answer_with("").steps, hidden.steps);
  EXPECT_GT(hidden.usage.kv_reuse->num_reused_tokens, 0);
}

// With layers that have a window, too: the windows at the prompt's end are there for the next request.
TEST_P(KvAsideEngineTest, TheNextRequestFindsThePrompt) {
  for (const char* action : {"evict", "hide", "offload"}) {
    ModelOptions o = options();
    o.kv_capacity_bytes = 0;
    Engine engine(o);
    ask(engine, request_for(prompt_tokens(320, 5), fmt::format("keydiff,tokens=40,every=5,action={}", action), 30));
    std::vector<TokenId> longer = prompt_tokens(320, 5);
    longer.push_back(7);
    EXPECT_EQ(ask(engine, request_for(longer, "", 2)).usage.cached_prompt_tokens, 320) << action;
  }
}

TEST(KvAsideEngine, ABudgetMayGrowAsFastAsTheText) {
  Engine engine(with_directory(small_options()));
  const Answer answer = ask_for(engine, "keydiff,keep=0.999,every=1,action=hide", 30);
  EXPECT_EQ(answer.usage.kv->num_times, 29);
  EXPECT_EQ(answer.usage.kv->kept[0][0], kPrompt + 28 - 1) << "rounded down";
  EXPECT_EQ(ask_for(engine, "keydiff,keep=0.4,every=1,action=offload", 30).usage.kv->kept[0][0],
            (kPrompt + 28) * 4 / 10);
}

// What lies in a file leaves its room to others.
TEST(KvAsideEngine, OffloadedSequencesFitWhereHiddenOnesDoNot) {
  ModelOptions options = with_directory(small_options());
  options.prefix_cache = false;
  options.max_decode_slowdown = 0;  // who runs when does not depend on times
  Engine roomy(options);
  ask(roomy, request_for(prompt_tokens(400, 1), "", 60));
  options.kv_capacity_bytes = roomy.stats().kv.peak_block_bytes_held * 5 / 4;
  const auto most_running = [&](const std::string& action) {
    Engine engine(options);
    int64_t most = 0;
    for (int32_t i = 0; i < 4; ++i) {
      engine.submit(request_for(prompt_tokens(400, i), "keydiff,tokens=32,every=16,action=" + action, 60),
                    [&, i](const GenerationOutput& output) {
                      EXPECT_EQ(output.error, "");
                      const bool is_judged_later = output.usage.generated_tokens <= 48;
                      if (i == 0 && is_judged_later) most = std::max(most, engine.stats().scheduler.num_running);
                    });
    }
    run_all(engine);
    return most;
  };
  EXPECT_EQ(most_running("hide"), 1);
  EXPECT_EQ(most_running("offload"), most_running("evict"));
  EXPECT_GE(most_running("offload"), 2);
}

TEST(KvAsideEngine, WithoutADirectoryTheRequestFailsAndOthersGoOn) {
  ModelOptions options = small_options();
  options.kv_offload_directory = "/no/such/place";
  Engine engine(options);
  Answer failed;
  Answer other;
  engine.submit(request_for(prompt_tokens(kPrompt, 5), "keydiff,tokens=32,every=4,action=offload"),
                [&](const GenerationOutput& output) { failed.take(output); });
  engine.submit(request_for(prompt_tokens(kPrompt, 6), "keydiff,tokens=32,every=4,action=hide"),
                [&](const GenerationOutput& output) { other.take(output); });
  run_all(engine);
  EXPECT_THAT(failed.error, testing::HasSubstr("/no/such/place: no file for KV entries can be made there"));
  EXPECT_EQ(other.error, "");
  EXPECT_EQ(std::ssize(other.steps), 12);
}

TEST(KvAsideEngine, WhatWouldNotFitAloneIsRefused) {
  ModelOptions options = small_options();
  options.prefix_cache = false;
  options.max_decode_slowdown = 0;  // who runs when does not depend on times
  Engine roomy(options);
  ask(roomy, request_for(prompt_tokens(400, 1), "", 60));
  options.kv_capacity_bytes = roomy.stats().kv.peak_block_bytes_held;
  Engine engine(options);
  EXPECT_EQ(ask(engine, request_for(prompt_tokens(400, 1), "keydiff,tokens=64,every=16", 60)).error, "");
  try {
    engine.submit(request_for(prompt_tokens(400, 1), "keydiff,tokens=64,every=16,action=hide", 60), {});
    ADD_FAILURE() << "all entries and 64 of them twice";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
  }
}

}  // namespace
}  // namespace witan
