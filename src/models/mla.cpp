#include "models/mla.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/norm/norm.h"
#include "models/kv_observation.h"
#include "models/value_projection.h"
#include "nn/linear.h"
#include "nn/rows.h"

namespace witan {
namespace {

// y of (row, head) = matrices[head] x of (row, head), for the given batch rows. Strides are in floats.
struct HeadLinear {
  const std::vector<PackedMatrix>& matrices;
  const float* x;
  int64_t x_row_stride;
  int64_t x_head_stride;
  float* y;
  int64_t y_row_stride;
  int64_t y_head_stride;
};

void head_linear(ComputeContext& ctx, const HeadLinear& task, std::span<const int32_t> rows) {
  const ScratchScope scope(ctx.scratch);
  const auto num_rows = std::ssize(rows);
  const auto num_heads = std::ssize(task.matrices);
  const PackedMatrix& first = task.matrices.front();
  const ActivationFormat format = activation_format(first.type, ctx.precision);
  const int64_t bytes = activation_bytes(format, first.cols);
  auto* stored = ctx.scratch.allocate<std::byte>(num_heads * num_rows * bytes);
  auto** inputs = ctx.scratch.allocate<const std::byte*>(num_heads * num_rows);
  auto** outputs = ctx.scratch.allocate<float*>(num_heads * num_rows);
  ctx.threads.parallel_for(num_heads, [&](int64_t head, int) {
    for (int64_t i = 0; i < num_rows; ++i) {
      const int64_t at = head * num_rows + i;
      store_activations(ctx.isa, format, task.x + rows[i] * task.x_row_stride + head * task.x_head_stride, first.cols,
                        stored + at * bytes);
      inputs[at] = stored + at * bytes;
      outputs[at] = task.y + rows[i] * task.y_row_stride + head * task.y_head_stride;
    }
    matmul(ctx.isa, task.matrices[head], format, inputs + head * num_rows, num_rows, 0, first.num_panels(),
           outputs + head * num_rows);
  });
}

// How the cached entries are attended to: one head, whose keys begin with their values.
AttentionSpec latent_spec(const MlaConfig& config) {
  return {.num_heads = config.num_heads,
          .num_kv_heads = 1,
          .key_dim = static_cast<int32_t>(config.entry_dim()),
          .value_dim = config.latent_dim,
          .scale = config.scale};
}

// latent_q [tokens, heads, entry_dim] = q [tokens, heads, key_dim] as it meets cached entries, for some rows.
void absorb_queries(ComputeContext& ctx, const MlaConfig& config, const MlaWeights& weights,
                    std::span<const int32_t> rows, const float* q, float* latent_q) {
  const int64_t heads = config.num_heads;
  const int64_t entry_dim = config.entry_dim();
  head_linear(ctx,
              {.matrices = weights.k_absorb,
               .x = q,
               .x_row_stride = heads * config.key_dim(),
               .x_head_stride = config.key_dim(),
               .y = latent_q,
               .y_row_stride = heads * entry_dim,
               .y_head_stride = entry_dim},
              rows);
  for_rows(ctx, std::ssize(rows), [&](int64_t i) {
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t vector = rows[static_cast<size_t>(i)] * heads + head;
      std::memcpy(latent_q + vector * entry_dim + config.latent_dim, q + vector * config.key_dim() + config.nope_dim,
                  static_cast<size_t>(config.rope_dim) * sizeof(float));
    }
  });
}

// Lets KV policies see the queries they want, absorbed: so queries meet what the cache has.
void observe_absorbed_queries(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const MlaConfig& config,
                              const MlaWeights& weights, const float* q) {
  const std::vector<int32_t> rows = observed_rows(batch);
  if (rows.empty()) return;
  const ScratchScope scope(ctx.compute.scratch);
  auto* latent_q = ctx.compute.scratch.allocate<float>(batch.num_tokens() * config.num_heads * config.entry_dim());
  absorb_queries(ctx.compute, config, weights, rows, q, latent_q);
  observe_queries(ctx, batch, layer, latent_spec(config), latent_q);
}

// The same before RoPE.
void observe_absorbed_unrotated_queries(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer,
                                        const MlaConfig& config, const MlaWeights& weights, const RopeAngles& angles,
                                        const float* q) {
  const std::vector<int32_t> rows = observed_unrotated_rows(batch);
  if (rows.empty()) return;
  const ScratchScope scope(ctx.compute.scratch);
  auto* latent_q = ctx.compute.scratch.allocate<float>(batch.num_tokens() * config.num_heads * config.entry_dim());
  absorb_queries(ctx.compute, config, weights, rows, q, latent_q);
  observe_unrotated_queries(ctx, batch, layer, latent_spec(config), angles, config.latent_dim, latent_q);
}

// Attention of generated tokens, in the latent space. q [tokens, heads, key_dim] -> out [tokens, heads, value_dim].
void absorbed_attention(ForwardContext& ctx, const ForwardBatch& batch, std::span<const SliceRows> parts, int32_t layer,
                        const MlaConfig& config, const MlaWeights& weights, const float* q, float* out) {
  if (parts.empty()) return;
  ComputeContext& compute = ctx.compute;
  const ScratchScope scope(compute.scratch);
  const int64_t n = batch.num_tokens();
  const int64_t heads = config.num_heads;
  std::vector<int32_t> rows;
  for (const SliceRows& part : parts) {
    for (int32_t i = 0; i < part.num_tokens; ++i) rows.push_back(part.first_row + i);
  }
  auto* latent_q = compute.scratch.allocate<float>(n * heads * config.entry_dim());
  auto* latent_out = compute.scratch.allocate<float>(n * heads * config.latent_dim);
  absorb_queries(compute, config, weights, rows, q, latent_q);
  paged_attention(ctx, batch, parts, layer, latent_spec(config), latent_q, latent_out);
  head_linear(compute,
              {.matrices = weights.v,
               .x = latent_out,
               .x_row_stride = heads * config.latent_dim,
               .x_head_stride = config.latent_dim,
               .y = out,
               .y_row_stride = heads * config.value_dim,
               .y_head_stride = config.value_dim},
              rows);
}

// The latents of a sequence as the cache has them, ready for the products that expand them.
struct Latents {
  int32_t num_entries;
  const int32_t* positions;  // of the entries, as KvView has them
  const float* rope_keys;    // [num_entries, rope_dim]
  StoredRows for_keys;
  StoredRows for_values;
};

Latents read_latents(ForwardContext& ctx, const ForwardBatch& batch, const SliceRows& part, int32_t layer,
                     const MlaConfig& config, const MlaWeights& weights) {
  ComputeContext& compute = ctx.compute;
  const SequenceSlice& slice = *part.slice;
  const int32_t last_row = part.first_row + part.num_tokens - 1;
  const int32_t num_entries = slice.entry(ctx.kv, layer, 0, last_row - slice.first_row, batch.positions) + 1;
  const KvView view = ctx.kv.view(slice.kv_sequence, layer, 0, num_entries);
  auto* entries = compute.scratch.allocate<float>(num_entries * config.entry_dim());
  auto* rope_keys = compute.scratch.allocate<float>(int64_t{num_entries} * config.rope_dim);
  for_rows(compute, view.num_blocks(), [&](int64_t block) {
    const int32_t first = view.block_begin(static_cast<int32_t>(block));
    const int32_t end = view.block_begin(static_cast<int32_t>(block) + 1);
    kv_load_keys(compute.isa, view.format_of(first), view.blocks[block], end - first,
                 entries + first * config.entry_dim(), config.entry_dim());
    for (int32_t i = first; i < end; ++i) {
      std::memcpy(rope_keys + int64_t{i} * config.rope_dim, entries + i * config.entry_dim() + config.latent_dim,
                  static_cast<size_t>(config.rope_dim) * sizeof(float));
    }
  });
  const auto stored = [&](const PackedMatrix& matrix) {
    return store_rows(compute, activation_format(matrix.type, compute.precision), entries, num_entries,
                      config.latent_dim, config.entry_dim());
  };
  return {.num_entries = num_entries,
          .positions = view.positions,
          .rope_keys = rope_keys,
          .for_keys = stored(weights.k_expand.front()),
          .for_values = stored(weights.v.front())};
}

// Rows that one call of the attention kernel takes, so that its scratch does not grow with the step.
constexpr int32_t kRowTile = 64;

int64_t state_floats(const MlaConfig& config) { return (attention_state_floats(config.value_dim) + 15) / 16 * 16; }

// One thread's working memory for expanded attention.
struct ExpandedBuffers {
  float* keys;              // [kAttentionSplit, key_dim]
  float* values;            // [kAttentionSplit, value_dim]
  float** key_rows;         // [kAttentionSplit]
  float** value_rows;       // [kAttentionSplit]
  std::byte* blocks;        // the blocks of one split
  const std::byte** table;  // [blocks of the sequence], each naming its place in `blocks`
  float* totals;            // [rows, state_floats]
  float** split_states;     // [kRowTile], to [kRowTile, state_floats]
  const float** queries;    // [rows]
  std::byte* scratch;
};

struct ExpandedTask {
  const MlaConfig& config;
  const MlaWeights& weights;
  const SliceRows& part;
  const Latents& latents;
  KvBlockFormat format;      // of the expanded blocks
  const int32_t* positions;  // of the part's rows
  const float* q;
  float* out;
  int64_t state_floats;
};

// Keys and values of one head for the entries of one split, as KV blocks.
void expand_split(const ExpandedTask& task, Isa isa, int64_t head, int32_t split, const ExpandedBuffers& buffers) {
  const MlaConfig& config = task.config;
  const int32_t begin = split * kAttentionSplit;
  const int32_t count = std::min(kAttentionSplit, task.latents.num_entries - begin);
  const PackedMatrix& wk = task.weights.k_expand[static_cast<size_t>(head)];
  const PackedMatrix& wv = task.weights.v[static_cast<size_t>(head)];
  matmul(isa, wk, task.latents.for_keys.format, task.latents.for_keys.rows + begin, count, 0, wk.num_panels(),
         buffers.key_rows);
  matmul(isa, wv, task.latents.for_values.format, task.latents.for_values.rows + begin, count, 0, wv.num_panels(),
         buffers.value_rows);
  for (int32_t i = 0; i < count; ++i) {
    std::memcpy(buffers.keys + i * config.key_dim() + config.nope_dim,
                task.latents.rope_keys + int64_t{begin + i} * config.rope_dim,
                static_cast<size_t>(config.rope_dim) * sizeof(float));
  }
  for (int32_t i = 0; i < count; i += kKvBlockSize) {
    kv_store_block(isa, task.format, buffers.blocks + i / kKvBlockSize * task.format.block_bytes(),
                   std::min(kKvBlockSize, count - i),
                   {.keys = buffers.keys + i * config.key_dim(),
                    .key_stride = config.key_dim(),
                    .values = buffers.values + int64_t{i} * config.value_dim,
                    .value_stride = config.value_dim});
  }
}

// Of the part's rows, the first one that sees an entry: the rows of a part are the last that its entries are of, or
// have entries anywhere, each at its position.
int32_t first_row_that_sees(const ExpandedTask& task, int32_t entry) {
  const int32_t num_rows = task.part.num_tokens;
  if (task.part.slice->in_place == SequenceSlice::InPlace::kNo) {
    return std::max(0, entry - (task.latents.num_entries - num_rows));
  }
  return static_cast<int32_t>(std::lower_bound(task.positions, task.positions + num_rows, entry) - task.positions);
}

// All rows of a part, one head.
void expanded_head(const ExpandedTask& task, const ComputeContext& compute, int64_t head,
                   const ExpandedBuffers& buffers) {
  const Isa isa = compute.isa;
  const MlaConfig& config = task.config;
  const int32_t num_rows = task.part.num_tokens;
  float* totals = buffers.totals;
  for (int32_t r = 0; r < num_rows; ++r) {
    buffers.queries[r] = task.q + ((task.part.first_row + r) * int64_t{config.num_heads} + head) * config.key_dim();
    float* total = totals + r * task.state_floats;
    std::fill_n(total, task.state_floats, 0.0f);
    total[0] = -std::numeric_limits<float>::infinity();
  }
  const KvView view{.format = task.format,
                    .blocks = buffers.table,
                    .num_entries = task.latents.num_entries,
                    .positions = task.latents.positions};
  for (int32_t split = 0; split < view.num_splits(); ++split) {
    expand_split(task, isa, head, split, buffers);
    for (int32_t r = first_row_that_sees(task, split * kAttentionSplit); r < num_rows; r += kRowTile) {
      const AttentionRows rows{.queries = buffers.queries + r,
                               .positions = task.positions + r,
                               .num_rows = std::min(kRowTile, num_rows - r),
                               .scale = config.scale,
                               .window = 0};
      attention_split(isa, compute.precision, view, rows, split, buffers.split_states, buffers.scratch);
      for (int32_t i = 0; i < rows.num_rows; ++i) {
        merge_attention_state(isa, totals + (r + i) * task.state_floats, buffers.split_states[i], config.value_dim);
      }
    }
  }
  for (int32_t r = 0; r < num_rows; ++r) {
    const int64_t vector = (task.part.first_row + r) * int64_t{config.num_heads} + head;
    finish_attention(isa, totals + r * task.state_floats, nullptr, config.value_dim,
                     task.out + vector * config.value_dim);
  }
}

ExpandedBuffers allocate_buffers(Scratch& scratch, const ExpandedTask& task) {
  const MlaConfig& config = task.config;
  const int64_t rows = task.part.num_tokens;
  const int64_t num_blocks = (task.latents.num_entries + kKvBlockSize - 1) / kKvBlockSize;
  constexpr int64_t kSplitBlocks = kAttentionSplit / kKvBlockSize;
  ExpandedBuffers buffers{.keys = scratch.allocate<float>(kAttentionSplit * config.key_dim()),
                          .values = scratch.allocate<float>(int64_t{kAttentionSplit} * config.value_dim),
                          .key_rows = scratch.allocate<float*>(kAttentionSplit),
                          .value_rows = scratch.allocate<float*>(kAttentionSplit),
                          .blocks = scratch.allocate<std::byte>(kSplitBlocks * task.format.block_bytes()),
                          .table = scratch.allocate<const std::byte*>(num_blocks),
                          .totals = scratch.allocate<float>(rows * task.state_floats),
                          .split_states = scratch.allocate<float*>(kRowTile),
                          .queries = scratch.allocate<const float*>(rows),
                          .scratch = scratch.allocate<std::byte>(attention_scratch_bytes(task.format, kRowTile))};
  auto* split_states = scratch.allocate<float>(kRowTile * task.state_floats);
  for (int64_t i = 0; i < kRowTile; ++i) buffers.split_states[i] = split_states + i * task.state_floats;
  for (int64_t i = 0; i < kAttentionSplit; ++i) {
    buffers.key_rows[i] = buffers.keys + i * config.key_dim();
    buffers.value_rows[i] = buffers.values + i * config.value_dim;
  }
  for (int64_t block = 0; block < num_blocks; ++block) {
    buffers.table[block] = buffers.blocks + block % kSplitBlocks * task.format.block_bytes();
  }
  return buffers;
}

// What the keys and values that are made for a prompt are rounded to: as the entries they are made from, if the kernels
// multiply that.
KvCodec expanded_codec(const ForwardContext& ctx, int32_t layer) {
  const AttentionArithmetic arithmetic =
      attention_arithmetic(ctx.compute.isa, ctx.kv.block_format(layer), ctx.compute.precision);
  return arithmetic == AttentionArithmetic::kBF16 ? KvCodec::kBF16 : KvCodec::kF32;
}

// Attention of prompt tokens, keys and values made per head. q [tokens, heads, key_dim] -> out [tokens, heads,
// value_dim].
void expanded_attention(ForwardContext& ctx, const ForwardBatch& batch, std::span<const SliceRows> parts, int32_t layer,
                        const MlaConfig& config, const MlaWeights& weights, const float* q, float* out) {
  ComputeContext& compute = ctx.compute;
  for (const SliceRows& part : parts) {
    const ScratchScope scope(compute.scratch);
    const Latents latents = read_latents(ctx, batch, part, layer, config, weights);
    const ExpandedTask task{.config = config,
                            .weights = weights,
                            .part = part,
                            .latents = latents,
                            .format = {.codec = expanded_codec(ctx, layer),
                                       .key_dim = static_cast<int32_t>(config.key_dim()),
                                       .value_dim = config.value_dim,
                                       .value_in_key = false},
                            .positions = batch.positions.data() + part.first_row,
                            .q = q,
                            .out = out,
                            .state_floats = state_floats(config)};
    std::vector<ExpandedBuffers> buffers;
    for (int thread = 0; thread < compute.threads.num_threads(); ++thread) {
      buffers.push_back(allocate_buffers(compute.scratch, task));
    }
    compute.threads.parallel_for(config.num_heads, [&](int64_t head, int thread) {
      expanded_head(task, compute, head, buffers[static_cast<size_t>(thread)]);
    });
  }
}

// The slices' rows by role: prompt tokens first, generated ones behind them.
struct RolesOfRows {
  std::vector<SliceRows> prompt;
  std::vector<SliceRows> generated;
};

RolesOfRows split_by_role(const ForwardBatch& batch) {
  RolesOfRows parts;
  for (const SequenceSlice& slice : batch.slices) {
    int32_t num_prompt = 0;
    while (num_prompt < slice.num_tokens &&
           batch.roles[static_cast<size_t>(slice.first_row) + static_cast<size_t>(num_prompt)] == TokenRole::kPrompt) {
      ++num_prompt;
    }
    if (num_prompt > 0) {
      parts.prompt.push_back({.slice = &slice, .first_row = slice.first_row, .num_tokens = num_prompt});
    }
    if (num_prompt < slice.num_tokens) {
      parts.generated.push_back(
          {.slice = &slice, .first_row = slice.first_row + num_prompt, .num_tokens = slice.num_tokens - num_prompt});
    }
  }
  return parts;
}

void project_queries(ComputeContext& ctx, const MlaConfig& config, const MlaWeights& weights, const float* x, int64_t n,
                     float* q) {
  if (config.q_latent_dim == 0) {
    linear(ctx, weights.q, x, n, q);
    return;
  }
  const ScratchScope scope(ctx.scratch);
  auto* latent = ctx.scratch.allocate<float>(n * config.q_latent_dim);
  linear(ctx, weights.q_a, x, n, latent);
  rms_norm_rows(ctx, latent, weights.q_a_norm, config.norm_epsilon, n, config.q_latent_dim, latent);
  linear(ctx, weights.q, latent, n, q);
}

}  // namespace

