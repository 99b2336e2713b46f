#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "models/model.h"
#include "models/weight_loader.h"

namespace witan {

// Attention of T5 (arXiv 1910.10683, 2.1): scores are not scaled; self-attention adds a learned bias that depends on
// the distance of key and query, and on the head.
struct T5AttentionConfig {
  int32_t num_heads = 0;
  int32_t head_dim = 0;
  int32_t model_dim = 0;
  int32_t num_buckets = 0;   // of distances
  int32_t max_distance = 0;  // from here on all are in the last bucket
};

struct T5AttentionWeights {
  PackedMatrix q;  // [num_heads * head_dim, model_dim]
  PackedMatrix k;
  PackedMatrix v;
  PackedMatrix o;  // [model_dim, num_heads * head_dim]
};

// Whether keys may come after queries: in encoders they do.
enum class T5Direction : uint8_t { kBoth, kBack };

// The bucket of a key at position key, seen from a query at position query.
int32_t t5_bucket(const T5AttentionConfig& config, T5Direction direction, int64_t key, int64_t query);

// The biases of a stack for positions below a length, made once per step for all layers.
class T5Biases {
 public:
  // table [num_buckets, num_heads].
  T5Biases(ComputeContext& ctx, const T5AttentionConfig& config, T5Direction direction, const float* table,
           int32_t length);

  // Indexed by key position: the biases of one head for a query at `position`.
  const float* of(int64_t head, int64_t position) const { return values_ + head * stride_ + length_ - 1 - position; }

 private:
  int64_t length_;
  int64_t stride_;
  const float* values_;  // [num_heads][stride_]: of key - query = 1 - length, ...
};

// Of all tokens of an input: out [n, model_dim] from x [n, model_dim].
void t5_encoder_attention(ComputeContext& ctx, const T5AttentionConfig& config, const T5AttentionWeights& weights,
                          const T5Biases& biases, const float* x, int64_t n, float* out);

// Of a batch's tokens over their sequences' entries of one layer, its own written to the cache.
void t5_self_attention(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const T5AttentionConfig& config,
                       const T5AttentionWeights& weights, const T5Biases& biases, const float* x, float* out);

// Of a batch's tokens over their sequences' inputs.
void t5_cross_attention(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const T5AttentionConfig& config,
                        const T5AttentionWeights& weights, const float* x, float* out);

// Writes the entries of one layer that cross-attention reads: of encoded [n, model_dim].
void write_t5_input(ForwardContext& ctx, SequenceId kv_sequence, int32_t layer, const T5AttentionConfig& config,
                    const T5AttentionWeights& weights, const float* encoded, int64_t n);

}  // namespace witan
