// `auto` in the engine: what it chooses is what the chosen policy gives, and the request is told.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "engine/engine.h"
#include "support/goldens.h"
#include "support/made_model.h"

namespace witan {
namespace {

using testing::HasSubstr;

constexpr int32_t kPrompt = 300;
constexpr int32_t kNewTokens = 40;

ModelOptions options_for(const char* arch) {
  return {.path = test::made_model(arch, "tiny", DType::kQ8_0),
          .num_threads = 2,
          .memory_bytes = int64_t{512} << 20,
          .context_length = 512,
          .prefix_cache = false};
}

GenerationRequest request_for(const std::string& policy, int32_t seed = 5) {
  GenerationRequest request;
  for (int32_t i = 0; i < kPrompt; ++i) request.prompt.push_back(3 + (i * i * 7 + i * seed + seed) % 250);
  request.max_new_tokens = kNewTokens;
  request.ignore_end_tokens = true;
  if (!policy.empty()) request.kv_policy = parse_kv_policy(policy);
  return request;
}

struct Answer {
  std::vector<TokenId> tokens;
  GenerationUsage usage;

  OutputCallback taker() {
    return [this](const GenerationOutput& output) {
      usage = output.usage;
      EXPECT_EQ(output.error, "");
      if (output.token) tokens.push_back(output.token->token);
    };
  }
  std::string policy() const { return usage.kv_auto == nullptr ? "none chosen" : usage.kv_auto->policy; }
};

Answer ask(Engine& engine, const GenerationRequest& request) {
  Answer answer;
  engine.submit(request, answer.taker());
  while (engine.step()) {
  }
  return answer;
}

TEST(KvAutoEngine, TheAnswerIsThatOfThePolicyThatItSaysItChose) {
  for (const char* arch : {"qwen3moe", "deepseek2"}) {
    Engine engine(options_for(arch));
    for (const char* budget : {",keep=0.5", ",keep=0.25", ",keep=0.1,floor=0", ",tokens=40,every=16"}) {
      const Answer answer = ask(engine, request_for(std::string("auto") + budget));
      ASSERT_NE(answer.usage.kv_auto, nullptr) << arch << budget;
      const Answer plain = ask(engine, request_for(answer.policy()));
      EXPECT_EQ(answer.tokens, plain.tokens) << arch << budget;
      EXPECT_EQ(plain.policy(), "none chosen");
      ASSERT_NE(answer.usage.kv, nullptr) << arch << budget;
      EXPECT_EQ(answer.usage.kv->kept, plain.usage.kv->kept) << arch << budget;
    }
  }
  Engine merging(options_for("qwen3moe"));
  EXPECT_EQ(ask(merging, request_for("auto,keep=0.5")).policy(), "k=int4-hadamard,residual=32");
  EXPECT_EQ(ask(merging, request_for("auto,keep=0.5,every=16")).policy(), "keydiff,merge,keep=0.5,every=16,floor=128");
  Engine latents(options_for("deepseek2"));
  EXPECT_EQ(ask(latents, request_for("auto,keep=0.5")).policy(), "k=int4-latent,residual=32");
  EXPECT_EQ(ask(latents, request_for("auto,keep=0.5,every=16")).policy(), "keydiff,keep=0.5,every=16,floor=128")
      << "MLA merges no values";
}

// Recent entries, which are not rounded either where all fit, are much of a short prompt.
TEST(KvAutoEngine, RecentEntriesAreRoundedBeforeAnyAreDropped) {
  Engine engine(options_for("qwen3moe"));
  GenerationRequest request = request_for("auto,tokens=44,floor=0");
  request.prompt.resize(80);
  const Answer answer = ask(engine, request);
  EXPECT_EQ(answer.policy(), "k=int4-hadamard,v=int2-hadamard,residual=0");
  EXPECT_GE(answer.usage.kv->kept[0][0], 80);
}

TEST(KvAutoEngine, ABudgetIsTheMemoryOfSoManyEntries) {
  for (const char* arch : {"qwen3moe", "deepseek2"}) {
    Engine engine(options_for(arch));
    for (const double share : {0.8, 0.6, 0.45, 0.35, 0.25, 0.2}) {
      GenerationRequest request = request_for(fmt::format("auto,keep={},floor=0", share));
      request.max_new_tokens = 2;
      const Answer answer = ask(engine, request);
      ASSERT_NE(answer.usage.kv, nullptr) << arch << " " << share;
      EXPECT_LE(static_cast<double>(answer.usage.kv->bytes_after),
                share * static_cast<double>(answer.usage.kv->bytes_before))
          << arch << " " << share << ": " << answer.policy();
    }
  }
}

TEST(KvAutoEngine, WithoutABudgetTheRoomBesideOthersDecides) {
  ModelOptions o = options_for("qwen3moe");
  int64_t bytes_of_one = 0;
  std::vector<TokenId> dense;
  {
    Engine probe(o);
    dense = ask(probe, request_for("")).tokens;
    bytes_of_one = probe.stats().kv.peak_block_bytes_held;
  }
  o.kv_capacity_bytes = bytes_of_one * 27 / 10;
  Engine engine(o);
  const Answer alone = ask(engine, request_for("auto"));
  EXPECT_EQ(alone.policy(), "");
  EXPECT_EQ(alone.tokens, dense);
  EXPECT_EQ(alone.usage.kv, nullptr) << "nothing was judged";

  std::vector<Answer> answers(5);
  for (size_t i = 0; i < answers.size(); ++i) {
    engine.submit(request_for(i == 4 ? "auto(floor=0.3)" : "auto", static_cast<int32_t>(5 + i)), answers[i].taker());
  }
  while (engine.step()) {
  }
  EXPECT_EQ(answers[0].policy(), "");
  EXPECT_EQ(answers[0].tokens, dense);
  EXPECT_EQ(answers[1].policy(), "") << "two fit whole";
  EXPECT_EQ(answers[2].policy(), "k=int8-hadamard,residual=32") << "seven tenths of a text's room are left";
  EXPECT_THAT(answers[2].usage.kv_auto->reason, HasSubstr("beside other requests"));
  ASSERT_NE(answers[2].usage.kv, nullptr);
  EXPECT_GT(answers[2].usage.kv->kept[0][0], kPrompt) << "nothing was dropped";
  EXPECT_LT(answers[2].usage.kv->bytes_after, answers[2].usage.kv->bytes_before * 7 / 10);
  EXPECT_EQ(answers[3].policy(), "keydiff,merge,keep=0.5,floor=128,k=int4-hadamard,v=int2-hadamard,residual=0")
      << "the floor";
  EXPECT_EQ(answers[4].policy(), "keydiff,keep=0.3,floor=128,k=int4-hadamard,v=int2-hadamard,residual=0");
  for (const Answer& answer : answers) EXPECT_EQ(std::ssize(answer.tokens), kNewTokens);
  EXPECT_EQ(ask(engine, request_for("auto")).policy(), "") << "there is room again";
}

TEST(KvAutoEngine, ChoicesNeedRoomEach) {
  ModelOptions o = options_for("qwen3moe");
  {
    Engine probe(o);
    (void)ask(probe, request_for(""));
    o.kv_capacity_bytes = probe.stats().kv.peak_block_bytes_held * 18 / 10;
  }
  Engine engine(o);
  GenerationRequest request = request_for("auto");
  request.num_choices = 2;
  EXPECT_EQ(ask(engine, request).policy(), "k=int8-hadamard,residual=32");
}

TEST(KvAutoEngine, PinnedTokensNeedABudgetThatIsKnown) {
  Engine engine(options_for("qwen3moe"));
  GenerationRequest request = request_for("auto");
  request.kv_pinned = {{.begin = 40, .end = 50}};
  try {
    engine.submit(request, {});
    ADD_FAILURE() << "was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(error.what(), HasSubstr("give it a budget"));
  }
  request.kv_policy = parse_kv_policy("auto,keep=0.5");
  EXPECT_EQ(ask(engine, request).policy(), "k=int4-hadamard,residual=32") << "everything stays";
  request.kv_policy = parse_kv_policy("auto,tokens=5,floor=0");
  EXPECT_THROW(engine.submit(request, {}), Error) << "no room for ten";
}

TEST(KvAutoEngine, ModelsWithAnEncoderKeepEverything) {
  WITAN_GOLDEN_OR_SKIP(golden, "switch/hf");
  Engine engine({.path = golden, .num_threads = 2, .memory_bytes = int64_t{512} << 20});
  GenerationRequest request{.prompt = {5, 6, 7, 8}, .max_new_tokens = 4};
  const std::vector<TokenId> dense = ask(engine, request).tokens;
  request.kv_policy = parse_kv_policy("auto");
  const Answer answer = ask(engine, request);
  EXPECT_EQ(answer.tokens, dense);
  EXPECT_EQ(answer.policy(), "");
  EXPECT_THAT(answer.usage.kv_auto->reason, HasSubstr("encoder"));
  request.kv_policy = parse_kv_policy("auto,keep=0.5");
  EXPECT_THROW(engine.submit(request, {}), KvPolicyError);
}

}  // namespace
}  // namespace witan
