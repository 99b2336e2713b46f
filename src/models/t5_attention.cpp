#include "models/t5_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/attention/attention.h"
#include "models/paged_attention.h"
#include "nn/linear.h"
#include "nn/rows.h"

namespace witan {
namespace {

constexpr int32_t kTileRows = 32;

// Queries [num_rows, num_heads, head_dim] of one sequence over the entries of each head.
struct HeadsTask {
  const T5AttentionConfig& config;
  FunctionRef<KvView(int64_t head)> view_of;
  const T5Biases* biases;    // nullptr: none
  const int32_t* positions;  // [num_rows]: a row sees entries up to its own; nullptr: all entries
  int64_t num_rows;
  const float* queries;
  float* out;  // [num_rows, num_heads, head_dim]
};

// One thread's working memory.
struct TileBuffers {
  const float** queries;  // [kTileRows]
  const float** biases;   // [kTileRows]
  int32_t* positions;     // [kTileRows]
  float** states;         // [kTileRows]
  float* totals;          // [kTileRows, state_floats]
  std::byte* scratch;
};

void attend_tile(const HeadsTask& task, const ComputeContext& ctx, int64_t head, int64_t first_row,
                 int64_t state_floats, const TileBuffers& buffers) {
  const Isa isa = ctx.isa;
  const T5AttentionConfig& config = task.config;
  const auto num_rows = static_cast<int32_t>(std::min<int64_t>(kTileRows, task.num_rows - first_row));
  const KvView view = task.view_of(head);
  for (int32_t r = 0; r < num_rows; ++r) {
    const int64_t row = first_row + r;
    buffers.queries[r] = task.queries + (row * config.num_heads + head) * config.head_dim;
    // A position that all entries are up to.
    buffers.positions[r] = task.positions == nullptr ? std::numeric_limits<int32_t>::max() : task.positions[row];
    if (task.biases != nullptr) {
      buffers.biases[r] = task.biases->of(head, task.positions == nullptr ? row : task.positions[row]);
    }
    float* total = buffers.totals + r * state_floats;
    std::fill_n(total, state_floats, 0.0f);
    total[0] = -std::numeric_limits<float>::infinity();
  }
  const AttentionRows rows{.queries = buffers.queries,
                           .positions = buffers.positions,
                           .num_rows = num_rows,
                           .scale = 1.0f,
                           .window = 0,
                           .biases = task.biases == nullptr ? nullptr : buffers.biases};
  for (int32_t split = 0; split < view.num_splits(); ++split) {
    attention_split(isa, ctx.precision, view, rows, split, buffers.states, buffers.scratch);
    for (int32_t r = 0; r < num_rows; ++r) {
      merge_attention_state(isa, buffers.totals + r * state_floats, buffers.states[r], config.head_dim);
    }
  }
  for (int32_t r = 0; r < num_rows; ++r) {
    finish_attention(isa, buffers.totals + r * state_floats, nullptr, config.head_dim,
                     task.out + ((first_row + r) * config.num_heads + head) * config.head_dim);
  }
}

void attend_heads(ComputeContext& ctx, const KvBlockFormat& format, const HeadsTask& task) {
  const ScratchScope scope(ctx.scratch);
  const int64_t state_floats = (attention_state_floats(task.config.head_dim) + 15) / 16 * 16;
  std::vector<TileBuffers> buffers;
  for (int thread = 0; thread < ctx.threads.num_threads(); ++thread) {
    TileBuffers& own = buffers.emplace_back(
        TileBuffers{.queries = ctx.scratch.allocate<const float*>(kTileRows),
                    .biases = ctx.scratch.allocate<const float*>(kTileRows),
                    .positions = ctx.scratch.allocate<int32_t>(kTileRows),
                    .states = ctx.scratch.allocate<float*>(kTileRows),
                    .totals = ctx.scratch.allocate<float>(kTileRows * state_floats),
                    .scratch = ctx.scratch.allocate<std::byte>(attention_scratch_bytes(format, kTileRows))});
    auto* states = ctx.scratch.allocate<float>(kTileRows * state_floats);
    for (int64_t r = 0; r < kTileRows; ++r) own.states[r] = states + r * state_floats;
  }
  const int64_t num_tiles = (task.num_rows + kTileRows - 1) / kTileRows;
  ctx.threads.parallel_for(num_tiles * task.config.num_heads, [&](int64_t item, int thread) {
    attend_tile(task, ctx, item / num_tiles, item % num_tiles * kTileRows, state_floats,
                buffers[static_cast<size_t>(thread)]);
  });
}

AttentionSpec spec_of(const T5AttentionConfig& config) {
  return {.num_heads = config.num_heads,
          .num_kv_heads = config.num_heads,
          .key_dim = config.head_dim,
          .value_dim = config.head_dim};
}

// Keys and values [n, num_heads, head_dim] as KV blocks of floats in scratch memory.
class ScratchBlocks {
 public:
  ScratchBlocks(ComputeContext& ctx, const T5AttentionConfig& config, const float* k, const float* v, int64_t n)
      : format_{.codec = KvCodec::kF32,
                .key_dim = config.head_dim,
                .value_dim = config.head_dim,
                .value_in_key = false},
        num_entries_(n),
        num_blocks_((n + kKvBlockSize - 1) / kKvBlockSize) {
    const int64_t total = config.num_heads * num_blocks_;
    auto* bytes = ctx.scratch.allocate<std::byte>(total * format_.block_bytes());
    blocks_ = ctx.scratch.allocate<const std::byte*>(total);
    ctx.threads.parallel_for(total, [&](int64_t i, int) {
      std::byte* block = bytes + i * format_.block_bytes();
      blocks_[i] = block;
      // Slots without an entry must be numbers, though they are masked.
      std::memset(block, 0, static_cast<size_t>(format_.block_bytes()));
      const int64_t head = i / num_blocks_;
      const int64_t first = i % num_blocks_ * kKvBlockSize;
      for (int64_t entry = first; entry < std::min(n, first + kKvBlockSize); ++entry) {
        const int64_t at = (entry * config.num_heads + head) * config.head_dim;
        kv_store(format_, block, static_cast<int>(entry - first), k + at, v + at);
      }
    });
  }

