#include "eval/kv_comparison.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/error.h"
#include "support/expect_error.h"
#include "support/made_model.h"

namespace witan {
namespace {

ModelOptions options() {
  return {.path = test::made_model("qwen3moe", "tiny", DType::kQ8_0),
          .num_threads = 2,
          .memory_bytes = int64_t{512} << 20,
          .context_length = 256};
}

std::vector<TokenId> text(int32_t length) {
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < length; ++i) tokens.push_back(3 + (i * i * 7 + i * 5) % 250);
  return tokens;
}

TEST(KvComparisonTest, ABudgetOfEverythingIsThePolicysAbsence) {
  Engine engine(options());
  const KvComparison result = compare_kv(engine, text(150), TokenId{1}, parse_kv_policy("keydiff,keep=1"), 100, 50);
  EXPECT_EQ(result.policy.num_tokens, 150 - 49);
  EXPECT_EQ(result.dense.num_tokens, 150 - 49);
  EXPECT_EQ(result.policy.mean_nll, result.dense.mean_nll);
  EXPECT_EQ(result.route_overlap, std::vector<double>(engine.model_info().moe_layers.size(), 1.0));
  EXPECT_EQ(result.mean_route_overlap(), 1.0);
  EXPECT_EQ(result.same_routes, 1.0);
  EXPECT_EQ(result.bytes_before, 0);
}

TEST(KvComparisonTest, ASmallBudgetCostsRoutesAndSavesBytes) {
  Engine engine(options());
  // 3 windows: prompts of 64 tokens, and 36 or less behind them
  const KvComparison result =
      compare_kv(engine, text(150), std::nullopt, parse_kv_policy("keydiff,keep=0.25"), 100, 64);
  EXPECT_EQ(result.policy.num_tokens, 150 - 64);
  EXPECT_NE(result.policy.mean_nll, result.dense.mean_nll);
  EXPECT_LT(result.same_routes, 1.0);
  EXPECT_LT(result.mean_route_overlap(), 1.0);
  for (const double overlap : result.route_overlap) EXPECT_GT(overlap, result.same_routes);
  EXPECT_GT(result.bytes_after, 0);
  EXPECT_LE(result.bytes_after * 2, result.bytes_before) << "16 of 64 entries in blocks of 32";
  EXPECT_EQ(result.bytes_after % 3, 0);
}

TEST(KvComparisonTest, WithoutAPolicyItIsThePerplexity) {
  const std::vector<TokenId> tokens = text(90);
  ModelOptions o = options();
  o.max_step_tokens = 64;
  LoadedModel model(o);
  const Perplexity expected = measure_perplexity(model, tokens, TokenId{1}, 200, 64);
  Engine engine(options());
  const KvComparison result = compare_kv(engine, tokens, TokenId{1}, parse_kv_policy("keydiff,keep=0.5"), 200, 1);
  EXPECT_EQ(result.dense.num_tokens, expected.num_tokens);
  EXPECT_NEAR(result.dense.mean_nll, expected.mean_nll, 1e-4);
}

TEST(KvComparisonTest, WhatIsWrongIsNamed) {
  Engine engine(options());
  const auto refused = [&](int32_t num_tokens, const char* policy, int32_t window, int32_t num_prompt,
                           const char* says) {
    test::expect_error(ErrorCode::kInvalidArgument, says, [&] {
      compare_kv(engine, text(num_tokens), TokenId{1}, parse_kv_policy(policy), window, num_prompt);
    });
  };
  refused(90, "keydiff,keep=0.5", 64, 64, "a prompt of 64 tokens in a window of 64: expected from 1 to 63");
  refused(90, "keydiff,keep=0.5", 64, 0, "a prompt of 0 tokens");
  refused(31, "keydiff,keep=0.5", 64, 32, "a text of 31 tokens has none behind a prompt of 32");
  refused(500, "keydiff,keep=0.5", 300, 150, "more than the context of 256");
  EXPECT_THROW(compare_kv(engine, text(90), TokenId{1}, parse_kv_policy("k=int4-latent"), 64, 32), Error)
      << "a type of other models";
}

}  // namespace
}  // namespace witan
