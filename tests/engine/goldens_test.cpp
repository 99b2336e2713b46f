// Every golden model against logits, experts and greedy tokens of independent implementations.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/engine.h"
#include "support/force_isa.h"
#include "support/goldens.h"

namespace witan {
namespace {

using nlohmann::json;

struct GoldenCase {
  const char* folder;
  const char* file;    // in the folder
  const char* logits;  // of the prompt
  const char* logits_long;
  const char* greedy;  // key in golden.json
};

constexpr GoldenCase kDense[] = {
    {"llama-dense", "model.gguf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"llama-dense", "hf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"qwen3-dense", "model.gguf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"qwen3-dense", "hf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
};
constexpr GoldenCase kExperts[] = {
    {"mixtral", "model.gguf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"mixtral", "hf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"qwen3moe", "model.gguf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"qwen3moe", "hf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"deepseek2-v2lite", "model.gguf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"deepseek2-v2lite", "model_legacy.gguf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"deepseek2-v2lite", "hf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"qwen2moe", "model.gguf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"qwen2moe", "hf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"olmoe", "model.gguf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"olmoe", "hf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"deepseek2-v3", "model.gguf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"deepseek2-v3", "hf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"glm4moe", "model.gguf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"glm4moe", "hf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    // llama.cpp rounds YaRN's range, which the model's definition does not.
    {"gpt-oss", "model.gguf", "logits_ref.f32", "logits_ref_long_last8.f32", "greedy_tokens_ref"},
    {"gpt-oss", "hf", "logits_ref.f32", "logits_ref_long_last8.f32", "greedy_tokens_ref"},
    {"gpt-oss-mxfp4", "model.gguf", "logits_ref.f32", "logits_ref_long_last8.f32", "greedy_tokens_ref"},
    {"gpt-oss-mxfp4", "hf", "logits_ref.f32", "logits_ref_long_last8.f32", "greedy_tokens_ref"},
    {"deepseek2-v3-fp8", "hf", "logits_ref.f32", "logits_ref_long_last8.f32", "greedy_tokens_ref"},
    {"qwen2moe-mixed", "hf", "logits_ref.f32", "logits_ref_long_last8.f32", "greedy_tokens_ref"},
    {"deepseek2-v2group", "hf", "logits_ref.f32", "logits_ref_long_last8.f32", "greedy_tokens_ref"},
};
// Attention over latents.
constexpr GoldenCase kLatent[] = {
    {"deepseek2-v2lite", "model.gguf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
    {"deepseek2-v3", "model.gguf", "logits.f32", "logits_long_last8.f32", "greedy_tokens"},
};
// Experts too; the truth is float64 arithmetic on the dequantised weights.
constexpr GoldenCase kQuantised[] = {
    {"qwen3moe-quant/Q8_0", "model.gguf", "logits_ref.f32", "logits_ref_long_last8.f32", "greedy_tokens_ref"},
    {"qwen3moe-quant/Q6_K", "model.gguf", "logits_ref.f32", "logits_ref_long_last8.f32", "greedy_tokens_ref"},
    {"qwen3moe-quant/Q4_K_M", "model.gguf", "logits_ref.f32", "logits_ref_long_last8.f32", "greedy_tokens_ref"},
};

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  std::ranges::copy_if(kAllIsas, std::back_inserter(isas), cpu_supports);
  return isas;
}

class GoldenModelTest : public testing::TestWithParam<std::tuple<GoldenCase, Isa>> {
 protected:
  // Skips where the golden is not present.
  void SetUp() override {
    const auto& [golden, isa] = GetParam();
    const std::string folder = golden.folder;
    const auto found = test::find_golden(folder + "/" + golden.file);
    if (!found) GTEST_SKIP() << "golden data not present: " << folder << "/" << golden.file;
    path_ = *found;
    files_ = path_.substr(0, path_.size() - std::string(golden.file).size());
    golden_ = json::parse(test::read_file(files_ + "golden.json"));
    force_.emplace(isa);
  }

  std::unique_ptr<LoadedModel> open(Precision precision, KvCodec kv_codec = KvCodec::kF32) const {
    return std::make_unique<LoadedModel>(ModelOptions{.path = path_,
                                                      .precision = precision,
                                                      .kv_codec = kv_codec,
                                                      .num_threads = 2,
                                                      .memory_bytes = int64_t{1} << 30,
                                                      .context_length = 512,
                                                      .max_step_tokens = 64});
  }

  std::vector<float> score(LoadedModel& model, const char* tokens_key, int32_t chunk = 64) const {
    const auto tokens = golden_.at(tokens_key).get<std::vector<TokenId>>();
    std::vector<float> logits;
    score_tokens(model, tokens, chunk, [&](int32_t, int32_t, std::span<const float> part) {
      logits.insert(logits.end(), part.begin(), part.end());
    });
    return logits;
  }

  struct Difference {
    double max_abs = 0.0;
    double mean_abs = 0.0;
    double top1_agreement = 0.0;
  };

  Difference compare(std::span<const float> actual, const std::vector<float>& expected) const {
    const auto vocab = golden_.at("n_vocab").get<size_t>();
    EXPECT_EQ(actual.size(), expected.size());
    Difference difference;
    double rows_agreeing = 0.0;
    for (size_t row = 0; row + vocab <= expected.size(); row += vocab) {
      for (size_t i = row; i < row + vocab; ++i) {
        const double error = std::abs(static_cast<double>(actual[i]) - static_cast<double>(expected[i]));
        difference.max_abs = std::max(difference.max_abs, error);
        difference.mean_abs += error / static_cast<double>(expected.size());
      }
      const auto best = [&](const float* logits) { return std::max_element(logits, logits + vocab) - logits; };
      rows_agreeing += best(actual.data() + row) == best(expected.data() + row) ? 1.0 : 0.0;
    }
    difference.top1_agreement = rows_agreeing * static_cast<double>(vocab) / static_cast<double>(expected.size());
    return difference;
  }

  std::string path_;
  std::string files_;
  json golden_;
  std::optional<test::ForceIsa> force_;
};

class GoldenExpertsTest : public GoldenModelTest {};
class GoldenQuantisedTest : public GoldenModelTest {};
class GoldenLatentTest : public GoldenModelTest {};

TEST_P(GoldenModelTest, ExactLogitsAreWithinTheStatedTolerance) {
  const GoldenCase& golden = std::get<0>(GetParam());
  const std::unique_ptr<LoadedModel> model = open(Precision::kExact);
  const Difference prompt = compare(score(*model, "prompt"), test::read_array<float>(files_ + golden.logits));
  EXPECT_LE(prompt.max_abs, 1e-3);
  EXPECT_LE(prompt.mean_abs, 1e-4);
  const std::vector<float> all = score(*model, "prompt_long");
  const std::vector<float> last = test::read_array<float>(files_ + golden.logits_long);
  const Difference tail = compare(std::span(all).last(last.size()), last);
  EXPECT_LE(tail.max_abs, 1e-3);
}

TEST_P(GoldenExpertsTest, ChosenExpertsMatch) {
  const std::unique_ptr<LoadedModel> model = open(Precision::kExact);
  const auto tokens = golden_.at("prompt").get<std::vector<TokenId>>();
  const std::vector<int32_t> expected = test::read_array<int32_t>(files_ + "experts.i32");
  const auto num_layers = static_cast<size_t>(model->telemetry().num_moe_layers());
  const auto top_k = static_cast<size_t>(model->telemetry().top_k());
  ASSERT_EQ(expected.size(), num_layers * tokens.size() * top_k);
  size_t num_in_other_order = 0;
  score_tokens(*model, tokens, 64, [&](int32_t first, int32_t count, std::span<const float>) {
    for (size_t layer = 0; layer < num_layers; ++layer) {
      const std::span<const int32_t> chosen = model->telemetry().last_experts(static_cast<int32_t>(layer));
      for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
        const int32_t* wanted = &expected[(layer * tokens.size() + static_cast<size_t>(first) + i) * top_k];
        const auto actual = chosen.subspan(i * top_k, top_k);
        EXPECT_EQ(std::set<int32_t>(actual.begin(), actual.end()), std::set<int32_t>(wanted, wanted + top_k))
            << "MoE layer " << layer << ", token " << static_cast<size_t>(first) + i;
        if (!std::ranges::equal(actual, std::span(wanted, top_k))) ++num_in_other_order;
      }
    }
  });
  // By descending score; between two of nearly the same, rounding decides.
  EXPECT_LE(num_in_other_order, 1 + num_layers * tokens.size() / 100);
}

TEST_P(GoldenModelTest, GreedyContinuationMatches) {
  Engine engine({.path = path_,
                 .precision = Precision::kExact,
                 .kv_codec = KvCodec::kF32,
                 .num_threads = 2,
                 .memory_bytes = int64_t{1} << 30,
                 .context_length = 512});
  const auto expected = golden_.at(std::get<0>(GetParam()).greedy).get<std::vector<TokenId>>();
  std::vector<TokenId> tokens;
  engine.submit({.prompt = golden_.at("prompt").get<std::vector<TokenId>>(),
                 .max_new_tokens = static_cast<int32_t>(expected.size()),
                 .ignore_end_tokens = true},
                [&](const GenerationOutput& output) { tokens.push_back(output.token->token); });
  while (engine.step()) {
  }
  EXPECT_EQ(tokens, expected);
}

TEST_P(GoldenQuantisedTest, QuantisedActivationsStayNearTheTruth) {
  const json& tolerance = golden_.at("tolerance").at("quantised_activations");
  // Attention over bf16 entries rounds too.
  for (const KvCodec kv_codec : {KvCodec::kF32, KvCodec::kBF16}) {
    const std::unique_ptr<LoadedModel> model = open(Precision::kFast, kv_codec);
    const Difference prompt =
        compare(score(*model, "prompt"), test::read_array<float>(files_ + std::get<0>(GetParam()).logits));
    EXPECT_LE(prompt.mean_abs, tolerance.at("mean_abs").get<double>()) << kv_codec_name(kv_codec);
    EXPECT_GE(prompt.top1_agreement, tolerance.at("top1_agreement_min").get<double>()) << kv_codec_name(kv_codec);
    EXPECT_GT(prompt.mean_abs, 0.0);
  }
}

TEST_P(GoldenLatentTest, LatentsOfFewBitsStayNearTheTruth) {
  const std::vector<float> truth = test::read_array<float>(files_ + std::get<0>(GetParam()).logits);
  double squares = 0.0;
  for (const float x : truth) squares += static_cast<double>(x) * static_cast<double>(x);
  const double rms = std::sqrt(squares / static_cast<double>(truth.size()));
  const auto error = [&](KvCodec kv_codec) {
    const std::unique_ptr<LoadedModel> model = open(Precision::kFast, kv_codec);
    return compare(score(*model, "prompt"), truth).mean_abs / rms;
  };
  // 1 and 4 % of the logits' size were seen with int8-latent, 17 and 32 % with int4-latent: these models are small and
  // random, with latents of 32 components, and a token that meets another expert counts as a whole.
  EXPECT_LT(error(KvCodec::kQ8), 0.06);
  EXPECT_LT(error(KvCodec::kLatent8), 0.06);
  EXPECT_LT(error(KvCodec::kLatent4), 0.4);
}

std::string case_name(const testing::TestParamInfo<std::tuple<GoldenCase, Isa>>& info) {
  const auto& [golden, isa] = info.param;
  std::string name = fmt::format("{}_{}_{}", golden.folder, golden.file, isa_name(isa));
  std::ranges::replace_if(
      name, [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; }, '_');
  return name;
}

template <size_t N>
auto in_every_variant(const GoldenCase (&cases)[N]) {
  return testing::Combine(testing::ValuesIn(cases), testing::ValuesIn(supported_isas()));
}

INSTANTIATE_TEST_SUITE_P(Dense, GoldenModelTest, in_every_variant(kDense), case_name);
INSTANTIATE_TEST_SUITE_P(Experts, GoldenModelTest, in_every_variant(kExperts), case_name);
INSTANTIATE_TEST_SUITE_P(Quantised, GoldenModelTest, in_every_variant(kQuantised), case_name);
INSTANTIATE_TEST_SUITE_P(Experts, GoldenExpertsTest, in_every_variant(kExperts), case_name);
INSTANTIATE_TEST_SUITE_P(Quantised, GoldenExpertsTest, in_every_variant(kQuantised), case_name);
INSTANTIATE_TEST_SUITE_P(Latent, GoldenLatentTest, in_every_variant(kLatent), case_name);
INSTANTIATE_TEST_SUITE_P(Quantised, GoldenQuantisedTest, in_every_variant(kQuantised), case_name);

// Encoder-decoder models: a row of kEncoders is a folder.
constexpr GoldenCase kEncoders[] = {
    {"switch", "hf", "logits_ref.f32", "logits_ref_nocap.f32", "greedy_tokens"},
    {"switch-capacity", "hf", "logits_ref.f32", "logits_ref_nocap.f32", "greedy_tokens"},
};

class GoldenEncoderTest : public GoldenModelTest {
 protected:
  // Runs the decoder's tokens and returns their logits; each MoE layer's experts, the encoder's first.
  std::vector<float> decode(LoadedModel& model, int32_t chunk, bool expert_capacity) {
    const auto input = golden_.at("encoder_input").get<std::vector<TokenId>>();
    const auto tokens = golden_.at("decoder_input").get<std::vector<TokenId>>();
    std::vector<float> logits;
    experts_.assign(static_cast<size_t>(model.telemetry().num_moe_layers()), {});
    const auto collect = [&](int32_t, int32_t, std::span<const float> part) {
      logits.insert(logits.end(), part.begin(), part.end());
      for (size_t layer = 0; layer < experts_.size(); ++layer) {
        const auto chosen = model.telemetry().last_experts(static_cast<int32_t>(layer));
        experts_[layer].insert(experts_[layer].end(), chosen.begin(), chosen.end());
      }
    };
    score_tokens(model, tokens, chunk, collect, {.input = input, .expert_capacity = expert_capacity});
    return logits;
  }

  std::vector<std::vector<int32_t>> experts_;
};

TEST_P(GoldenEncoderTest, ExactLogitsAndExpertsMatch) {
  const GoldenCase& golden = std::get<0>(GetParam());
  const std::unique_ptr<LoadedModel> model = open(Precision::kExact);
  const Difference limited = compare(decode(*model, 64, true), test::read_array<float>(files_ + golden.logits));
  EXPECT_LE(limited.max_abs, 1e-3);
  EXPECT_LE(limited.mean_abs, 1e-4);
  size_t layer = 0;
  for (const char* name : {"encoder.1", "encoder.3", "decoder.1", "decoder.3"}) {
    EXPECT_EQ(experts_[layer++], golden_.at("experts").at(name).get<std::vector<int32_t>>()) << name;
  }
  // What step-by-step decoding gives, in chunks of any size.
  for (const int32_t chunk : {64, 7}) {
    const Difference free = compare(decode(*model, chunk, false), test::read_array<float>(files_ + golden.logits_long));
    EXPECT_LE(free.max_abs, 1e-3) << chunk;
    EXPECT_LE(free.mean_abs, 1e-4) << chunk;
  }
}

TEST_P(GoldenEncoderTest, GreedyContinuationMatches) {
  Engine engine({.path = path_,
                 .precision = Precision::kExact,
                 .kv_codec = KvCodec::kF32,
                 .num_threads = 2,
                 .memory_bytes = int64_t{1} << 30,
                 .context_length = 512});
  const auto expected = golden_.at("greedy_tokens").get<std::vector<TokenId>>();
  for (int round = 0; round < 2; ++round) {  // the second finds the input encoded
    std::vector<TokenId> tokens;
    GenerationUsage usage;
    engine.submit({.prompt = golden_.at("encoder_input").get<std::vector<TokenId>>(),
                   .max_new_tokens = static_cast<int32_t>(expected.size()),
                   .ignore_end_tokens = true},
                  [&](const GenerationOutput& output) {
                    tokens.push_back(output.token->token);
                    usage = output.usage;
                  });
    while (engine.step()) {
    }
    EXPECT_EQ(tokens, expected);
    EXPECT_EQ(usage.cached_prompt_tokens, round == 0 ? 0 : usage.prompt_tokens);
  }
}

INSTANTIATE_TEST_SUITE_P(Encoders, GoldenEncoderTest, in_every_variant(kEncoders), case_name);

// A model with a real tokenizer, from text to text.
TEST(EndToEndTest, PromptsGiveTheExpectedIdsTokensAndText) {
  WITAN_GOLDEN_OR_SKIP(path, "e2e-bytes/model.gguf");
  WITAN_GOLDEN_OR_SKIP(golden_path, "e2e-bytes/golden.json");
  const json golden = json::parse(test::read_file(golden_path));
  Engine engine({.path = path,
                 .precision = Precision::kExact,
                 .kv_codec = KvCodec::kF32,
                 .num_threads = 2,
                 .memory_bytes = int64_t{1} << 30,
                 .context_length = 512});
  for (const json& item : golden.at("cases")) {
    const std::vector<TokenId> prompt = engine.encode(item.at("prompt").get<std::string>());
    EXPECT_EQ(prompt, item.at("prompt_ids").get<std::vector<TokenId>>());
    const auto expected = item.at("greedy_tokens").get<std::vector<TokenId>>();
    std::vector<TokenId> tokens;
    std::string text;
    engine.submit(
        {.prompt = prompt, .max_new_tokens = static_cast<int32_t>(expected.size()), .ignore_end_tokens = true},
        [&](const GenerationOutput& output) {
          tokens.push_back(output.token->token);
          text += output.text;
        });
    while (engine.step()) {
    }
    EXPECT_EQ(tokens, expected);
    EXPECT_EQ(text, item.at("greedy_text").get<std::string>());
  }
}

}  // namespace
}  // namespace witan
