// Mixtral of experts (arXiv 2401.04088): Llama with every feed-forward network replaced by experts, of which the router
// picks a few per token: softmax over all experts, the chosen weights renormalised.

#include "models/gqa_decoder.h"
#include "models/models.h"

namespace witan {

std::unique_ptr<Model> make_mixtral(const Checkpoint& checkpoint) {
  const ConfigReader read(checkpoint);
  // Converters to GGUF permute the rows of q and k so that rotated components are neighbours.
  const DecoderConfig config = read_decoder_config(read, {.rope = {.gguf_layout = RopeLayout::kPairs}});
  FfnConfig ffn{.moe_layers = layers_from(0, config.num_layers),
                .expert_dim = read.count({"feed_forward_length", "intermediate_size"}),
                .router = read_router(read, {"expert_count", "num_local_experts"}, {.normalize = true})};
  ffn.names.router.huggingface = "model.layers.{}.block_sparse_moe.gate.weight";
  ffn.names.experts.gate.huggingface = "model.layers.{}.block_sparse_moe.experts.{}.w1.weight";
  ffn.names.experts.up.huggingface = "model.layers.{}.block_sparse_moe.experts.{}.w3.weight";
  ffn.names.experts.down.huggingface = "model.layers.{}.block_sparse_moe.experts.{}.w2.weight";
  return std::make_unique<GqaDecoder>("mixtral", config, GqaParts{}, std::move(ffn));
}

}  // namespace witan
