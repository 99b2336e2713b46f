#include "models/gqa_decoder.h"

namespace witan {

GqaDecoder::GqaDecoder(std::string_view architecture, const DecoderConfig& config, const GqaParts& parts, FfnConfig ffn,
                       const FrameNames& names)
    : config_(config),
      parts_(parts),
      names_(names),
      ffn_(std::move(ffn)),
      info_(config.info(architecture)),
      rope_(config.rope) {
  ffn_.describe(info_);
}

void GqaDecoder::load(WeightLoader& weights) {
  frame_ = load_frame(weights, info_, config_.norm_epsilon, names_);
  load_rope_factors(weights, rope_);
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    attention_.push_back(load_gqa(weights, config_, parts_, layer));
    ffn_.load_layer(weights, layer, config_.model_dim);
  }
}

void GqaDecoder::forward(ForwardContext& ctx, const ForwardBatch& batch, float* logits) const {
  ComputeContext& compute = ctx.compute;
  const ScratchScope scope(compute.scratch);
  const RopeAngles angles = rope_angles(compute, rope_, batch);
  const auto attention = [&](int32_t layer, const float* x, float* out) {
    gqa_attention(ctx, batch, layer, config_, parts_, attention_[static_cast<size_t>(layer)], angles, x, out);
  };
  const auto ffn = [&](int32_t layer, const float* x, float* out) {
    ffn_.forward(ctx, layer, x, batch.num_tokens(), out);
  };
  pre_norm_decoder(ctx, frame_, batch, attention, ffn, logits);
}

void GqaDecoder::learn_value_norms(ComputeContext& ctx, const KvCache& kv, SequenceId sequence,
                                   ValueNorms& norms) const {
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    learn_gqa_value_norms(ctx, kv, sequence, layer, config_, attention_[static_cast<size_t>(layer)], norms);
  }
}

}  // namespace witan
