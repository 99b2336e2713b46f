// GLM-4.5 (arXiv 2508.06471): rotary positions on a part of each head, biases on queries, keys and values, in some
// models an RMSNorm of query and key heads; sigmoid routing as in DeepSeek-V3, the first layers dense, a shared expert.

#include "models/gqa_decoder.h"
#include "models/models.h"

namespace witan {

std::unique_ptr<Model> make_glm4_moe(const Checkpoint& checkpoint) {
  const ConfigReader read(checkpoint);
  const DecoderConfig config = read_decoder_config(read, {});
  // Files in GGUF do not say whether heads are normalised: they have the weights or not.
  const bool qk_norm =
      read.is_gguf() ? checkpoint.find("blk.0.attn_q_norm.weight") != nullptr : read.flag({"", "use_qk_norm"}, false);
  const int32_t num_dense =
      read.count_or_zero({"leading_dense_block_count", "first_k_dense_replace"}, 0, config.num_layers);
  RouterSpec router =
      read_router(read, {"expert_count", "n_routed_experts"},
                  {.scoring = read_scoring(read, RouterScoring::kSigmoid),
                   .normalize = read.flag({"expert_weights_norm", "norm_topk_prob"}, true),
                   .scale = static_cast<float>(read.positive({"expert_weights_scale", "routed_scaling_factor"}, 1.0)),
                   .group_score = GroupScore::kTopTwoSum});
  read_expert_groups(read, router);
  const int32_t expert_dim = read.count({"expert_feed_forward_length", "moe_intermediate_size"}, std::nullopt, 1 << 20);
  const FfnConfig ffn{
      .dense_dim = num_dense > 0 ? read.count({"feed_forward_length", "intermediate_size"}) : 0,
      .moe_layers = layers_from(num_dense, config.num_layers),
      .expert_dim = expert_dim,
      .router = router,
      .selection_bias = true,
      .shared_dim = expert_dim * read.count_or_zero({"expert_shared_count", "n_shared_experts"}, 0, kMaxExperts)};
  const FrameNames names{
      .ffn_norm = {"blk.{}.post_attention_norm.weight", "model.layers.{}.post_attention_layernorm.weight"}};
  return std::make_unique<GqaDecoder>("glm4_moe", config,
                                      GqaParts{.qkv_bias = read.flag({"", "attention_bias"}, read.is_gguf()),
                                               .qk_norm = qk_norm ? QkNorm::kPerHead : QkNorm::kNone},
                                      ffn, names);
}

}  // namespace witan
