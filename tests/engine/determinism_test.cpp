// A sequence's results have the same bits whatever else is in the batch, however its prompt is cut, however many
// threads run, whether its beginning came from the cache, and whether it was preempted.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <map>

#include "engine/engine.h"
#include "support/force_isa.h"
#include "support/goldens.h"
#include "support/made_model.h"

namespace witan {
namespace {

struct ModelCase {
  const char* arch;
  const char* preset;
  DType dtype;
  Precision precision;
  KvCodec codec;
};

constexpr ModelCase kModels[] = {
    {"llama", "tiny", DType::kBF16, Precision::kFast, KvCodec::kBF16},
    {"qwen3moe", "tiny", DType::kQ4_K, Precision::kFast, KvCodec::kF16},
    {"qwen3moe", "tiny", DType::kQ8_0, Precision::kFast, KvCodec::kQ8},
    {"llama", "tiny", DType::kQ8_0, Precision::kFast, KvCodec::kHadamard8Value4},
    {"deepseek2", "tiny", DType::kQ8_0, Precision::kFast, KvCodec::kF32},
    {"deepseek2", "tiny", DType::kQ8_0, Precision::kFast, KvCodec::kBF16},
    {"deepseek2", "tiny", DType::kQ8_0, Precision::kFast, KvCodec::kLatent4},
    {"deepseek2", "tiny", DType::kF32, Precision::kExact, KvCodec::kF16},
    {"gpt-oss", "tiny", DType::kMXFP4, Precision::kFast, KvCodec::kBF16},
};

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  std::ranges::copy_if(kAllIsas, std::back_inserter(isas), cpu_supports);
  return isas;
}

std::vector<TokenId> prompt_tokens(int32_t length, int32_t seed) {
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < length; ++i) tokens.push_back(3 + (i * i * 7 + i * seed + seed) % 250);
  return tokens;
}

constexpr int32_t kVocabSize = 512;  // of the tiny presets

// A token and the bits of the log probabilities of the whole vocabulary.
using Step = std::pair<TokenId, std::vector<uint32_t>>;

GenerationRequest request_for(std::vector<TokenId> prompt, int32_t max_new_tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_new_tokens = max_new_tokens;
  request.sampling.num_logprobs = kVocabSize;
  request.ignore_end_tokens = true;
  return request;
}

void collect(std::vector<Step>& steps, const GenerationOutput& output) {
  ASSERT_TRUE(output.error.empty()) << output.error;
  if (!output.token) return;
  Step step{output.token->token, {}};
  for (const TokenLogprob& alternative : output.token->alternatives) {
    step.second.push_back(std::bit_cast<uint32_t>(alternative.logprob));
  }
  steps.push_back(std::move(step));
}

// Longer than one attention split, so that splits are merged too; for the slow reference a few blocks suffice.
int32_t long_prompt(Isa isa) { return isa == Isa::kReference ? 100 : 600; }

class DeterminismTest : public testing::TestWithParam<std::tuple<ModelCase, Isa>> {
 protected:
  void SetUp() override { force_.emplace(std::get<1>(GetParam())); }

  ModelOptions options() const {
    const ModelCase& model = std::get<0>(GetParam());
    return {.path = test::made_model(model.arch, model.preset, model.dtype),
            .precision = model.precision,
            .kv_codec = model.codec,
            .num_threads = 1,
            .memory_bytes = int64_t{512} << 20,
            .context_length = 1024};
  }

  std::vector<uint32_t> score_bits(int32_t num_tokens, int32_t chunk, int num_threads) const {
    ModelOptions o = options();
    o.num_threads = num_threads;
    o.max_step_tokens = chunk;
    LoadedModel model(o);
    std::vector<uint32_t> bits;
    score_tokens(model, prompt_tokens(num_tokens, 3), chunk, [&](int32_t, int32_t, std::span<const float> logits) {
      for (const float logit : logits) bits.push_back(std::bit_cast<uint32_t>(logit));
    });
    return bits;
  }

  // The long prompt's continuation when nothing else runs.
  std::vector<Step> alone(const ModelOptions& o) const {
    Engine engine(o);
    std::vector<Step> steps;
    engine.submit(request_for(prompt_tokens(long_prompt_, 5), 6),
                  [&](const GenerationOutput& out) { collect(steps, out); });
    while (engine.step()) {
    }
    EXPECT_EQ(steps.size(), 6u);
    return steps;
  }

  bool slow_ = std::get<1>(GetParam()) == Isa::kReference;
  int32_t long_prompt_ = long_prompt(std::get<1>(GetParam()));
  std::optional<test::ForceIsa> force_;
};