int64_t mla_thread_bytes_per_row(const MlaConfig& config) {
  return state_floats(config) * static_cast<int64_t>(sizeof(float)) + static_cast<int64_t>(sizeof(float*));
}

void mla_attention(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const MlaConfig& config,
                   const MlaWeights& weights, const RopeAngles& angles, const float* x, float* out) {
  ComputeContext& compute = ctx.compute;
  const ScratchScope scope(compute.scratch);
  const int64_t n = batch.num_tokens();
  const int64_t heads = config.num_heads;
  auto* q = compute.scratch.allocate<float>(n * heads * config.key_dim());
  auto* entries = compute.scratch.allocate<float>(n * config.entry_dim());
  auto* attended = compute.scratch.allocate<float>(n * heads * config.value_dim);
  project_queries(compute, config, weights, x, n, q);
  observe_absorbed_unrotated_queries(ctx, batch, layer, config, weights, angles, q);
  rope_heads(compute, angles, n, heads, config.key_dim(), config.nope_dim, q);
  linear(compute, weights.kv_a, x, n, entries);
  for_rows(compute, n, [&](int64_t row) {
    float* latent = entries + row * config.entry_dim();
    rms_norm(compute.isa, latent, weights.kv_a_norm, config.norm_epsilon, config.latent_dim, latent);
  });
  rope_heads(compute, angles, n, 1, config.entry_dim(), config.latent_dim, entries);
  write_kv(ctx, batch, layer, latent_spec(config), entries, nullptr);
  if (batch.ends_at(layer)) return;
  observe_absorbed_queries(ctx, batch, layer, config, weights, q);

  const RolesOfRows parts = split_by_role(batch);
  expanded_attention(ctx, batch, parts.prompt, layer, config, weights, q, attended);
  absorbed_attention(ctx, batch, parts.generated, layer, config, weights, q, attended);
  linear(compute, weights.o, attended, n, out);
}

