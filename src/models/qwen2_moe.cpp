// Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671, 2.2.2): biases on queries, keys and values; softmax routing; one shared
// expert whose output is weighed by a sigmoid gate; in some layers a dense network instead.

#include "models/gqa_decoder.h"
#include "models/models.h"
#include "models/qwen_moe.h"

namespace witan {

std::unique_ptr<Model> make_qwen2_moe(const Checkpoint& checkpoint) {
  const ConfigReader read(checkpoint);
  const DecoderConfig config = read_decoder_config(read, {.window_by_default = false});
  FfnConfig ffn{.moe_layers = read_qwen_moe_layers(read, config.num_layers),
                .expert_dim = read.count({"expert_feed_forward_length", "moe_intermediate_size"}),
                // No released model renormalises, and converters of GGUF files do not say.
                .router = read_router(read, {"expert_count", "num_experts"},
                                      {.normalize = read.flag({"expert_weights_norm", "norm_topk_prob"}, false)}),
                .shared_dim = read.count({"expert_shared_feed_forward_length", "shared_expert_intermediate_size"}),
                .shared_gate = true};
  ffn.dense_dim = read_qwen_dense_dim(read, ffn.moe_layers, config.num_layers);
  ffn.names.shared_gate_proj.huggingface = "model.layers.{}.mlp.shared_expert.gate_proj.weight";
  ffn.names.shared_up_proj.huggingface = "model.layers.{}.mlp.shared_expert.up_proj.weight";
  ffn.names.shared_down_proj.huggingface = "model.layers.{}.mlp.shared_expert.down_proj.weight";
  return std::make_unique<GqaDecoder>("qwen2_moe", config, GqaParts{.qkv_bias = true}, std::move(ffn));
}

}  // namespace witan
