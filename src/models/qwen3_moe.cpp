// Qwen3-MoE (arXiv 2505.09388): query and key heads are normalised before the rotary positions; softmax routing over
// all experts, the chosen weights renormalised; no shared expert.

#include "models/gqa_decoder.h"
#include "models/models.h"
#include "models/qwen_moe.h"

namespace witan {

std::unique_ptr<Model> make_qwen3_moe(const Checkpoint& checkpoint) {
  const ConfigReader read(checkpoint);
  const DecoderConfig config = read_decoder_config(read, {.window_by_default = false});
  // GGUF files do not state the renormalisation: all released models have it.
  const bool normalize = read.flag({"expert_weights_norm", "norm_topk_prob"}, read.is_gguf());
  FfnConfig ffn{.moe_layers = read_qwen_moe_layers(read, config.num_layers),
                .expert_dim = read.count({"expert_feed_forward_length", "moe_intermediate_size"}),
                .router = read_router(read, {"expert_count", "num_experts"}, {.normalize = normalize})};
  ffn.dense_dim = read_qwen_dense_dim(read, ffn.moe_layers, config.num_layers);
  return std::make_unique<GqaDecoder>("qwen3_moe", config, GqaParts{.qk_norm = QkNorm::kPerHead}, std::move(ffn));
}

}  // namespace witan
