// Llama (arXiv 2307.09288): pre-norm decoder with grouped-query attention, rotary positions and SwiGLU.

#include "models/gqa.h"
#include "models/models.h"

namespace witan {
namespace {

class Llama final : public Model {
 public:
  explicit Llama(const Checkpoint& checkpoint)
      // Converters to GGUF permute the rows of q and k so that rotated components are neighbours.
      : config_(read_decoder_config(checkpoint, RopeLayout::kPairs)),
        info_(config_.info("llama")),
        rope_(config_.rope) {
    const ConfigReader read(checkpoint);
    ffn_dim_ = read.count({"feed_forward_length", "intermediate_size"});
    info_.activation_bytes_per_token += int64_t{3} * ffn_dim_ * static_cast<int64_t>(sizeof(float));
  }

  const ModelInfo& info() const override { return info_; }

  void load(WeightLoader& weights) override {
    frame_ = load_frame(weights, info_, config_.norm_epsilon);
    for (int32_t i = 0; i < config_.num_layers; ++i) {
      attention_.push_back(load_gqa(weights, config_, i));
      ffn_.push_back(weights.ffn({"blk.{}.ffn_gate.weight", "model.layers.{}.mlp.gate_proj.weight"},
                                 {"blk.{}.ffn_up.weight", "model.layers.{}.mlp.up_proj.weight"},
                                 {"blk.{}.ffn_down.weight", "model.layers.{}.mlp.down_proj.weight"}, i, ffn_dim_,
                                 config_.model_dim));
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
      dense_ffn(compute, ffn_[layer], x, batch.num_tokens(), out);
    };
    pre_norm_decoder(ctx, frame_, batch, attention, ffn, logits);
  }

 private:
  DecoderConfig config_;
  int32_t ffn_dim_ = 0;
  ModelInfo info_;
  RopeTable rope_;

  DecoderFrame frame_;
  std::vector<GqaWeights> attention_;  // [num_layers]
  std::vector<FfnWeights> ffn_;        // [num_layers]
};

}  // namespace

std::unique_ptr<Model> make_llama(const Checkpoint& checkpoint) { return std::make_unique<Llama>(checkpoint); }

}  // namespace witan
