// Qwen3-MoE (arXiv 2505.09388): query and key heads are normalised before the rotary positions; softmax routing over
// all experts, the chosen weights renormalised; no shared expert.

#include "models/gqa.h"
#include "models/models.h"

namespace witan {
namespace {

constexpr ExpertTensorNames kExperts{
    .gate = {"blk.{}.ffn_gate_exps.weight", "blk.{}.ffn_gate.{}.weight",
             "model.layers.{}.mlp.experts.{}.gate_proj.weight"},
    .up = {"blk.{}.ffn_up_exps.weight", "blk.{}.ffn_up.{}.weight", "model.layers.{}.mlp.experts.{}.up_proj.weight"},
    .down = {"blk.{}.ffn_down_exps.weight", "blk.{}.ffn_down.{}.weight",
             "model.layers.{}.mlp.experts.{}.down_proj.weight"}};

class Qwen3Moe final : public Model {
 public:
  explicit Qwen3Moe(const Checkpoint& checkpoint)
      : config_(read_decoder_config(checkpoint, RopeLayout::kHalves)),
        info_(config_.info("qwen3_moe")),
        rope_(config_.rope) {
    const ConfigReader read(checkpoint);
    ffn_dim_ = read.count({"expert_feed_forward_length", "moe_intermediate_size"});
    // GGUF files do not state the renormalisation: all released models have it.
    router_ = {.num_experts = read.count({"expert_count", "num_experts"}, std::nullopt, kMaxExperts),
               .top_k = read.count({"expert_used_count", "num_experts_per_tok"}, std::nullopt, kMaxExperts),
               .normalize = read.flag({"expert_weights_norm", "norm_topk_prob"}, read.is_gguf())};
    read.require(read.count({"", "decoder_sparse_step"}, 1) == 1, {"", "decoder_sparse_step"},
                 "dense layers between MoE layers are not supported");
    read.require(read.is_gguf() || !read.has({"", "mlp_only_layers"}) || read.ints({"", "mlp_only_layers"}).empty(),
                 {"", "mlp_only_layers"}, "dense layers between MoE layers are not supported");
    set_moe_info(read, router_, ffn_dim_, 0, info_);
  }

  const ModelInfo& info() const override { return info_; }

  void load(WeightLoader& weights) override {
    frame_ = load_frame(weights, info_, config_.norm_epsilon);
    for (int32_t i = 0; i < config_.num_layers; ++i) {
      GqaWeights attention = load_gqa(weights, config_, i);
      attention.q_norm =
          weights.vector({"blk.{}.attn_q_norm.weight", "model.layers.{}.self_attn.q_norm.weight"}, i, config_.head_dim);
      attention.k_norm =
          weights.vector({"blk.{}.attn_k_norm.weight", "model.layers.{}.self_attn.k_norm.weight"}, i, config_.head_dim);
      attention_.push_back(attention);
      moe_.push_back({.moe_layer = i,
                      .spec = router_,
                      .router = weights.matrix({"blk.{}.ffn_gate_inp.weight", "model.layers.{}.mlp.gate.weight"}, i,
                                               router_.num_experts, config_.model_dim),
                      .experts = weights.experts(kExperts, i, router_.num_experts, ffn_dim_, config_.model_dim)});
    }
  }

  void forward(ForwardContext& ctx, const ForwardBatch& batch, float* logits) const override {
    ComputeContext& compute = ctx.compute;
    const ScratchScope scope(compute.scratch);
    const RopeAngles angles = rope_angles(compute, rope_, batch);
    const auto attention = [&](int32_t layer, const float* x, float* out) {
      gqa_attention(ctx, batch, layer, config_, attention_[layer], angles, x, out);
    };
    const auto ffn = [&](int32_t layer, const float* x, float* out) {
      moe_ffn(compute, moe_[layer], nullptr, x, batch.num_tokens(), ctx.telemetry, out);
    };
    pre_norm_decoder(ctx, frame_, batch, attention, ffn, logits);
  }

 private:
  DecoderConfig config_;
  int32_t ffn_dim_ = 0;
  RouterSpec router_;
  ModelInfo info_;
  RopeTable rope_;

  DecoderFrame frame_;
  std::vector<GqaWeights> attention_;  // [num_layers]
  std::vector<MoeWeights> moe_;        // [num_layers]
};

}  // namespace

std::unique_ptr<Model> make_qwen3_moe(const Checkpoint& checkpoint) { return std::make_unique<Qwen3Moe>(checkpoint); }

}  // namespace witan
