#include "models/gqa.h"

#include <cmath>

#include "kernels/elementwise/elementwise.h"
#include "models/kv_observation.h"
#include "models/value_projection.h"
#include "nn/linear.h"
#include "nn/rows.h"

namespace witan {
namespace {

// Queries or keys [num_tokens, num_heads, head_dim] between their projection and the rotary positions.
void norm_and_clip(ComputeContext& ctx, const DecoderConfig& config, const GqaParts& parts, const float* norm,
                   int64_t num_tokens, int64_t num_heads, float* x) {
  const int64_t dim = num_heads * config.head_dim;
  if (parts.qk_norm == QkNorm::kPerHead) {
    rms_norm_heads(ctx, norm, config.norm_epsilon, num_tokens, num_heads, config.head_dim, x);
  } else if (parts.qk_norm == QkNorm::kWhole) {
    rms_norm_rows(ctx, x, norm, config.norm_epsilon, num_tokens, dim, x);
  }
  if (parts.clip_qkv > 0.0f) {
    for_rows(ctx, num_tokens, [&](int64_t row) { clamp(ctx.isa, parts.clip_qkv, dim, x + row * dim); });
  }
}

}  // namespace

GqaWeights load_gqa(WeightLoader& weights, const DecoderConfig& config, const GqaParts& parts, int32_t layer) {
  const int64_t q_dim = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_dim = int64_t{config.num_kv_heads} * config.head_dim;
  const int64_t dim = config.model_dim;
  GqaWeights gqa;
  gqa.q = weights.matrix({"blk.{}.attn_q.weight", "model.layers.{}.self_attn.q_proj.weight"}, layer, q_dim, dim);
  gqa.k = weights.matrix({"blk.{}.attn_k.weight", "model.layers.{}.self_attn.k_proj.weight"}, layer, kv_dim, dim);
  gqa.v = weights.matrix({"blk.{}.attn_v.weight", "model.layers.{}.self_attn.v_proj.weight"}, layer, kv_dim, dim);
  gqa.o = weights.matrix({"blk.{}.attn_output.weight", "model.layers.{}.self_attn.o_proj.weight"}, layer, dim, q_dim);
  if (parts.qkv_bias) {
    gqa.q_bias = weights.vector({"blk.{}.attn_q.bias", "model.layers.{}.self_attn.q_proj.bias"}, layer, q_dim);
    gqa.k_bias = weights.vector({"blk.{}.attn_k.bias", "model.layers.{}.self_attn.k_proj.bias"}, layer, kv_dim);
    gqa.v_bias = weights.vector({"blk.{}.attn_v.bias", "model.layers.{}.self_attn.v_proj.bias"}, layer, kv_dim);
  }
  if (parts.output_bias) {
    gqa.o_bias = weights.vector({"blk.{}.attn_output.bias", "model.layers.{}.self_attn.o_proj.bias"}, layer, dim);
  }
  if (parts.qk_norm != QkNorm::kNone) {
    const bool whole = parts.qk_norm == QkNorm::kWhole;
    gqa.q_norm = weights.vector({"blk.{}.attn_q_norm.weight", "model.layers.{}.self_attn.q_norm.weight"}, layer,
                                whole ? q_dim : config.head_dim);
    gqa.k_norm = weights.vector({"blk.{}.attn_k_norm.weight", "model.layers.{}.self_attn.k_norm.weight"}, layer,
                                whole ? kv_dim : config.head_dim);
  }
  if (parts.sinks) {
    gqa.sinks =
        weights.vector({"blk.{}.attn_sinks.weight", "model.layers.{}.self_attn.sinks"}, layer, config.num_heads);
  }
  return gqa;
}

void gqa_attention(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const DecoderConfig& config,
                   const GqaParts& parts, const GqaWeights& weights, const RopeAngles& angles, const float* x,
                   float* out) {
  ComputeContext& compute = ctx.compute;
  const int64_t n = batch.num_tokens();
  const ScratchScope scope(compute.scratch);
  auto* q = compute.scratch.allocate<float>(n * weights.q.rows);
  auto* k = compute.scratch.allocate<float>(n * weights.k.rows);
  auto* v = compute.scratch.allocate<float>(n * weights.v.rows);
  const LinearOutput projections[] = {{.matrix = &weights.q, .y = q, .stride = weights.q.rows, .bias = weights.q_bias},
                                      {.matrix = &weights.k, .y = k, .stride = weights.k.rows, .bias = weights.k_bias},
                                      {.matrix = &weights.v, .y = v, .stride = weights.v.rows, .bias = weights.v_bias}};
  linear(compute, x, n, config.model_dim, config.model_dim, projections);
  norm_and_clip(compute, config, parts, weights.q_norm, n, config.num_heads, q);
  norm_and_clip(compute, config, parts, weights.k_norm, n, config.num_kv_heads, k);
  if (parts.clip_qkv > 0.0f) {
    for_rows(compute, n,
             [&](int64_t row) { clamp(compute.isa, parts.clip_qkv, weights.v.rows, v + row * weights.v.rows); });
  }
  const AttentionSpec spec{.num_heads = config.num_heads,
                           .num_kv_heads = config.num_kv_heads,
                           .key_dim = config.head_dim,
                           .value_dim = config.head_dim,
                           .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
                           .window = config.windows[static_cast<size_t>(layer)],
                           .sinks = weights.sinks};
  observe_unrotated_queries(ctx, batch, layer, spec, angles, 0, q);
  rope_heads(compute, angles, n, config.num_heads, config.head_dim, 0, q);
  rope_heads(compute, angles, n, config.num_kv_heads, config.head_dim, 0, k);
  write_kv(ctx, batch, layer, spec, k, v);
  if (batch.ends_at(layer)) return;
  observe_queries(ctx, batch, layer, spec, q);
  auto* attended = compute.scratch.allocate<float>(n * weights.q.rows);
  paged_attention(ctx, batch, layer, spec, q, attended);
  linear(compute, weights.o, attended, n, out, weights.o_bias);
}

void learn_gqa_value_norms(ComputeContext& ctx, const KvCache& kv, SequenceId sequence, int32_t layer,
                           const DecoderConfig& config, const GqaWeights& weights, ValueNorms& norms) {
  if (config.windows[static_cast<size_t>(layer)] > 0) return;
  const auto values = [](const KvView& view, int32_t, int32_t first, int32_t count, float* out, std::byte* scratch) {
    for (int32_t i = 0; i < count; ++i) {
      const int32_t entry = first + i;
      view.load(entry, reinterpret_cast<float*>(scratch), out + int64_t{i} * view.format.value_dim);
    }
  };
  learn_value_norms(ctx, kv, sequence, layer,
                    {.output = weights.o,
                     .num_heads = config.num_heads,
                     .num_kv_heads = config.num_kv_heads,
                     .value_dim = config.head_dim,
                     .values = values,
                     .scratch_bytes = config.head_dim * static_cast<int64_t>(sizeof(float))},
                    norms);
}

}  // namespace witan