TEST_P(DeterminismTest, LogitsOfEveryPositionDoNotDependOnChunksOrThreads) {
  const int32_t num_tokens = slow_ ? 40 : kAttentionSplit + 48;
  const std::vector<uint32_t> whole = score_bits(num_tokens, num_tokens, 1);
  constexpr std::pair<int32_t, int> kChunksAndThreads[] = {{1, 2}, {7, 1}, {64, 2}, {300, 1}, {1000, 2}};
  for (const auto& [chunk, num_threads] : kChunksAndThreads) {
    EXPECT_TRUE(score_bits(num_tokens, chunk, num_threads) == whole)
        << "chunk " << chunk << ", threads " << num_threads;
  }
}

TEST_P(DeterminismTest, GenerationDoesNotDependOnChunksOrThreads) {
  const std::vector<Step> expected = alone(options());
  for (const int32_t chunk : {48, 1000}) {
    ModelOptions o = options();
    o.num_threads = 2;
    o.max_step_tokens = chunk;
    EXPECT_EQ(alone(o), expected) << "chunk " << chunk;
  }
}

TEST_P(DeterminismTest, GenerationDoesNotDependOnTheBatch) {
  const std::vector<Step> expected = alone(options());
  ModelOptions o = options();
  o.max_step_tokens = 100;
  o.num_threads = 2;
  Engine engine(o);
  std::map<RequestId, std::vector<Step>> results;
  RequestId ours = 0;
  for (int32_t i = 0; i < 7; ++i) {
    const bool is_ours = i == 3;
    const RequestId id = engine.submit(
        request_for(is_ours ? prompt_tokens(long_prompt_, 5) : prompt_tokens(1 + 37 * i, 100 + i), is_ours ? 6 : 20),
        [&](const GenerationOutput& output) { collect(results[output.request], output); });
    if (is_ours) ours = id;
  }
  while (engine.step()) {
  }
  EXPECT_EQ(results[ours], expected);
}

TEST_P(DeterminismTest, CachedPrefixGivesTheSameAsAFreshOne) {
  ModelOptions o = options();
  o.prefix_cache = false;
  const std::vector<Step> expected = alone(o);
  Engine engine(options());
  for (int round = 0; round < 2; ++round) {
    std::vector<Step> steps;
    engine.submit(request_for(prompt_tokens(long_prompt_, 5), 6),
                  [&](const GenerationOutput& out) { collect(steps, out); });
    while (engine.step()) {
    }
    EXPECT_EQ(steps, expected) << "round " << round;
  }
  EXPECT_GE(engine.stats().scheduler.num_prefix_hit_tokens, long_prompt_ / kKvBlockSize * kKvBlockSize - kKvBlockSize);
}

// Generated text that comes back as part of a prompt, as in the next turn of a conversation.
TEST_P(DeterminismTest, GeneratedTokensInTheCacheDoNotChangeALaterPrompt) {
  Engine engine(options());
  std::vector<TokenId> conversation = prompt_tokens(100, 9);
  engine.submit(request_for(conversation, 70), [&](const GenerationOutput& output) {
    if (output.token) conversation.push_back(output.token->token);
  });
  while (engine.step()) {
  }
  const auto ask = [&](Engine& asked) {
    std::vector<Step> steps;
    asked.submit(request_for(conversation, 4), [&](const GenerationOutput& out) { collect(steps, out); });
    while (asked.step()) {
    }
    return steps;
  };
  Engine fresh(options());
  EXPECT_EQ(ask(engine), ask(fresh));
  EXPECT_GT(engine.stats().scheduler.num_prefix_hit_tokens, 0);
}

TEST_P(DeterminismTest, PreemptionDoesNotChangeAnything) {
  const int32_t num_sequences = slow_ ? 2 : 4;
  // With windows a sequence soon has what it needs but for a layer: it takes longer until two have no room.
  const bool windowed = std::string_view(std::get<0>(GetParam()).arch) == "gpt-oss";
  const int32_t num_new_tokens = windowed ? 160 : 90;
  const auto run = [&](Engine& engine) {
    std::vector<std::vector<Step>> results(static_cast<size_t>(num_sequences));
    for (int32_t i = 0; i < num_sequences; ++i) {
      engine.submit(
          request_for(prompt_tokens(40 + i, 20 + i), num_new_tokens),
          [&results, i](const GenerationOutput& output) { collect(results[static_cast<size_t>(i)], output); });
    }
    while (engine.step()) {
    }
    return results;
  };
  ModelOptions roomy = options();
  roomy.context_length = windowed ? 320 : 192;
  roomy.prefix_cache = false;  // its peak is what the sequences themselves hold
  Engine calm(roomy);
  const auto expected = run(calm);
  EXPECT_EQ(calm.stats().scheduler.num_preemptions, 0);

  // Room for one and a half of them.
  ModelOptions tight = roomy;
  tight.prefix_cache = true;
  tight.kv_capacity_bytes = calm.stats().kv.peak_block_bytes_held * 3 / (2 * num_sequences);
  Engine crowded(tight);
  EXPECT_EQ(run(crowded), expected);
  EXPECT_GT(crowded.stats().scheduler.num_preemptions, 0);
}

