// Llama (arXiv 2307.09288): pre-norm decoder with grouped-query attention, rotary positions and SwiGLU.

#include "models/gqa_decoder.h"
#include "models/models.h"

namespace witan {

std::unique_ptr<Model> make_llama(const Checkpoint& checkpoint) {
  const ConfigReader read(checkpoint);
  // Converters to GGUF permute the rows of q and k so that rotated components are neighbours.
  const DecoderConfig config = read_decoder_config(read, {.rope = {.gguf_layout = RopeLayout::kPairs}});
  return std::make_unique<GqaDecoder>("llama", config, GqaParts{},
                                      FfnConfig{.dense_dim = read.count({"feed_forward_length", "intermediate_size"})});
}

}  // namespace witan
