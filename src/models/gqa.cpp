#include "models/gqa.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "nn/linear.h"

namespace witan {
namespace {

constexpr ConfigKey kHeads{"attention.head_count", "num_attention_heads"};
constexpr ConfigKey kRopeScaling{"rope.scaling.type", "rope_scaling"};

}  // namespace

AttentionSpec DecoderConfig::attention() const {
  return {.num_heads = num_heads,
          .num_kv_heads = num_kv_heads,
          .key_dim = head_dim,
          .value_dim = head_dim,
          .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
          .window = window};
}

ModelInfo DecoderConfig::info(std::string_view architecture) const {
  ModelInfo info;
  info.architecture = architecture;
  info.vocab_size = vocab_size;
  info.context_length = context_length;
  info.model_dim = model_dim;
  info.num_layers = num_layers;
  info.num_heads = num_heads;
  info.kv_layers.assign(
      static_cast<size_t>(num_layers),
      {.num_kv_heads = num_kv_heads, .key_dim = head_dim, .value_dim = head_dim, .value_in_key = false});
  // Residual stream, norm, delta; queries and attention out; keys and values; and what products store of their input.
  const int64_t floats =
      int64_t{6} * model_dim + int64_t{num_heads} * head_dim * 3 + int64_t{num_kv_heads} * head_dim * 2 + head_dim;
  info.activation_bytes_per_token = floats * static_cast<int64_t>(sizeof(float));
  return info;
}

DecoderConfig read_decoder_config(const Checkpoint& checkpoint, RopeLayout gguf_rope_layout) {
  const ConfigReader read(checkpoint);
  DecoderConfig config;
  config.vocab_size = read.vocab_size();
  config.context_length = read.count({"context_length", "max_position_embeddings"});
  config.model_dim = read.count({"embedding_length", "hidden_size"}, std::nullopt, 1 << 17);
  config.num_layers = read.count({"block_count", "num_hidden_layers"}, std::nullopt, 4096);
  config.num_heads = read.count(kHeads, std::nullopt, 4096);
  config.num_kv_heads = read.count({"attention.head_count_kv", "num_key_value_heads"}, config.num_heads, 4096);
  read.expect(config.num_heads % config.num_kv_heads == 0,
              fmt::format("{} attention heads cannot share {} kv heads evenly", config.num_heads, config.num_kv_heads));
  config.head_dim =
      read.count({"attention.key_length", "head_dim"}, std::max(1, config.model_dim / config.num_heads), 4096);
  read.expect(read.count({"attention.value_length", "head_dim"}, config.head_dim) == config.head_dim,
              "keys and values have different lengths");
  read.expect(config.head_dim % 2 == 0, fmt::format("head dimension {} is odd", config.head_dim));
  config.norm_epsilon = static_cast<float>(read.positive({"attention.layer_norm_rms_epsilon", "rms_norm_eps"}));
  config.window = read.count_or_zero({"attention.sliding_window", "sliding_window"}, 0);
  if (!read.is_gguf() && !read.flag({"", "use_sliding_window"}, true)) config.window = 0;
  read.require(!read.has(kRopeScaling) || read.text(kRopeScaling, "none") == "none", kRopeScaling,
               "scaled rotary positions are not supported for this architecture");
  config.rope = {.layout = read.is_gguf() ? gguf_rope_layout : RopeLayout::kHalves,
                 .dim = config.head_dim,
                 .theta = read.positive({"rope.freq_base", "rope_theta"}, 10000.0),
                 .yarn = std::nullopt};
  read.expect(read.count({"rope.dimension_count", ""}, config.head_dim) == config.head_dim,
              "rotary dimension and head dimension differ");
  return config;
}

GqaWeights load_gqa(WeightLoader& weights, const DecoderConfig& config, int32_t layer) {
  const int64_t q_dim = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_dim = int64_t{config.num_kv_heads} * config.head_dim;
  const int64_t dim = config.model_dim;
  return {
      .q = weights.matrix({"blk.{}.attn_q.weight", "model.layers.{}.self_attn.q_proj.weight"}, layer, q_dim, dim),
      .k = weights.matrix({"blk.{}.attn_k.weight", "model.layers.{}.self_attn.k_proj.weight"}, layer, kv_dim, dim),
      .v = weights.matrix({"blk.{}.attn_v.weight", "model.layers.{}.self_attn.v_proj.weight"}, layer, kv_dim, dim),
      .o = weights.matrix({"blk.{}.attn_output.weight", "model.layers.{}.self_attn.o_proj.weight"}, layer, dim, q_dim)};
}

void gqa_attention(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const DecoderConfig& config,
                   const GqaWeights& weights, const RopeAngles& angles, const float* x, float* out) {
  ComputeContext& compute = ctx.compute;
  const int64_t n = batch.num_tokens();
  const ScratchScope scope(compute.scratch);
  auto* q = compute.scratch.allocate<float>(n * weights.q.rows);
  auto* k = compute.scratch.allocate<float>(n * weights.k.rows);
  auto* v = compute.scratch.allocate<float>(n * weights.v.rows);
  const LinearOutput projections[] = {{.matrix = &weights.q, .y = q, .stride = weights.q.rows},
                                      {.matrix = &weights.k, .y = k, .stride = weights.k.rows},
                                      {.matrix = &weights.v, .y = v, .stride = weights.v.rows}};
  linear(compute, x, n, config.model_dim, config.model_dim, projections);
  if (weights.q_norm != nullptr) {
    rms_norm_heads(compute, weights.q_norm, config.norm_epsilon, n, config.num_heads, config.head_dim, q);
    rms_norm_heads(compute, weights.k_norm, config.norm_epsilon, n, config.num_kv_heads, config.head_dim, k);
  }
  rope_heads(compute, angles, n, config.num_heads, config.head_dim, 0, q);
  rope_heads(compute, angles, n, config.num_kv_heads, config.head_dim, 0, k);

  const AttentionSpec spec = config.attention();
  write_kv(ctx, batch, layer, spec, k, v);
  auto* attended = compute.scratch.allocate<float>(n * weights.q.rows);
  paged_attention(ctx, batch, layer, spec, q, attended);
  linear(compute, weights.o, attended, n, out);
}

}  // namespace witan
