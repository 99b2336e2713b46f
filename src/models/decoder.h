#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/function_ref.h"
#include "models/model.h"
#include "models/weight_loader.h"
#include "nn/rope_table.h"

namespace witan {

// What decoder-only models share: the pre-norm residual stream, its two ends, rotary angles.

// The weights around the attention and feed-forward parts of all layers.
struct DecoderFrame {
  EmbeddingTable embedding;
  struct LayerNorms {
    const float* attention;
    const float* ffn;
  };
  std::vector<LayerNorms> layer_norms;  // [num_layers]
  const float* output_norm = nullptr;
  PackedMatrix output;  // [vocab_size, model_dim]; the embedding itself where the file has no other (tied)
  float norm_epsilon = 0.0f;
};

// Tensor names that architectures spell differently; these are the usual ones.
struct FrameNames {
  TensorName ffn_norm{"blk.{}.ffn_norm.weight", "model.layers.{}.post_attention_layernorm.weight"};
};

// Also tells the loader to ignore the tensors that the model does not use (info.num_unused_layers).
DecoderFrame load_frame(WeightLoader& weights, const ModelInfo& info, float norm_epsilon, const FrameNames& names = {});

// out [tokens.size(), table.cols] = the rows of the tokens.
void embed_tokens(ComputeContext& ctx, const EmbeddingTable& table, std::span<const TokenId> tokens, float* out);

// logits [logit_rows.size(), output.rows] = output norm(x) of those rows of x [num_tokens, output.cols].
struct OutputWeights {
  const float* norm;  // [model_dim]
  float norm_epsilon;
  const PackedMatrix& output;  // [vocab_size, model_dim]
};
void output_logits(ComputeContext& ctx, const OutputWeights& weights, std::span<const int32_t> logit_rows,
                   const float* x, float* logits);

// One part of a layer: out [num_tokens, model_dim] from x [num_tokens, model_dim], both f32.
using DecoderPart = FunctionRef<void(int32_t layer, const float* x, float* out)>;

// The pre-norm decoder: x = embedding(tokens); for every layer x += attention(norm(x)), x += ffn(norm(x));
// logits [logit_rows, vocab_size] = output norm(x), of the rows whose logits are wanted. Where the batch ends at a
// layer, that layer's attention is called, to write its entries, and nothing behind it.
void pre_norm_decoder(ForwardContext& ctx, const DecoderFrame& frame, const ForwardBatch& batch, DecoderPart attention,
                      DecoderPart ffn, float* logits);

// cos and sin of every row of a batch, computed once per step for all layers and heads.
struct RopeAngles {
  const RopeTable& table;
  RopeLayout layout;
  int64_t dim;       // rotated components
  const float* cos;  // [num_tokens, dim / 2]
  const float* sin;  // [num_tokens, dim / 2]
};
RopeAngles rope_angles(ComputeContext& ctx, const RopeTable& table, const ForwardBatch& batch);

// Rotates components [offset, offset + angles.dim) of every head of x [num_tokens, num_heads, head_dim].
void rope_heads(ComputeContext& ctx, const RopeAngles& angles, int64_t num_tokens, int64_t num_heads, int64_t head_dim,
                int64_t offset, float* x);

// What Model::key_rope says of keys whose components from `offset` on are rotated by `rope`.
inline std::optional<KeyRope> shiftable(const RopeTable& rope, int32_t offset) {
  return rope.can_shift() ? std::optional(KeyRope{.rope = &rope, .offset = offset}) : std::nullopt;
}

// RMSNorm over every head of x [num_tokens, num_heads, head_dim], in place, with one weight [head_dim].
void rms_norm_heads(ComputeContext& ctx, const float* weight, float epsilon, int64_t num_tokens, int64_t num_heads,
                    int64_t head_dim, float* x);

}  // namespace witan
