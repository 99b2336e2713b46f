#pragma once

#include "models/config_reader.h"
#include "models/decoder.h"
#include "models/paged_attention.h"

namespace witan {

// Settings that the Llama line of decoders shares, read from either format.
struct DecoderConfig {
  int32_t vocab_size = 0;
  int32_t context_length = 0;
  int32_t model_dim = 0;
  int32_t num_layers = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t window = 0;  // sliding window of all layers; 0: none
  float norm_epsilon = 0.0f;
  RopeConfig rope;

  // What the attention of one layer needs.
  AttentionSpec attention() const;
  // The part of ModelInfo that these settings fix.
  ModelInfo info(std::string_view architecture) const;
};

// `gguf_rope_layout`: how the GGUF files of this architecture order rotated components; Hugging Face directories of
// this line are always kHalves.
DecoderConfig read_decoder_config(const Checkpoint& checkpoint, RopeLayout gguf_rope_layout);

// Grouped-query attention (arXiv 2305.13245) of one layer.
struct GqaWeights {
  PackedMatrix q;                 // [num_heads * head_dim, model_dim]
  PackedMatrix k;                 // [num_kv_heads * head_dim, model_dim]
  PackedMatrix v;                 // [num_kv_heads * head_dim, model_dim]
  PackedMatrix o;                 // [model_dim, num_heads * head_dim]
  const float* q_norm = nullptr;  // [head_dim] RMSNorm of every query head before RoPE; nullptr: none
  const float* k_norm = nullptr;  // [head_dim]
};

GqaWeights load_gqa(WeightLoader& weights, const DecoderConfig& config, int32_t layer);

// out [num_tokens, model_dim] = attention of x [num_tokens, model_dim], its keys and values written to the cache.
void gqa_attention(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const DecoderConfig& config,
                   const GqaWeights& weights, const RopeAngles& angles, const float* x, float* out);

}  // namespace witan
