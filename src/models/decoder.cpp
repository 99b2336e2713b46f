#include "models/decoder.h"

#include "kernels/norm/norm.h"
#include "nn/linear.h"
#include "nn/rows.h"

namespace witan {

void embed_tokens(ComputeContext& ctx, const EmbeddingTable& table, std::span<const TokenId> tokens, float* out) {
  const QuantType& type = quant_type(table.type);
  const int64_t row_bytes = type.row_bytes(table.cols);
  for_rows(ctx, std::ssize(tokens),
           [&](int64_t row) { type.decode(table.data + tokens[row] * row_bytes, out + row * table.cols, table.cols); });
}

void output_logits(ComputeContext& ctx, const OutputWeights& weights, std::span<const int32_t> logit_rows,
                   const float* x, float* logits) {
  const auto num_rows = std::ssize(logit_rows);
  const int64_t dim = weights.output.cols;
  const ScratchScope scope(ctx.scratch);
  auto* normed = ctx.scratch.allocate<float>(num_rows * dim);
  for_rows(ctx, num_rows, [&](int64_t row) {
    rms_norm(ctx.isa, x + logit_rows[row] * dim, weights.norm, weights.norm_epsilon, dim, normed + row * dim);
  });
  linear(ctx, weights.output, normed, num_rows, logits);
}

DecoderFrame load_frame(WeightLoader& weights, const ModelInfo& info, float norm_epsilon, const FrameNames& names) {
  constexpr TensorName kEmbedding{"token_embd.weight", "model.embed_tokens.weight"};
  constexpr TensorName kOutput{"output.weight", "lm_head.weight"};
  constexpr TensorName kAttentionNorm{"blk.{}.attn_norm.weight", "model.layers.{}.input_layernorm.weight"};
  DecoderFrame frame;
  frame.embedding = weights.embedding(kEmbedding, info.vocab_size, info.model_dim);
  for (int32_t i = 0; i < info.num_layers; ++i) {
    frame.layer_norms.push_back({.attention = weights.vector(kAttentionNorm, i, info.model_dim),
                                 .ffn = weights.vector(names.ffn_norm, i, info.model_dim)});
  }
  frame.output_norm = weights.vector({"output_norm.weight", "model.norm.weight"}, 0, info.model_dim);
  // GGUF files of tied embeddings just leave the output matrix out.
  const bool tied = weights.is_gguf() || weights.config().get_bool("tie_word_embeddings", false);
  const bool takes_embedding = tied && !weights.has(kOutput);
  frame.output = weights.matrix(takes_embedding ? kEmbedding : kOutput, 0, info.vocab_size, info.model_dim);
  frame.norm_epsilon = norm_epsilon;
  for (int32_t i = 0; i < info.num_unused_layers; ++i) weights.ignore_layer(info.num_layers + i);
  return frame;
}

void pre_norm_decoder(ForwardContext& ctx, const DecoderFrame& frame, const ForwardBatch& batch, DecoderPart attention,
                      DecoderPart ffn, float* logits) {
  ComputeContext& compute = ctx.compute;
  const int64_t n = batch.num_tokens();
  const int64_t dim = frame.output.cols;
  const ScratchScope scope(compute.scratch);
  auto* x = compute.scratch.allocate<float>(n * dim);
  auto* normed = compute.scratch.allocate<float>(n * dim);
  auto* delta = compute.scratch.allocate<float>(n * dim);
  embed_tokens(compute, frame.embedding, batch.tokens, x);
  for (int32_t layer = 0; layer < static_cast<int32_t>(frame.layer_norms.size()); ++layer) {
    const DecoderFrame::LayerNorms& norms = frame.layer_norms[static_cast<size_t>(layer)];
    rms_norm_rows(compute, x, norms.attention, frame.norm_epsilon, n, dim, normed);
    attention(layer, normed, delta);
    if (batch.ends_at(layer)) return;
    add_rows(compute, delta, n, dim, x);
    rms_norm_rows(compute, x, norms.ffn, frame.norm_epsilon, n, dim, normed);
    ffn(layer, normed, delta);
    add_rows(compute, delta, n, dim, x);
  }
  output_logits(compute, {.norm = frame.output_norm, .norm_epsilon = frame.norm_epsilon, .output = frame.output},
                batch.logit_rows, x, logits);
}

RopeAngles rope_angles(ComputeContext& ctx, const RopeTable& table, const ForwardBatch& batch) {
  const int64_t half = table.dim() / 2;
  auto* cos = ctx.scratch.allocate<float>(batch.num_tokens() * half);
  auto* sin = ctx.scratch.allocate<float>(batch.num_tokens() * half);
  for_rows(ctx, batch.num_tokens(),
           [&](int64_t row) { table.angles(batch.positions[row], cos + row * half, sin + row * half); });
  return {.table = table, .layout = table.layout(), .dim = table.dim(), .cos = cos, .sin = sin};
}

void rope_heads(ComputeContext& ctx, const RopeAngles& angles, int64_t num_tokens, int64_t num_heads, int64_t head_dim,
                int64_t offset, float* x) {
  const int64_t half = angles.dim / 2;
  for_rows(ctx, num_tokens, [&](int64_t row) {
    for (int64_t head = 0; head < num_heads; ++head) {
      rope(ctx.isa, angles.layout, angles.cos + row * half, angles.sin + row * half, angles.dim,
           x + (row * num_heads + head) * head_dim + offset);
    }
  });
}

void rms_norm_heads(ComputeContext& ctx, const float* weight, float epsilon, int64_t num_tokens, int64_t num_heads,
                    int64_t head_dim, float* x) {
  rms_norm_rows(ctx, x, weight, epsilon, num_tokens * num_heads, head_dim, x);
}

}  // namespace witan
