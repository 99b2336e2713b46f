#pragma once

#include <cstdint>

#include "models/model.h"

namespace witan {

struct AttentionSpec {
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t key_dim = 0;
  int32_t value_dim = 0;
  float scale = 1.0f;
  int32_t window = 0;            // > 0: a token sees only this many last positions, its own included
  const float* sinks = nullptr;  // [num_heads] see finish_attention; nullptr: none
};

// Writes the batch's new entries of one layer. keys [num_tokens, num_kv_heads, key_dim], RoPE applied; values
// [num_tokens, num_kv_heads, value_dim], or nullptr where the value is part of the key.
void write_kv(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const AttentionSpec& spec,
              const float* keys, const float* values);

// Rows [first_row, first_row + num_tokens) of a batch, all of one slice.
struct SliceRows {
  const SequenceSlice* slice;
  int32_t first_row;
  int32_t num_tokens;
};

// out [batch tokens, num_heads, value_dim] = causal attention of queries [batch tokens, num_heads, key_dim] over each
// sequence's entries of this layer, those just written included, for the rows of `parts` only.
// Query head h reads kv head h / (num_heads / num_kv_heads).
void paged_attention(ForwardContext& ctx, const ForwardBatch& batch, std::span<const SliceRows> parts, int32_t layer,
                     const AttentionSpec& spec, const float* queries, float* out);

// The same for the whole batch.
void paged_attention(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const AttentionSpec& spec,
                     const float* queries, float* out);

}  // namespace witan