void learn_mla_value_norms(ComputeContext& ctx, const KvCache& kv, SequenceId sequence, int32_t layer,
                           const MlaConfig& config, const MlaWeights& weights, ValueNorms& norms) {
  const ActivationFormat format = activation_format(weights.v.front().type, ctx.precision);
  const int64_t row_bytes = activation_bytes(format, config.latent_dim);
  // scratch: [kMaxEntries] latents as activations, then an entry
  const auto values = [&](const KvView& view, int32_t head, int32_t first, int32_t count, float* out,
                          std::byte* scratch) {
    auto* entry = reinterpret_cast<float*>(scratch + ValueProjection::kMaxEntries * row_bytes);
    const std::byte* rows[ValueProjection::kMaxEntries];
    float* products[ValueProjection::kMaxEntries];
    for (int32_t i = 0; i < count; ++i) {
      const int32_t e = first + i;
      view.load(e, entry, nullptr);
      store_activations(ctx.isa, format, entry, config.latent_dim, scratch + i * row_bytes);
      rows[i] = scratch + i * row_bytes;
      products[i] = out + int64_t{i} * config.value_dim;
    }
    const PackedMatrix& v = weights.v[static_cast<size_t>(head)];
    matmul(ctx.isa, v, format, rows, count, 0, v.num_panels(), products);
  };
  learn_value_norms(
      ctx, kv, sequence, layer,
      {.output = weights.o,
       .num_heads = config.num_heads,
       .num_kv_heads = 1,
       .value_dim = config.value_dim,
       .values = values,
       .scratch_bytes = ValueProjection::kMaxEntries * row_bytes + config.entry_dim() * int64_t{sizeof(float)}},
      norms);
}

}  // namespace witan
