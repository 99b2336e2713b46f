#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "eval/perplexity.h"

namespace witan {

// What a KV policy changes in what a model makes of a text, over the tokens that both predict.
struct KvComparison {
  Perplexity dense;  // with every entry
  Perplexity policy;
  // [MoE layers]; empty of a dense model. Of a token's experts with the policy and without, on average over tokens.
  std::vector<double> route_overlap;
  double same_routes = 0.0;  // share of tokens whose experts are the same in all layers
  // Of the KV entries when the policy judged them last, all windows together (KvCompression); 0 where it never did.
  int64_t bytes_after = 0;
  int64_t bytes_before = 0;

  double mean_route_overlap() const;  // over layers
};

// Computes a text with a KV policy and without. Windows of `window` tokens (bos included, where there is one): the
// first num_prompt of them are a prompt, at whose end the policy acts, the others its continuation, whose tokens are
// predicted; the next window's begin behind them. So every token but the first num_prompt is predicted once, the first
// of each window before the policy acts at the prompt's end. The engine's own thread must not run. Throws
// Error(kInvalidArgument) for a window without a continuation and a text that is no longer than the prompt,
// KvPolicyError for a policy that the model or the prompt cannot have, Error(kOutOfMemory) for a request that fails
// while it runs, as one without room does, with what it said.
KvComparison compare_kv(Engine& engine, std::span<const TokenId> tokens, std::optional<TokenId> bos,
                        const KvPolicy& policy, int32_t window, int32_t num_prompt,
                        const std::function<void(int64_t done, int64_t total)>& progress = {});

}  // namespace witan
