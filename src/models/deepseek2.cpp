// DeepSeek-V2 (arXiv 2405.04434): multi-head latent attention; the first layers dense, the others with routed experts
// and shared experts that every token uses. Softmax routing, the chosen weights scaled and not renormalised.

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "models/config_reader.h"
#include "models/mla.h"
#include "models/models.h"

namespace witan {
namespace {

constexpr ExpertTensorNames kExperts{
    .gate = {"blk.{}.ffn_gate_exps.weight", "blk.{}.ffn_gate.{}.weight",
             "model.layers.{}.mlp.experts.{}.gate_proj.weight"},
    .up = {"blk.{}.ffn_up_exps.weight", "blk.{}.ffn_up.{}.weight", "model.layers.{}.mlp.experts.{}.up_proj.weight"},
    .down = {"blk.{}.ffn_down_exps.weight", "blk.{}.ffn_down.{}.weight",
             "model.layers.{}.mlp.experts.{}.down_proj.weight"}};

// get_mscale of the original code: how much larger attention gets with a longer context.
double yarn_mscale(double factor, double mscale) { return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

// Everything YaRN changes: frequencies, and the scale of the scores.
struct RopeSettings {
  RopeConfig rope;
  double score_factor = 1.0;
};

RopeSettings read_rope(const ConfigReader& read, int32_t rope_dim) {
  RopeSettings settings;
  // Adjacent pairs in both formats; nothing is permuted.
  settings.rope = {.layout = RopeLayout::kPairs,
                   .dim = rope_dim,
                   .theta = read.positive({"rope.freq_base", "rope_theta"}, 10000.0),
                   .yarn = std::nullopt};
  const ConfigKey type_key =
      read.is_gguf()
          ? ConfigKey{"rope.scaling.type", ""}
          : ConfigKey{"", read.has({"", "rope_scaling.rope_type"}) ? "rope_scaling.rope_type" : "rope_scaling.type"};
  const bool scaled = read.is_gguf() ? read.has(type_key) : read.has({"", "rope_scaling"});
  const std::string type = scaled ? read.text(type_key, "yarn") : "none";
  if (type == "none" || type == "default") return settings;
  read.require(type == "yarn", type_key, "only YaRN is supported, found \"" + type + "\"");

  YarnScaling yarn;
  yarn.factor = read.positive({"rope.scaling.factor", "rope_scaling.factor"});
  yarn.original_context =
      read.count({"rope.scaling.original_context_length", "rope_scaling.original_max_position_embeddings"});
  yarn.beta_fast = read.positive({"rope.scaling.yarn_beta_fast", "rope_scaling.beta_fast"}, 32.0);
  yarn.beta_slow = read.positive({"rope.scaling.yarn_beta_slow", "rope_scaling.beta_slow"}, 1.0);
  double mscale_all_dim = 0.0;
  if (read.is_gguf()) {
    // Stored as 0.1 * mscale_all_dim; GGUF files know no mscale apart from it.
    mscale_all_dim = read.has({"rope.scaling.yarn_log_multiplier", ""})
                         ? read.positive({"rope.scaling.yarn_log_multiplier", ""}) / 0.1
                         : 0.0;
  } else {
    mscale_all_dim =
        read.has({"", "rope_scaling.mscale_all_dim"}) ? read.positive({"", "rope_scaling.mscale_all_dim"}) : 0.0;
    const double mscale = read.positive({"", "rope_scaling.mscale"}, 1.0);
    yarn.attention_factor = yarn_mscale(yarn.factor, mscale) / yarn_mscale(yarn.factor, mscale_all_dim);
  }
  const double score_mscale = yarn_mscale(yarn.factor, mscale_all_dim);
  settings.score_factor = score_mscale * score_mscale;
  settings.rope.yarn = yarn;
  return settings;
}

class DeepSeek2 final : public Model {
 public:
  explicit DeepSeek2(const Checkpoint& checkpoint) : DeepSeek2(ConfigReader(checkpoint)) {}

  const ModelInfo& info() const override { return info_; }

  void load(WeightLoader& weights) override {
    frame_ = load_frame(weights, info_, mla_.norm_epsilon);
    for (int32_t i = 0; i < info_.num_layers; ++i) {
      attention_.push_back(load_mla(weights, mla_, i));
      // A layer has either one network or a router with routed and shared experts.
      const bool dense = i < num_dense_layers_;
      ffn_.push_back(dense ? load_dense(weights, i) : load_shared(weights, i));
      if (!dense) moe_.push_back(load_moe(weights, i));
    }
  }

  void forward(ForwardContext& ctx, const ForwardBatch& batch, float* logits) const override {
    ComputeContext& compute = ctx.compute;
    const ScratchScope scope(compute.scratch);
    const RopeAngles angles = rope_angles(compute, rope_, batch);
    const auto attention = [&](int32_t layer, const float* x, float* out) {
      mla_attention(ctx, batch, layer, mla_, attention_[layer], angles, x, out);
    };
    const auto ffn = [&](int32_t layer, const float* x, float* out) {
      if (layer < num_dense_layers_) {
        dense_ffn(compute, ffn_[layer], x, batch.num_tokens(), out);
      } else {
        const FfnWeights* shared = shared_dim_ > 0 ? &ffn_[layer] : nullptr;
        moe_ffn(compute, moe_[layer - num_dense_layers_], shared, x, batch.num_tokens(), ctx.telemetry, out);
      }
    };
    pre_norm_decoder(ctx, frame_, batch, attention, ffn, logits);
  }

 private:
  explicit DeepSeek2(const ConfigReader& read) : settings_(read_settings(read)), rope_(settings_.rope) {
    read_experts(read);
  }

  RopeSettings read_settings(const ConfigReader& read);
  void read_experts(const ConfigReader& read);

  FfnWeights load_dense(WeightLoader& weights, int32_t layer) const {
    return weights.ffn({"blk.{}.ffn_gate.weight", "model.layers.{}.mlp.gate_proj.weight"},
                       {"blk.{}.ffn_up.weight", "model.layers.{}.mlp.up_proj.weight"},
                       {"blk.{}.ffn_down.weight", "model.layers.{}.mlp.down_proj.weight"}, layer, dense_ffn_dim_,
                       mla_.model_dim);
  }

  FfnWeights load_shared(WeightLoader& weights, int32_t layer) const {
    if (shared_dim_ == 0) return {};
    return weights.ffn({"blk.{}.ffn_gate_shexp.weight", "model.layers.{}.mlp.shared_experts.gate_proj.weight"},
                       {"blk.{}.ffn_up_shexp.weight", "model.layers.{}.mlp.shared_experts.up_proj.weight"},
                       {"blk.{}.ffn_down_shexp.weight", "model.layers.{}.mlp.shared_experts.down_proj.weight"}, layer,
                       shared_dim_, mla_.model_dim);
  }

  MoeWeights load_moe(WeightLoader& weights, int32_t layer) const {
    return {.moe_layer = layer - num_dense_layers_,
            .spec = router_,
            .router = weights.matrix({"blk.{}.ffn_gate_inp.weight", "model.layers.{}.mlp.gate.weight"}, layer,
                                     router_.num_experts, mla_.model_dim),
            .experts = weights.experts(kExperts, layer, router_.num_experts, expert_dim_, mla_.model_dim)};
  }

  MlaConfig mla_;
  ModelInfo info_;
  int32_t num_dense_layers_ = 0;
  int32_t dense_ffn_dim_ = 0;
  int32_t expert_dim_ = 0;
  int32_t shared_dim_ = 0;  // width of the shared experts together; 0: none
  RouterSpec router_;
  RopeSettings settings_;
  RopeTable rope_;

  DecoderFrame frame_;
  std::vector<MlaWeights> attention_;  // [num_layers]
  std::vector<FfnWeights> ffn_;        // [num_layers]: the dense network, or the shared experts
  std::vector<MoeWeights> moe_;        // [layers with experts]
};

RopeSettings DeepSeek2::read_settings(const ConfigReader& read) {
  constexpr int32_t kMaxDim = 1 << 17;
  info_.architecture = "deepseek2";
  info_.vocab_size = read.vocab_size();
  info_.context_length = read.count({"context_length", "max_position_embeddings"});
  info_.model_dim = read.count({"embedding_length", "hidden_size"}, std::nullopt, kMaxDim);
  info_.num_layers = read.count({"block_count", "num_hidden_layers"}, std::nullopt, 4096);
  info_.num_heads = read.count({"attention.head_count", "num_attention_heads"}, std::nullopt, 4096);
  info_.generated_entries_differ = true;

  mla_.model_dim = info_.model_dim;
  mla_.num_heads = info_.num_heads;
  mla_.latent_dim = read.count({"attention.kv_lora_rank", "kv_lora_rank"}, std::nullopt, kMaxDim);
  mla_.q_latent_dim = read.count_or_zero({"attention.q_lora_rank", "q_lora_rank"}, 0, kMaxDim);
  mla_.rope_dim = read.count({"rope.dimension_count", "qk_rope_head_dim"}, std::nullopt, 4096);
  read.expect(mla_.rope_dim % 2 == 0, fmt::format("rotary dimension {} is odd", mla_.rope_dim));
  if (read.is_gguf()) {
    // Newer files state the latent's lengths in key_length and value_length, and the heads' under *_mla.
    const bool split = read.has({"attention.key_length_mla", ""});
    const int32_t key_dim = read.count({split ? "attention.key_length_mla" : "attention.key_length", ""});
    mla_.value_dim =
        read.count({split ? "attention.value_length_mla" : "attention.value_length", ""}, std::nullopt, kMaxDim);
    read.expect(key_dim > mla_.rope_dim,
                fmt::format("key length {} leaves no room beside the rotary dimension {}", key_dim, mla_.rope_dim));
    mla_.nope_dim = key_dim - mla_.rope_dim;
  } else {
    mla_.nope_dim = read.count({"", "qk_nope_head_dim"}, std::nullopt, kMaxDim);
    mla_.value_dim = read.count({"", "v_head_dim"}, std::nullopt, kMaxDim);
  }
  mla_.norm_epsilon = static_cast<float>(read.positive({"attention.layer_norm_rms_epsilon", "rms_norm_eps"}));
  const RopeSettings settings = read_rope(read, mla_.rope_dim);
  mla_.scale = static_cast<float>(settings.score_factor / std::sqrt(static_cast<double>(mla_.key_dim())));
  const int64_t heads = mla_.num_heads;
  const auto float_bytes = static_cast<int64_t>(sizeof(float));
  info_.derived_weight_bytes = info_.num_layers * heads * mla_.nope_dim * mla_.latent_dim * float_bytes;
  // Residual stream and projections; queries, also absorbed; attention out, also latent; split states of each thread.
  info_.activation_bytes_per_token =
      (int64_t{6} * mla_.model_dim + heads * (2 * mla_.key_dim() + 3 * mla_.entry_dim() + 4 * mla_.value_dim)) *
      float_bytes;
  info_.activation_bytes_per_entry = 3 * mla_.entry_dim() * float_bytes;  // latents as read and as stored
  info_.kv_layers.assign(static_cast<size_t>(info_.num_layers), {.num_kv_heads = 1,
                                                                 .key_dim = static_cast<int32_t>(mla_.entry_dim()),
                                                                 .value_dim = mla_.latent_dim,
                                                                 .value_in_key = true});
  return settings;
}

void DeepSeek2::read_experts(const ConfigReader& read) {
  num_dense_layers_ = read.count_or_zero({"leading_dense_block_count", "first_k_dense_replace"}, 0, info_.num_layers);
  if (num_dense_layers_ > 0) dense_ffn_dim_ = read.count({"feed_forward_length", "intermediate_size"});
  expert_dim_ = read.count({"expert_feed_forward_length", "moe_intermediate_size"}, std::nullopt, 1 << 20);
  const int32_t num_shared = read.count_or_zero({"expert_shared_count", "n_shared_experts"}, 0, kMaxExperts);
  shared_dim_ = num_shared * expert_dim_;
  constexpr ConfigKey kScoring{"expert_gating_func", "scoring_func"};
  const bool softmax =
      !read.has(kScoring) || (read.is_gguf() ? read.count(kScoring) == 1 : read.text(kScoring, "softmax") == "softmax");
  read.require(softmax, kScoring, "only softmax routing is supported");
  constexpr ConfigKey kMethod{"", "topk_method"};
  read.require(read.text(kMethod, "greedy") == "greedy", kMethod, "only greedy routing is supported");
  constexpr ConfigKey kGroups{"expert_group_count", ""};
  read.require(read.count_or_zero(kGroups, 1) <= 1, kGroups, "group-limited routing is not supported");
  constexpr ConfigKey kFrequency{"", "moe_layer_freq"};
  read.require(read.count(kFrequency, 1) == 1, kFrequency, "dense layers between MoE layers are not supported");
  router_ = {.num_experts = read.count({"expert_count", "n_routed_experts"}, std::nullopt, kMaxExperts),
             .top_k = read.count({"expert_used_count", "num_experts_per_tok"}, std::nullopt, kMaxExperts),
             .normalize = read.flag({"expert_weights_norm", "norm_topk_prob"}, false)};
  // As in the original code: the factor applies to weights that are not renormalised.
  const double scale = read.positive({"expert_weights_scale", "routed_scaling_factor"}, 1.0);
  router_.scale = router_.normalize ? 1.0f : static_cast<float>(scale);
  set_moe_info(read, router_, expert_dim_, num_dense_layers_, info_);
  const int64_t widest_ffn = std::max(dense_ffn_dim_, shared_dim_);
  info_.activation_bytes_per_token += 3 * widest_ffn * static_cast<int64_t>(sizeof(float));
}

}  // namespace

std::unique_ptr<Model> make_deepseek2(const Checkpoint& checkpoint) { return std::make_unique<DeepSeek2>(checkpoint); }

}  // namespace witan
