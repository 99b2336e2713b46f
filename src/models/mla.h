#pragma once

#include <cstdint>
#include <vector>

#include "models/decoder.h"
#include "models/paged_attention.h"

namespace witan {

// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, 2.1). A token's cache entry is one latent c [latent_dim],
// normalised, and one rotated key part k_pe [rope_dim], shared by all heads; head h has k = [Wk_h c | k_pe], v = Wv_h
// c.
//
// Two forms compute the same attention and round differently. Expanded: keys and values of every head are made from the
// latents, split by split; cheap per query. Absorbed: queries are moved into the latent space by Wk_h^T and outputs out
// of it by Wv_h; nothing is made per entry. Which one a token uses follows from its role alone, never from how a
// prompt was cut into chunks: prompt tokens expanded, generated tokens absorbed. Expanded keys and values are rounded
// to bf16 where attention over the cached latents is in bf16 (attention_arithmetic), and are float32 otherwise.
struct MlaConfig {
  int32_t num_heads = 0;
  int32_t latent_dim = 0;  // kv_lora_rank
  int32_t nope_dim = 0;    // of a head's key, not rotated
  int32_t rope_dim = 0;    // of a head's key, rotated
  int32_t value_dim = 0;   // of a head's value
  int32_t model_dim = 0;
  int32_t q_latent_dim = 0;  // q_lora_rank; 0: queries are projected in one step
  float scale = 1.0f;        // of the scores
  float norm_epsilon = 0.0f;

  int64_t key_dim() const { return int64_t{nope_dim} + rope_dim; }
  int64_t entry_dim() const { return int64_t{latent_dim} + rope_dim; }
};

struct MlaWeights {
  PackedMatrix q;    // [num_heads * key_dim, model_dim or q_latent_dim]
  PackedMatrix q_a;  // [q_latent_dim, model_dim], when q_latent_dim > 0
  const float* q_a_norm = nullptr;
  PackedMatrix kv_a;                   // [latent_dim + rope_dim, model_dim]
  const float* kv_a_norm = nullptr;    // [latent_dim]
  std::vector<PackedMatrix> k_expand;  // per head Wk_h [nope_dim, latent_dim]
  std::vector<PackedMatrix> k_absorb;  // per head Wk_h^T [latent_dim, nope_dim]
  std::vector<PackedMatrix> v;         // per head Wv_h [value_dim, latent_dim]
  PackedMatrix o;                      // [model_dim, num_heads * value_dim]
};

MlaWeights load_mla(WeightLoader& weights, const MlaConfig& config, int32_t layer);

// Scratch that each thread takes per prompt token of a step, and besides about as much as a few hundred tokens do.
int64_t mla_thread_bytes_per_row(const MlaConfig& config);

// out [num_tokens, model_dim] = attention of x [num_tokens, model_dim], its entries written to the cache.
void mla_attention(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const MlaConfig& config,
                   const MlaWeights& weights, const RopeAngles& angles, const float* x, float* out);

// What ValueNorms has of a layer: head h's value is Wv_h c.
void learn_mla_value_norms(ComputeContext& ctx, const KvCache& kv, SequenceId sequence, int32_t layer,
                           const MlaConfig& config, const MlaWeights& weights, ValueNorms& norms);

}  // namespace witan
