#pragma once

// What the tests of KV policies in the engine share: models, requests, and that answers depend on the request alone.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "support/made_model.h"

namespace witan::test {

struct ModelCase {
  const char* arch;
  DType dtype;
  KvCodec codec;
};
inline constexpr ModelCase kModels[] = {{"qwen3moe", DType::kQ8_0, KvCodec::kF16},
                                        {"deepseek2", DType::kQ8_0, KvCodec::kBF16},
                                        {"gpt-oss", DType::kF32, KvCodec::kHadamard4}};

inline constexpr int32_t kVocabSize = 512;  // of the tiny presets
inline constexpr int32_t kPrompt = 150;
inline constexpr int32_t kNewTokens = 12;

inline ModelOptions options_for(const ModelCase& model) {
  return {.path = made_model(model.arch, "tiny", model.dtype),
          .kv_codec = model.codec,
          .num_threads = 2,
          .memory_bytes = int64_t{512} << 20,
          .context_length = 512};
}

inline std::vector<TokenId> prompt_tokens(int32_t length, int32_t seed) {
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < length; ++i) tokens.push_back(3 + (i * i * 7 + i * seed + seed) % 250);
  return tokens;
}

inline GenerationRequest request_for(std::vector<TokenId> prompt, const std::string& policy,
                                     int32_t num_new = kNewTokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_new_tokens = num_new;
  request.sampling.num_logprobs = kVocabSize;
  request.ignore_end_tokens = true;
  if (!policy.empty()) request.kv_policy = parse_kv_policy(policy);
  return request;
}

// Tokens with the bits of the log probabilities of the whole vocabulary, and the last usage.
struct Answer {
  std::vector<std::pair<TokenId, std::vector<uint32_t>>> steps;
  GenerationUsage usage;
  std::string error;

  void take(const GenerationOutput& output) {
    usage = output.usage;
    error = output.error;
    if (!output.token) return;
    steps.emplace_back(output.token->token, std::vector<uint32_t>());
    for (const TokenLogprob& alternative : output.token->alternatives) {
      steps.back().second.push_back(std::bit_cast<uint32_t>(alternative.logprob));
    }
  }
};

inline void run_all(Engine& engine) {
  while (engine.step()) {
  }
}

inline Answer ask(Engine& engine, const GenerationRequest& request) {
  Answer answer;
  engine.submit(request, [&](const GenerationOutput& output) { answer.take(output); });
  run_all(engine);
  EXPECT_TRUE(answer.error.empty()) << answer.error;
  return answer;
}

// What the model makes of a text that is given: bits of each token's log probability, and its routes.
struct Reading {
  std::vector<uint32_t> bits;                // [tokens]
  std::vector<std::vector<int32_t>> routes;  // [tokens] [MoE layers, top_k]
  GenerationOutput last;

  void take(const GenerationOutput& output) {
    last = output;
    if (!output.token) return;
    bits.push_back(std::bit_cast<uint32_t>(output.token->logprob));
    routes.push_back(output.routes);
  }
};

inline GenerationRequest reading_request(std::vector<TokenId> prompt, std::vector<TokenId> continuation,
                                         const std::string& policy) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.continuation = std::move(continuation);
  request.wants_routes = true;
  if (!policy.empty()) request.kv_policy = parse_kv_policy(policy);
  return request;
}

inline Reading read(Engine& engine, const GenerationRequest& request) {
  Reading reading;
  engine.submit(request, [&](const GenerationOutput& output) { reading.take(output); });
  run_all(engine);
  EXPECT_TRUE(reading.last.error.empty()) << reading.last.error;
  return reading;
}

// Whatever the chunks, the threads, what else runs and what the prefix cache has.
inline void expect_the_same_answer_everywhere(const ModelOptions& options, const std::string& policy) {
  SCOPED_TRACE(policy);
  const GenerationRequest request = request_for(prompt_tokens(kPrompt, 5), policy);
  ModelOptions o = options;
  o.prefix_cache = false;
  Engine alone(o);
  const Answer expected = ask(alone, request);
  EXPECT_NE(expected.steps, ask(alone, request_for(prompt_tokens(kPrompt, 5), "")).steps) << "lossy";

  o = options;
  o.num_threads = 1;
  o.max_step_tokens = 29;  // less than the window's distance to the end, so that chunks cut it
  Engine engine(o);
  EXPECT_EQ(ask(engine, request).steps, expected.steps) << "chunks of 29";
  const Answer again = ask(engine, request);
  EXPECT_EQ(again.steps, expected.steps) << "prompt from the cache";
  if (request.kv_policy->wants().sees_all_tokens()) {
    EXPECT_EQ(again.usage.cached_prompt_tokens, 0) << "it wants to see all tokens computed";
  } else if (request.kv_policy->prefill_every == 0) {
    EXPECT_GE(again.usage.cached_prompt_tokens, 128 - 32);
  }

  // Among others, dense and compressed, of the same and of other prompts; all are what they are alone.
  std::map<int32_t, Answer> answers;
  const auto request_of = [&](int32_t i) {
    const std::string chosen = i % 3 == 0 ? policy : i % 3 == 1 ? "" : "streamingllm,tokens=40";
    return request_for(prompt_tokens(i < 3 ? kPrompt : 60 + 20 * i, i < 3 ? 5 : i), chosen);
  };
  for (int32_t i = 0; i < 6; ++i) {
    engine.submit(request_of(i), [&answers, i](const GenerationOutput& output) { answers[i].take(output); });
  }
  run_all(engine);
  EXPECT_EQ(answers[0].steps, expected.steps);
  for (int32_t i = 1; i < 6; ++i) EXPECT_EQ(answers[i].steps, ask(alone, request_of(i)).steps) << "request " << i;
}