  const KvBlockFormat& format() const { return format_; }
  KvView view(int64_t head) const {
    return {format_, blocks_ + head * num_blocks_, static_cast<int32_t>(num_entries_), nullptr};
  }

 private:
  KvBlockFormat format_;
  int64_t num_entries_;
  int64_t num_blocks_;
  const std::byte** blocks_;
};

struct Projections {
  float* q;
  float* k;
  float* v;
};

Projections project(ComputeContext& ctx, const T5AttentionConfig& config, const T5AttentionWeights& weights,
                    const float* x, int64_t n) {
  const int64_t dim = weights.q.rows;
  const Projections p{.q = ctx.scratch.allocate<float>(n * dim),
                      .k = ctx.scratch.allocate<float>(n * dim),
                      .v = ctx.scratch.allocate<float>(n * dim)};
  const LinearOutput outputs[] = {{.matrix = &weights.q, .y = p.q, .stride = dim},
                                  {.matrix = &weights.k, .y = p.k, .stride = dim},
                                  {.matrix = &weights.v, .y = p.v, .stride = dim}};
  linear(ctx, x, n, config.model_dim, config.model_dim, outputs);
  return p;
}

}  // namespace

int32_t t5_bucket(const T5AttentionConfig& config, T5Direction direction, int64_t key, int64_t query) {
  const bool both = direction == T5Direction::kBoth;
  const int32_t num_buckets = both ? config.num_buckets / 2 : config.num_buckets;
  const int32_t offset = both && key > query ? num_buckets : 0;
  const int64_t distance = both ? std::abs(key - query) : std::max<int64_t>(query - key, 0);
  const int32_t num_exact = num_buckets / 2;
  if (distance < num_exact) return offset + static_cast<int32_t>(distance);
  const double ratio = std::log(static_cast<double>(distance) / num_exact) /
                       std::log(static_cast<double>(config.max_distance) / num_exact);
  return offset + std::min(num_buckets - 1, num_exact + static_cast<int32_t>(ratio * (num_buckets - num_exact)));
}

T5Biases::T5Biases(ComputeContext& ctx, const T5AttentionConfig& config, T5Direction direction, const float* table,
                   int32_t length)
    : length_(length), stride_(2 * int64_t{length} + kKvBlockSize) {
  auto* values = ctx.scratch.allocate<float>(config.num_heads * stride_);
  for_rows(ctx, config.num_heads, [&](int64_t head) {
    for (int64_t i = 0; i < stride_; ++i) {
      const int32_t bucket = t5_bucket(config, direction, i, length_ - 1);
      values[head * stride_ + i] = table[bucket * config.num_heads + head];
    }
  });
  values_ = values;
}

void t5_encoder_attention(ComputeContext& ctx, const T5AttentionConfig& config, const T5AttentionWeights& weights,
                          const T5Biases& biases, const float* x, int64_t n, float* out) {
  const ScratchScope scope(ctx.scratch);
  const Projections p = project(ctx, config, weights, x, n);
  const ScratchBlocks blocks(ctx, config, p.k, p.v, n);
  auto* attended = ctx.scratch.allocate<float>(n * weights.q.rows);
  const auto view_of = [&](int64_t head) { return blocks.view(head); };
  attend_heads(ctx, blocks.format(),
               {.config = config,
                .view_of = view_of,
                .biases = &biases,
                .positions = nullptr,
                .num_rows = n,
                .queries = p.q,
                .out = attended});
  linear(ctx, weights.o, attended, n, out);
}

void t5_self_attention(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const T5AttentionConfig& config,
                       const T5AttentionWeights& weights, const T5Biases& biases, const float* x, float* out) {
  ComputeContext& compute = ctx.compute;
  const ScratchScope scope(compute.scratch);
  const int64_t n = batch.num_tokens();
  const int64_t dim = weights.q.rows;
  const Projections p = project(compute, config, weights, x, n);
  write_kv(ctx, batch, layer, spec_of(config), p.k, p.v);
  auto* attended = compute.scratch.allocate<float>(n * dim);
  for (const SequenceSlice& slice : batch.slices) {
    const auto view_of = [&](int64_t head) {
      return ctx.kv.view(slice.kv_sequence, layer, static_cast<int32_t>(head), slice.first_token + slice.num_tokens);
    };
    attend_heads(compute, ctx.kv.block_format(layer),
                 {.config = config,
                  .view_of = view_of,
                  .biases = &biases,
                  .positions = batch.positions.data() + slice.first_row,
                  .num_rows = slice.num_tokens,
                  .queries = p.q + slice.first_row * dim,
                  .out = attended + slice.first_row * dim});
  }
  linear(compute, weights.o, attended, n, out);
}

void t5_cross_attention(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const T5AttentionConfig& config,
                        const T5AttentionWeights& weights, const float* x, float* out) {
  ComputeContext& compute = ctx.compute;
  const ScratchScope scope(compute.scratch);
  const int64_t n = batch.num_tokens();
  const int64_t dim = weights.q.rows;
  auto* q = compute.scratch.allocate<float>(n * dim);
  auto* attended = compute.scratch.allocate<float>(n * dim);
  linear(compute, weights.q, x, n, q);
  for (const SequenceSlice& slice : batch.slices) {
    const auto view_of = [&](int64_t head) {
      return ctx.kv.input_view(slice.kv_sequence, layer, static_cast<int32_t>(head));
    };
    attend_heads(compute, view_of(0).format,
                 {.config = config,
                  .view_of = view_of,
                  .biases = nullptr,
                  .positions = nullptr,
                  .num_rows = slice.num_tokens,
                  .queries = q + slice.first_row * dim,
                  .out = attended + slice.first_row * dim});
  }
  linear(compute, weights.o, attended, n, out);
}

void write_t5_input(ForwardContext& ctx, SequenceId kv_sequence, int32_t layer, const T5AttentionConfig& config,
                    const T5AttentionWeights& weights, const float* encoded, int64_t n) {
  ComputeContext& compute = ctx.compute;
  const ScratchScope scope(compute.scratch);
  const int64_t dim = weights.k.rows;
  auto* k = compute.scratch.allocate<float>(n * dim);
  auto* v = compute.scratch.allocate<float>(n * dim);
  const LinearOutput outputs[] = {{.matrix = &weights.k, .y = k, .stride = dim},
                                  {.matrix = &weights.v, .y = v, .stride = dim}};
  linear(compute, encoded, n, config.model_dim, config.model_dim, outputs);
  const KvBlockFormat format = ctx.kv.input_view(kv_sequence, layer, 0).format;
  for_rows(compute, n, [&](int64_t entry) {
    for (int32_t head = 0; head < config.num_heads; ++head) {
      const KvCache::Slot slot = ctx.kv.input_slot(kv_sequence, layer, head, static_cast<int32_t>(entry));
      const int64_t at = entry * dim + int64_t{head} * config.head_dim;
      kv_store(format, slot.block, slot.slot, k + at, v + at);
    }
  });
}

}  // namespace witan
