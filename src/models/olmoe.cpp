// OLMoE (arXiv 2409.02060): RMSNorm of queries and keys over the whole projection, optionally clipped queries, keys and
// values; softmax routing without renormalisation.

#include "models/gqa_decoder.h"
#include "models/models.h"

namespace witan {

std::unique_ptr<Model> make_olmoe(const Checkpoint& checkpoint) {
  const ConfigReader read(checkpoint);
  const DecoderConfig config = read_decoder_config(read, {});
  constexpr ConfigKey kClip{"attention.clamp_kqv", "clip_qkv"};
  const float clip = read.has(kClip) ? static_cast<float>(read.positive(kClip)) : 0.0f;
  FfnConfig ffn{.moe_layers = layers_from(0, config.num_layers),
                .expert_dim = read.count({"feed_forward_length", "intermediate_size"}),
                .router = read_router(read, {"expert_count", "num_experts"},
                                      {.normalize = read.flag({"expert_weights_norm", "norm_topk_prob"}, false)})};
  return std::make_unique<GqaDecoder>("olmoe", config, GqaParts{.qk_norm = QkNorm::kWhole, .clip_qkv = clip},
                                      std::move(ffn));
}

}  // namespace witan
