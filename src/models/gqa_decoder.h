#pragma once

#include <string_view>

#include "models/feed_forward.h"
#include "models/gqa.h"

namespace witan {

// The decoders of the Llama line: pre-norm, grouped-query attention with rotary positions, a dense or
// mixture-of-experts feed-forward part in each layer. What tells one architecture from another is data that its file
// reads.
class GqaDecoder final : public Model {
 public:
  GqaDecoder(std::string_view architecture, const DecoderConfig& config, const GqaParts& parts, FfnConfig ffn,
             const FrameNames& names = {});

  const ModelInfo& info() const override { return info_; }
  void load(WeightLoader& weights) override;
  void forward(ForwardContext& ctx, const ForwardBatch& batch, float* logits) const override;
  std::optional<KeyRope> key_rope() const override { return shiftable(rope_, 0); }
  void learn_value_norms(ComputeContext& ctx, const KvCache& kv, SequenceId sequence, ValueNorms& norms) const override;

 private:
  DecoderConfig config_;
  GqaParts parts_;
  FrameNames names_;
  FeedForward ffn_;
  ModelInfo info_;
  RopeTable rope_;

  DecoderFrame frame_;
  std::vector<GqaWeights> attention_;  // [num_layers]
};

}  // namespace witan
