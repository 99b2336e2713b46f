#include "models/feed_forward.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

namespace witan {

std::vector<int32_t> layers_from(int32_t first, int32_t num_layers) {
  std::vector<int32_t> layers;
  for (int32_t layer = first; layer < num_layers; ++layer) layers.push_back(layer);
  return layers;
}

RouterSpec read_router(const ConfigReader& read, ConfigKey num_experts, RouterSpec known) {
  known.num_experts = read.count(num_experts, std::nullopt, kMaxExperts);
  known.top_k = read.count({"expert_used_count", "num_experts_per_tok"}, std::nullopt, kMaxExperts);
  read.expect(known.top_k <= known.num_experts,
              fmt::format("{} experts per token are more than the {} there are", known.top_k, known.num_experts));
  return known;
}

RouterScoring read_scoring(const ConfigReader& read, RouterScoring fallback) {
  constexpr ConfigKey kKey{"expert_gating_func", "scoring_func"};
  if (!read.has(kKey)) return fallback;
  if (read.is_gguf()) {
    const int32_t value = read.count_or_zero(kKey, 0);
    if (value == 0) return fallback;  // as some converters wrote where the model has only one way
    read.require(value <= 3, kKey,
                 fmt::format("{}; expected 1 (softmax), 2 (sigmoid) or 3 (softmax of the chosen)", value));
    return value == 1   ? RouterScoring::kSoftmax
           : value == 2 ? RouterScoring::kSigmoid
                        : RouterScoring::kSoftmaxOfChosen;
  }
  const std::string name = read.text(kKey, "");
  read.require(name == "softmax" || name == "sigmoid", kKey, fmt::format("\"{}\"; expected softmax or sigmoid", name));
  read.note_gguf(kKey.gguf, uint32_t{name == "softmax" ? 1u : 2u});
  return name == "softmax" ? RouterScoring::kSoftmax : RouterScoring::kSigmoid;
}

void read_expert_groups(const ConfigReader& read, RouterSpec& router) {
  router.num_groups = std::max(1, read.count_or_zero({"expert_group_count", "n_group"}, 1, kMaxExpertGroups));
  router.num_groups_used =
      std::max(1, read.count_or_zero({"expert_group_used_count", "topk_group"}, router.num_groups));
  read.expect(router.num_experts % router.num_groups == 0,
              fmt::format("{} expert groups do not divide {} experts", router.num_groups, router.num_experts));
  read.expect(
      router.num_groups_used <= router.num_groups,
      fmt::format("{} expert groups used, more than the {} there are", router.num_groups_used, router.num_groups));
  const int32_t reachable = router.num_experts / router.num_groups * router.num_groups_used;
  read.expect(router.top_k <= reachable, fmt::format("{} experts per token are more than the {} of {} groups",
                                                     router.top_k, reachable, router.num_groups_used));
}

void FeedForward::describe(ModelInfo& info) const {
  const auto float_bytes = static_cast<int64_t>(sizeof(float));
  const int64_t widest = std::max(config_.dense_dim, config_.shared_dim);
  info.activation_bytes_per_token += 3 * widest * float_bytes;
  info.moe_layers = config_.moe_layers;
  if (config_.moe_layers.empty()) return;
  const RouterSpec& router = config_.router;
  info.num_experts = router.num_experts;
  info.top_k = router.top_k;
  // gate, up, their stored input and output; the experts' outputs; router logits.
  const int64_t floats =
      int64_t{router.top_k} * (int64_t{3} * config_.expert_dim + info.model_dim) + int64_t{2} * router.num_experts;
  info.activation_bytes_per_token += floats * float_bytes;
}

void FeedForward::load_layer(WeightLoader& weights, int32_t layer, int32_t model_dim) {
  const bool moe = std::ranges::binary_search(config_.moe_layers, layer);
  layers_.push_back({.moe = moe, .index = moe ? moe_.size() : dense_.size()});
  if (moe) {
    moe_.push_back(load_moe(weights, layer, model_dim));
  } else {
    dense_.push_back(weights.ffn({"blk.{}.ffn_gate.weight", "model.layers.{}.mlp.gate_proj.weight"},
                                 {"blk.{}.ffn_up.weight", "model.layers.{}.mlp.up_proj.weight"},
                                 {"blk.{}.ffn_down.weight", "model.layers.{}.mlp.down_proj.weight"}, layer,
                                 config_.dense_dim, model_dim));
  }
}

MoeWeights FeedForward::load_moe(WeightLoader& weights, int32_t layer, int32_t model_dim) const {
  const FfnTensorNames& names = config_.names;
  const int32_t num_experts = config_.router.num_experts;
  MoeWeights moe;
  moe.moe_layer = static_cast<int32_t>(moe_.size());
  moe.spec = config_.router;
  moe.router = weights.matrix(names.router, layer, num_experts, model_dim);
  if (config_.router_bias) moe.router_bias = weights.vector(names.router_bias, layer, num_experts);
  if (config_.selection_bias) {
    moe.selection_bias = weights.vector({"blk.{}.exp_probs_b.bias", "model.layers.{}.mlp.gate.e_score_correction_bias"},
                                        layer, num_experts);
  }
  const bool fused = !weights.is_gguf() && !names.fused_experts.gate_up.empty();
  moe.experts =
      fused ? load_fused_experts(weights, names.fused_experts, layer, num_experts, config_.expert_dim, model_dim)
            : weights.experts(names.experts, layer, num_experts, config_.expert_dim, model_dim);
  if (config_.expert_bias) {
    load_expert_biases(weights, names.fused_experts, layer, config_.expert_dim, model_dim, moe.experts);
  }
  for (FfnWeights& expert : moe.experts) {
    expert.activation = config_.expert_activation;
    expert.limit = config_.expert_limit;
  }
  if (config_.shared_dim > 0) {
    moe.shared = weights.ffn(names.shared_gate_proj, names.shared_up_proj, names.shared_down_proj, layer,
                             config_.shared_dim, model_dim);
  }
  if (config_.shared_gate) {
    moe.shared_gate = weights.row({"blk.{}.ffn_gate_inp_shexp.weight", "model.layers.{}.mlp.shared_expert_gate.weight"},
                                  layer, model_dim);
  }
  return moe;
}

void FeedForward::forward(ForwardContext& ctx, int32_t layer, const float* x, int64_t num_tokens, float* out) const {
  const Layer& place = layers_[static_cast<size_t>(layer)];
  if (place.moe) {
    moe_ffn(ctx.compute, moe_[place.index], x, num_tokens, ctx.telemetry, out);
  } else {
    dense_ffn(ctx.compute, dense_[place.index], x, num_tokens, out);
  }
}

}  // namespace witan
