// gpt-oss (arXiv 2508.10925): attention over a sliding window in every other layer, a sink per head, biases everywhere;
// the top router logits are chosen and softmax goes over those alone; experts with a clamped SwiGLU.

#include "models/gqa_decoder.h"
#include "models/models.h"

namespace witan {

std::unique_ptr<Model> make_gpt_oss(const Checkpoint& checkpoint) {
  const ConfigReader read(checkpoint);
  // GGUF files cannot say that YaRN's range is not rounded to whole dimensions, nor which layers have the window.
  DecoderConfig config = read_decoder_config(read, {.rope = {.yarn_truncate = false}, .window_period = 2});
  constexpr ConfigKey kWindow{"attention.sliding_window", "sliding_window"};
  read.count(kWindow);  // no file is without
  FfnConfig ffn{.moe_layers = layers_from(0, config.num_layers),
                .expert_dim = read.count({"expert_feed_forward_length", "intermediate_size"}),
                .router = read_router(read, {"expert_count", "num_local_experts"},
                                      {.scoring = read_scoring(read, RouterScoring::kSoftmaxOfChosen)}),
                .router_bias = true,
                .expert_bias = true,
                .expert_activation = FfnActivation::kClampedSwiglu,
                .expert_limit = static_cast<float>(read.positive({"", "swiglu_limit"}, 7.0))};
  ffn.names.router.huggingface = "model.layers.{}.mlp.router.weight";
  ffn.names.fused_experts = {.gate_up = "model.layers.{}.mlp.experts.gate_up_proj",
                             .down = "model.layers.{}.mlp.experts.down_proj"};
  const FrameNames names{
      .ffn_norm = {"blk.{}.post_attention_norm.weight", "model.layers.{}.post_attention_layernorm.weight"}};
  return std::make_unique<GqaDecoder>("gpt_oss", config, GqaParts{.qkv_bias = true, .output_bias = true, .sinks = true},
                                      std::move(ffn), names);
}

}  // namespace witan