// Returns how often sequences were preempted, with so many percent of the room that they take at once.
inline int64_t expect_the_same_answers_in_little_room(const ModelOptions& options, const std::string& policy,
                                                      int64_t percent = 45) {
  SCOPED_TRACE(policy);
  const auto run = [&](Engine& engine) {
    std::vector<Answer> answers(4);
    for (int32_t i = 0; i < 4; ++i) {
      engine.submit(request_for(prompt_tokens(60 + i, 20 + i), policy, 190),
                    [&answers, i](const GenerationOutput& output) { answers[static_cast<size_t>(i)].take(output); });
    }
    run_all(engine);
    std::vector<decltype(Answer::steps)> steps;
    for (const Answer& answer : answers) {
      EXPECT_TRUE(answer.error.empty()) << answer.error;
      steps.push_back(answer.steps);
    }
    return steps;
  };
  ModelOptions roomy = options;
  roomy.context_length = 256;
  roomy.prefix_cache = false;
  Engine calm(roomy);
  const auto expected = run(calm);
  EXPECT_EQ(calm.stats().scheduler.num_preemptions, 0);
  ModelOptions tight = roomy;
  tight.prefix_cache = true;
  tight.kv_capacity_bytes = calm.stats().kv.peak_block_bytes_held * percent / 100;
  Engine crowded(tight);
  EXPECT_EQ(run(crowded), expected);
  return crowded.stats().scheduler.num_preemptions;
}

inline std::string arch_name(const testing::TestParamInfo<ModelCase>& model) {
  std::string name = model.param.arch;
  std::erase(name, '-');
  return name;
}
inline ModelOptions small_options() {
  return {.path = made_model("qwen3moe", "tiny", DType::kQ8_0),
          .num_threads = 2,
          .memory_bytes = int64_t{512} << 20,
          .context_length = 512};
}

// Bytes of the blocks of a sequence of so many tokens whose heads have `num_entries` each, [layer without a
// window][head]: none stands idle but the rest of each head's last one. Layers with a window have what the next token
// sees.
inline int64_t bytes_of_blocks(const ModelInfo& model, KvCodec codec, int32_t num_tokens,
                               const std::vector<std::vector<int32_t>>& num_entries) {
  int64_t bytes = 0;
  auto of_layer = num_entries.begin();
  for (const KvLayerSpec& layer : model.kv_layers) {
    int64_t num_blocks = 0;
    if (layer.window > 0) {
      const int32_t first_block = std::max(0, num_tokens - layer.window + 1) / kKvBlockSize;
      num_blocks = layer.num_kv_heads * ((num_tokens + kKvBlockSize - 1) / kKvBlockSize - first_block);
    } else {
      for (const int32_t n : *of_layer) num_blocks += (n + kKvBlockSize - 1) / kKvBlockSize;
      ++of_layer;
    }
    bytes += num_blocks * KvBlockFormat{codec, layer.key_dim, layer.value_dim, layer.value_in_key}.block_bytes();
  }
  return bytes;
}

// The same with all entries.
inline int64_t bytes_of_all_blocks(const ModelInfo& model, KvCodec codec, int32_t num_tokens) {
  std::vector<std::vector<int32_t>> all;
  for (const KvLayerSpec& layer : model.kv_layers) {
    if (layer.window == 0) all.emplace_back(static_cast<size_t>(layer.num_kv_heads), num_tokens);
  }
  return bytes_of_blocks(model, codec, num_tokens, all);
}

// What a sequence holds at num_tokens tokens, of which those since the report were generated: they take the rest of
// each head's last block first.
inline int64_t bytes_held_since(const ModelInfo& model, KvCodec codec, const KvCompression& report,
                                int32_t num_tokens) {
  std::vector<std::vector<int32_t>> then = report.kept;  // of the cache's own type
  for (size_t layer = 0; layer < then.size(); ++layer) {
    for (size_t head = 0; head < then[layer].size(); ++head) then[layer][head] -= report.demoted[layer][head];
  }
  std::vector<std::vector<int32_t>> now = then;
  for (std::vector<int32_t>& layer : now) {
    for (int32_t& n : layer) n += num_tokens - report.num_tokens;
  }
  return report.bytes_after + bytes_of_blocks(model, codec, num_tokens, now) -
         bytes_of_blocks(model, codec, report.num_tokens, then);
}

// Of every one of kModels.
class KvModelTest : public testing::TestWithParam<ModelCase> {
 protected:
  static ModelOptions options() { return options_for(GetParam()); }
};

}  // namespace witan::test