std::string case_name(const testing::TestParamInfo<std::tuple<ModelCase, Isa>>& info) {
  const auto& [model, isa] = info.param;
  std::string name =
      fmt::format("{}_{}_{}_{}", model.arch, quant_type(model.dtype).name, kv_codec_name(model.codec), isa_name(isa));
  std::ranges::replace_if(
      name, [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, DeterminismTest,
                         testing::Combine(testing::ValuesIn(kModels), testing::ValuesIn(supported_isas())), case_name);

// Switch: the same input alone, among others, encoded by another request before, and after a preemption.
class EncoderDeterminismTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    const auto found = test::find_golden("switch-capacity/hf");
    if (!found) GTEST_SKIP() << "golden data not present: switch-capacity/hf";
    options_ = {.path = *found,
                .precision = Precision::kFast,
                .kv_codec = KvCodec::kF16,
                .num_threads = 1,
                .memory_bytes = int64_t{512} << 20,
                .context_length = 512};
    force_.emplace(GetParam());
  }

  using Results = std::vector<std::vector<Step>>;

  static Results run(Engine& engine, const std::vector<std::vector<TokenId>>& prompts, int32_t num_tokens) {
    Results results(prompts.size());
    for (size_t i = 0; i < prompts.size(); ++i) {
      GenerationRequest request = request_for(prompts[i], num_tokens);
      request.sampling.num_logprobs = engine.model_info().vocab_size;
      engine.submit(request, [&results, i](const GenerationOutput& output) { collect(results[i], output); });
    }
    while (engine.step()) {
    }
    return results;
  }

  ModelOptions options_;
  std::optional<test::ForceIsa> force_;
};

TEST_P(EncoderDeterminismTest, TheInputAloneDecides) {
  const std::vector<TokenId> ours = prompt_tokens(70, 5);
  Engine alone(options_);
  const std::vector<Step> expected = run(alone, {ours}, 40).front();
  ASSERT_EQ(expected.size(), 40u);

  ModelOptions other = options_;
  other.num_threads = 2;
  other.max_step_tokens = 3;
  Engine crowd(other);
  const Results results = run(crowd, {prompt_tokens(33, 9), ours, prompt_tokens(1, 2), ours, prompt_tokens(70, 6)}, 40);
  EXPECT_EQ(results[1], expected);
  EXPECT_EQ(results[3], expected);
  EXPECT_NE(results[4], expected);
  // Two of the five had the same input; once more, it is there still.
  EXPECT_EQ(crowd.stats().kv.prefix_hit_tokens, 70);
  EXPECT_EQ(run(crowd, {ours}, 40).front(), expected);
  EXPECT_EQ(crowd.stats().kv.prefix_hit_tokens, 140);

  ModelOptions uncached = options_;
  uncached.prefix_cache = false;
  Engine plain(uncached);
  EXPECT_EQ(run(plain, {ours, ours}, 40)[1], expected);
  EXPECT_EQ(run(plain, {ours}, 40).front(), expected);
  EXPECT_EQ(plain.stats().kv.block_bytes_held, 0);
}

TEST_P(EncoderDeterminismTest, PreemptionDoesNotChangeAnything) {
  const std::vector<std::vector<TokenId>> prompts = {prompt_tokens(40, 1), prompt_tokens(50, 2), prompt_tokens(60, 3)};
  Engine calm(options_);
  const Results expected = run(calm, prompts, 120);
  ModelOptions tight = options_;
  tight.kv_capacity_bytes = calm.stats().kv.peak_block_bytes_held / 2;
  Engine crowded(tight);
  EXPECT_EQ(run(crowded, prompts, 120), expected);
  EXPECT_GT(crowded.stats().scheduler.num_preemptions, 0);
}

INSTANTIATE_TEST_SUITE_P(All, EncoderDeterminismTest, testing::ValuesIn(supported_isas()),
                         [](const auto& variant) { return std::string(isa_name(variant.param)); });

}  // namespace
}  // namespace witan
