// Mixtral of experts (arXiv 2401.04088): Llama with every feed-forward network replaced by experts, of which the router
// picks a few per token: softmax over all experts, the chosen weights renormalised.

#include "models/gqa.h"
#include "models/models.h"

namespace witan {
namespace {

constexpr ExpertTensorNames kExperts{.gate = {"blk.{}.ffn_gate_exps.weight", "blk.{}.ffn_gate.{}.weight",
                                              "model.layers.{}.block_sparse_moe.experts.{}.w1.weight"},
                                     .up = {"blk.{}.ffn_up_exps.weight", "blk.{}.ffn_up.{}.weight",
                                            "model.layers.{}.block_sparse_moe.experts.{}.w3.weight"},
                                     .down = {"blk.{}.ffn_down_exps.weight", "blk.{}.ffn_down.{}.weight",
                                              "model.layers.{}.block_sparse_moe.experts.{}.w2.weight"}};

class Mixtral final : public Model {
 public:
  explicit Mixtral(const Checkpoint& checkpoint)
      // Converters to GGUF permute the rows of q and k so that rotated components are neighbours.
      : config_(read_decoder_config(checkpoint, RopeLayout::kPairs)),
        info_(config_.info("mixtral")),
        rope_(config_.rope) {
    const ConfigReader read(checkpoint);
    ffn_dim_ = read.count({"feed_forward_length", "intermediate_size"});
    router_ = {.num_experts = read.count({"expert_count", "num_local_experts"}, std::nullopt, kMaxExperts),
               .top_k = read.count({"expert_used_count", "num_experts_per_tok"}, std::nullopt, kMaxExperts),
               .normalize = true};
    set_moe_info(read, router_, ffn_dim_, 0, info_);
  }

  const ModelInfo& info() const override { return info_; }

  void load(WeightLoader& weights) override {
    frame_ = load_frame(weights, info_, config_.norm_epsilon);
    for (int32_t i = 0; i < config_.num_layers; ++i) {
      attention_.push_back(load_gqa(weights, config_, i));
      moe_.push_back(
          {.moe_layer = i,
           .spec = router_,
           .router = weights.matrix({"blk.{}.ffn_gate_inp.weight", "model.layers.{}.block_sparse_moe.gate.weight"}, i,
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

std::unique_ptr<Model> make_mixtral(const Checkpoint& checkpoint) { return std::make_unique<Mixtral>(checkpoint); }

}  // namespace witan
