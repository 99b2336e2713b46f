// Qwen3 (arXiv 2505.09388), dense: Llama with an RMSNorm of every query and key head before the rotary positions.

#include "models/gqa_decoder.h"
#include "models/models.h"

namespace witan {

std::unique_ptr<Model> make_qwen3(const Checkpoint& checkpoint) {
  const ConfigReader read(checkpoint);
  const DecoderConfig config = read_decoder_config(read, {.window_by_default = false});
  return std::make_unique<GqaDecoder>("qwen3", config, GqaParts{.qk_norm = QkNorm::kPerHead},
                                      FfnConfig{.dense_dim = read.count({"feed_forward_length", "intermediate_size"})});
}

}  // namespace witan
