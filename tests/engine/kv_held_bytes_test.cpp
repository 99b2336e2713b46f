// What requests with KV policies hold of the pool: no entry more than their budget and what was generated since, in
// blocks that are full, and what they report.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "kv_policy_test_support.h"

namespace witan {
namespace {

using test::Answer;
using test::arch_name;
using test::ask;
using test::bytes_held_since;
using test::bytes_of_all_blocks;
using test::bytes_of_blocks;
using test::kModels;
using test::kPrompt;
using test::KvModelTest;
using test::ModelCase;
using test::options_for;
using test::prompt_tokens;
using test::request_for;
using test::run_all;
using test::small_options;

class KvHeldBytesTest : public KvModelTest {};

// Of methods whose heads keep equally many. The bounds are whole blocks: an entry beyond one takes another block.
TEST_P(KvHeldBytesTest, AfterEveryStepAreThoseOfTheBudgetAndTheTokensSinceAtMost) {
  struct Case {
    std::string policy;
    int32_t bound;  // entries of each head: what stays of the prompt and of generated tokens, and every - 1
  };
  std::vector<Case> cases;
  for (const std::string method : {"rkv", "tova", "h2o"}) {
    cases.push_back({method + ",tokens=89,every=8", 96});
    cases.push_back({method + ",tokens=64,every=1", 64});
    cases.push_back({method + ",tokens=33,every=32", 64});
    cases.push_back({method + ",keep=0.3,generated_tokens=12,every=8", 45 + 12 + 7});
    cases.push_back({method + ",generated_tokens=10,every=1", kPrompt + 10});
  }
  ModelOptions o = options();
  o.prefix_cache = false;
  Engine engine(o);
  for (const Case& c : cases) {
    ASSERT_EQ(c.bound % kKvBlockSize, 0) << c.policy;
    std::vector<std::vector<int32_t>> bound;
    for (const KvLayerSpec& layer : engine.model_info().kv_layers) {
      if (layer.window == 0) bound.emplace_back(static_cast<size_t>(layer.num_kv_heads), c.bound);
    }
    constexpr size_t kLength = 90;
    Answer answer;
    engine.submit(request_for(prompt_tokens(kPrompt, 5), c.policy, kLength),
                  [&](const GenerationOutput& output) { answer.take(output); });
    int32_t num_at_bound = 0;
    while (engine.step()) {
      if (answer.steps.empty() || answer.steps.size() == kLength) continue;  // the prompt is not judged, or all is done
      const int32_t num_tokens = kPrompt + static_cast<int32_t>(answer.steps.size()) - 1;  // that are computed
      const int64_t bound_bytes = bytes_of_blocks(engine.model_info(), o.kv_codec, num_tokens, bound);
      ASSERT_LE(engine.stats().kv.block_bytes_held, bound_bytes) << c.policy << " at " << num_tokens;
      num_at_bound += engine.stats().kv.block_bytes_held == bound_bytes ? 1 : 0;
    }
    EXPECT_EQ(answer.error, "") << c.policy;
    EXPECT_GT(num_at_bound, 0) << c.policy << ": less would be a bound too";
  }
}

// Of requests of all kinds at once, as long as they run.
TEST_P(KvHeldBytesTest, AreThoseThatRunningRequestsReportAndThatTokensSinceTake) {
  const bool has_latents = std::string_view(GetParam().arch) == "deepseek2";
  const std::string less = has_latents ? "k=int4-latent" : "k=int2-hadamard";
  const std::vector<std::string> policies = {"",
                                             "snapkv(window=8),keep=0.3",
                                             "keydiff,tokens=40,every=4",
                                             "adakv(window=8),keep=0.4",
                                             "pyramidkv(window=8),keep=0.35,every=9",
                                             "h2o,keep=0.3,generated_tokens=6,every=3",
                                             "tova,tokens=45,residual=16," + less,
                                             "residual=16," + less,
                                             "keydiff,keep=0.3,action=demote," + less,
                                             has_latents ? "keydiff,global,keep=0.2" : "keydiff,global,merge,keep=0.2"};
  ModelOptions o = options();
  o.prefix_cache = false;
  o.max_step_tokens = 4000;  // all prompts in the first step
  Engine engine(o);
  constexpr size_t kLength = 45;
  const auto length_of = [](size_t i) { return 100 + 13 * static_cast<int32_t>(i); };
  std::vector<Answer> answers(policies.size());
  for (size_t i = 0; i < policies.size(); ++i) {
    engine.submit(request_for(prompt_tokens(length_of(i), static_cast<int32_t>(i)), policies[i], kLength),
                  [&answers, i](const GenerationOutput& output) { answers[i].take(output); });
  }
  int32_t num_checked = 0;
  while (engine.step()) {
    int64_t held_bytes = 0;
    for (size_t i = 0; i < policies.size(); ++i) {
      const Answer& answer = answers[i];
      ASSERT_EQ(answer.error, "") << policies[i];
      ASSERT_FALSE(answer.steps.empty()) << policies[i] << " is not computed in the first step";
      if (answer.steps.size() == kLength) continue;
      const int32_t num_tokens = length_of(i) + static_cast<int32_t>(answer.steps.size()) - 1;
      EXPECT_EQ(answer.usage.kv == nullptr, i == 0) << policies[i];
      held_bytes += answer.usage.kv == nullptr
                        ? bytes_of_all_blocks(engine.model_info(), o.kv_codec, num_tokens)
                        : bytes_held_since(engine.model_info(), o.kv_codec, *answer.usage.kv, num_tokens);
    }
    ASSERT_EQ(engine.stats().kv.block_bytes_held, held_bytes) << "after " << answers[0].steps.size() << " tokens";
    ++num_checked;
  }
  EXPECT_GE(num_checked, kLength);
  EXPECT_EQ(engine.stats().kv.block_bytes_held, 0);
}

// Every kind of action, schedule, reader and type, and documents, in one batch: each answer is that of the request
// alone.
TEST_P(KvHeldBytesTest, EveryPolicyOfABatchGivesWhatItGivesAlone) {
  const bool has_latents = std::string_view(GetParam().arch) == "deepseek2";
  const std::string less = has_latents ? "k=int4-latent" : "k=int2-hadamard";
  std::vector<std::string> policies = {"",
                                       "kvzip,keep=0.4",
                                       "quest(tokens=32,dense=0)",
                                       "snapkv(window=8),keep=0.3,every=8,action=hide",
                                       "h2o,keep=0.3,generated_tokens=16,every=4",
                                       "tova,tokens=45,residual=16," + less,
                                       "keydiff,keep=0.3,action=demote," + less,
                                       "expectedattention,keep=0.5,prefill_every=64",
                                       "rkv(window=8),tokens=48,every=16",
                                       "snapkv(window=8),keep=0.5,when=pressure",
                                       "chunkkv(window=8,reuse=2),keep=0.3"};
  if (!has_latents) {
    policies.insert(policies.end(), {"kivi,residual=32", "think,residual=32,k=int2-hadamard",
                                     "keydiff,global,merge,keep=0.3", "snapkv(window=8),cam,adakv,keep=0.4"});
  }
  const size_t num_without_documents = policies.size();
  // Layers with a sliding window do not keep all of a document.
  if (GetParam().arch != std::string_view("gpt-oss")) {
    policies.insert(policies.end(), {"cacheblend(recompute=0.2)", "epic(first=4),keydiff,keep=0.5"});
  }
  const auto request_of = [&](size_t i) {
    const int32_t length = 90 + 7 * static_cast<int32_t>(i);
    GenerationRequest request = request_for(prompt_tokens(length, static_cast<int32_t>(i)), policies[i], 40);
    if (i >= num_without_documents) request.kv_documents = {{8, 40}, {40, 72}};
    return request;
  };
  ModelOptions o = options();
  o.prefix_cache = false;
  o.max_step_tokens = 57;  // prompts meet tokens that others generate
  Engine engine(o);
  std::vector<Answer> answers(policies.size());
  for (size_t i = 0; i < policies.size(); ++i) {
    engine.submit(request_of(i), [&answers, i](const GenerationOutput& output) { answers[i].take(output); });
  }
  run_all(engine);
  Engine alone(o);
  for (size_t i = 0; i < policies.size(); ++i) {
    EXPECT_EQ(answers[i].error, "") << policies[i];
    EXPECT_EQ(answers[i].steps.size(), size_t{40}) << policies[i];
    EXPECT_EQ(answers[i].steps, ask(alone, request_of(i)).steps) << policies[i];
  }
}

INSTANTIATE_TEST_SUITE_P(All, KvHeldBytesTest, testing::ValuesIn(kModels), arch_name);

// One more than whole blocks in every head, where heads keep equally many: the most that stands idle.
TEST(KvHeldBytes, BlocksOfALongTextAreFullWhateverDividesTheBudget) {
  constexpr int32_t kLength = 8010;
  constexpr int32_t kKept = 801;
  ModelOptions o = small_options();
  o.context_length = 8192;
  o.max_step_tokens = 2048;
  Engine engine(o);
  const std::vector<TokenId> prompt = prompt_tokens(kLength, 5);
  int64_t entry_bytes = 0;  // of a token
  for (const KvLayerSpec& layer : engine.model_info().kv_layers) {
    const KvBlockFormat format{o.kv_codec, layer.key_dim, layer.value_dim, layer.value_in_key};
    entry_bytes += layer.num_kv_heads * format.block_bytes() / kKvBlockSize;
  }
  // What is held, relative to what the entries that stay take, right after they were judged.
  const auto fill = [&](const std::string& policy, int32_t num_kept) {
    Answer answer;
    GenerationRequest request = request_for(prompt, policy, 4);
    request.sampling.num_logprobs = 0;
    const RequestId id = engine.submit(request, [&](const GenerationOutput& output) { answer.take(output); });
    while (answer.steps.empty() && engine.step()) {
    }
    EXPECT_NE(answer.usage.kv, nullptr) << policy << answer.error;
    const EngineStats stats = engine.stats();
    const int64_t held_bytes = stats.kv.block_bytes_held - stats.kv.block_bytes_cached;
    int64_t num_entries = 0;
    int64_t num_heads = 0;
    for (const std::vector<int32_t>& layer : answer.usage.kv->kept) {
      num_entries = std::accumulate(layer.begin(), layer.end(), num_entries);
      num_heads += std::ssize(layer);
    }
    EXPECT_EQ(num_entries, num_kept * num_heads) << policy;
    EXPECT_EQ(held_bytes, bytes_of_blocks(engine.model_info(), o.kv_codec, kLength, answer.usage.kv->kept)) << policy;
    engine.cancel(id);
    run_all(engine);
    return static_cast<double>(held_bytes) /
           (static_cast<double>(num_entries) / static_cast<double>(num_heads) * static_cast<double>(entry_bytes));
  };
  const double most = 1.0 + 31.0 / kKept;
  for (const std::string policy :
       {"snapkv", "keydiff", "pyramidkv", "layershares(shares=3/1)", "kvcompose", "adakv", "keydiff,global",
        "keydiff,global(floor=0.5)", "chunkkv", "tova", "criticalkv", "keydiff,merge", "adakv,cam"}) {
    const double ratio = fill(policy + ",keep=0.1", kKept);
    RecordProperty(policy, fmt::format("{:.4f}", ratio));
    EXPECT_LE(ratio, most) << policy;
    EXPECT_LE(ratio, 1.1) << policy;
    EXPECT_GE(ratio, 1.0) << policy;
  }
  EXPECT_DOUBLE_EQ(fill("snapkv,tokens=33", 33), 64.0 / 33.0) << "the fewer entries, the more of a head stand idle";
  EXPECT_DOUBLE_EQ(fill("snapkv,tokens=833", 833), 864.0 / 833.0);
}

}  // namespace
}  // namespace witan
