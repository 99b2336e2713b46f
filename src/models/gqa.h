#pragma once

#include "models/decoder.h"
#include "models/decoder_config.h"
#include "models/paged_attention.h"

namespace witan {

// RMSNorm of queries and keys before the rotary positions.
enum class QkNorm : uint8_t {
  kNone,
  kPerHead,  // every head by itself, one weight [head_dim] for all (Qwen3)
  kWhole,    // the whole projection, weights [num_heads * head_dim] and [num_kv_heads * head_dim] (OLMoE)
};

// The parts of grouped-query attention that an architecture has beyond the four projections.
struct GqaParts {
  bool qkv_bias = false;
  bool output_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  float clip_qkv = 0.0f;  // > 0: queries, keys and values are clamped to [-clip_qkv, clip_qkv], after the norms
  bool sinks = false;     // a learned logit per head that takes part in the softmax and has no value
};

// Grouped-query attention (arXiv 2305.13245) of one layer. Biases, norms and sinks f32; nullptr: none.
struct GqaWeights {
  PackedMatrix q;  // [num_heads * head_dim, model_dim]
  PackedMatrix k;  // [num_kv_heads * head_dim, model_dim]
  PackedMatrix v;  // [num_kv_heads * head_dim, model_dim]
  PackedMatrix o;  // [model_dim, num_heads * head_dim]
  const float* q_bias = nullptr;
  const float* k_bias = nullptr;
  const float* v_bias = nullptr;
  const float* o_bias = nullptr;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  const float* sinks = nullptr;  // [num_heads]
};

GqaWeights load_gqa(WeightLoader& weights, const DecoderConfig& config, const GqaParts& parts, int32_t layer);

// out [num_tokens, model_dim] = attention of x [num_tokens, model_dim], its keys and values written to the cache.
void gqa_attention(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const DecoderConfig& config,
                   const GqaParts& parts, const GqaWeights& weights, const RopeAngles& angles, const float* x,
                   float* out);

// What ValueNorms has of a layer; nothing of one with a sliding window.
void learn_gqa_value_norms(ComputeContext& ctx, const KvCache& kv, SequenceId sequence, int32_t layer,
                           const DecoderConfig& config, const GqaWeights& weights, ValueNorms& norms);

}  // namespace witan
