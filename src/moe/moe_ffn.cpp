#include "moe/moe_ffn.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "kernels/elementwise/elementwise.h"
#include "nn/linear.h"
#include "nn/rows.h"

namespace witan {
namespace {

// The (token, choice) pairs of a step sorted by expert: the rows of expert e are slots [begin[e], begin[e + 1]).
struct ExpertGroups {
  int32_t* begin;         // [num_experts + 1]
  int32_t* token;         // [num_slots] which token a slot computes
  int32_t* slot_of_pair;  // [num_tokens * top_k] where pair (token, choice) went; -1: nowhere, it was dropped
  int64_t num_slots;
  std::vector<int32_t> used;  // experts with at least one token, most tokens first
};

struct Routes {
  int32_t* experts;  // [num_tokens, top_k]; kNoExpert: dropped
  float* weights;    // [num_tokens, top_k]
};

Routes route_tokens(ComputeContext& ctx, const MoeWeights& weights, const float* x, int64_t num_tokens) {
  const RouterSpec& spec = weights.spec;
  Routes routes{.experts = ctx.scratch.allocate<int32_t>(num_tokens * spec.top_k),
                .weights = ctx.scratch.allocate<float>(num_tokens * spec.top_k)};
  const ScratchScope scope(ctx.scratch);
  auto* logits = ctx.scratch.allocate<float>(num_tokens * spec.num_experts);
  ComputeContext exact{.threads = ctx.threads, .scratch = ctx.scratch, .isa = ctx.isa, .precision = Precision::kExact};
  linear(exact, weights.router, x, num_tokens, logits, weights.router_bias);
  for_rows(ctx, num_tokens, [&](int64_t token) {
    route(ctx.isa, spec, weights.selection_bias, logits + token * spec.num_experts, routes.experts + token * spec.top_k,
          routes.weights + token * spec.top_k);
  });
  return routes;
}

void drop_beyond_capacity(ComputeContext& ctx, const RouterSpec& spec, const ExpertCapacity& capacity, Routes& routes) {
  const ScratchScope scope(ctx.scratch);
  auto* num_taken = ctx.scratch.allocate<int32_t>(spec.num_experts);
  for (const ExpertCapacity::Range& range : capacity.ranges) {
    std::fill_n(num_taken, spec.num_experts, 0);
    for (int64_t i = range.begin * spec.top_k; i < range.end * spec.top_k; ++i) {
      if (++num_taken[routes.experts[i]] <= capacity.tokens_per_expert) continue;
      routes.experts[i] = kNoExpert;
      routes.weights[i] = 0.0f;
    }
  }
}

// Counting sort; within an expert the tokens stay in ascending order.
ExpertGroups group_by_expert(ComputeContext& ctx, const RouterSpec& spec, const int32_t* experts, int64_t num_tokens) {
  const int64_t num_pairs = num_tokens * spec.top_k;
  ExpertGroups groups{.begin = ctx.scratch.allocate<int32_t>(spec.num_experts + 1),
                      .token = ctx.scratch.allocate<int32_t>(num_pairs),
                      .slot_of_pair = ctx.scratch.allocate<int32_t>(num_pairs),
                      .num_slots = 0,
                      .used = {}};
  std::fill_n(groups.begin, spec.num_experts + 1, 0);
  for (int64_t i = 0; i < num_pairs; ++i) {
    if (experts[i] != kNoExpert) ++groups.begin[experts[i] + 1];
  }
  for (int32_t e = 0; e < spec.num_experts; ++e) {
    if (groups.begin[e + 1] > 0) groups.used.push_back(e);
  }
  std::ranges::stable_sort(groups.used,
                           [&](int32_t a, int32_t b) { return groups.begin[a + 1] > groups.begin[b + 1]; });
  std::partial_sum(groups.begin, groups.begin + spec.num_experts + 1, groups.begin);
  auto* next = ctx.scratch.allocate<int32_t>(spec.num_experts);
  std::copy_n(groups.begin, spec.num_experts, next);
  groups.num_slots = groups.begin[spec.num_experts];
  for (int64_t i = 0; i < num_pairs; ++i) {
    groups.slot_of_pair[i] = -1;
    if (experts[i] == kNoExpert) continue;
    const int32_t slot = next[experts[i]]++;
    groups.token[slot] = static_cast<int32_t>(i / spec.top_k);
    groups.slot_of_pair[i] = slot;
  }
  return groups;
}

// A run of panels of one expert's matrix, to be multiplied with that expert's rows.
struct ExpertItem {
  int32_t expert;
  int32_t panel_begin;
  int32_t panel_end;
};

std::span<const ExpertItem> make_items(ComputeContext& ctx, const ExpertGroups& groups, int64_t num_panels) {
  int64_t rows = 0;
  for (int32_t e : groups.used) rows = std::max<int64_t>(rows, groups.begin[e + 1] - groups.begin[e]);
  // Several experts share the threads: smaller pieces than a lone matrix would get still fill them.
  const int64_t step = panels_per_item(num_panels * std::ssize(groups.used), rows, ctx.threads.num_threads());
  const int64_t per_expert = (num_panels + step - 1) / step;
  auto* items = ctx.scratch.allocate<ExpertItem>(per_expert * std::ssize(groups.used));
  int64_t count = 0;
  for (int32_t e : groups.used) {
    for (int64_t panel = 0; panel < num_panels; panel += step) {
      items[count++] = {.expert = e,
                        .panel_begin = static_cast<int32_t>(panel),
                        .panel_end = static_cast<int32_t>(std::min(num_panels, panel + step))};
    }
  }
  return {items, static_cast<size_t>(count)};
}

// Row pointers of every slot: row `index_of(slot)` of a stored or plain row array.
template <typename T>
T** slot_pointers(ComputeContext& ctx, int64_t num_slots, FunctionRef<T*(int64_t slot)> row_of) {
  T** pointers = ctx.scratch.allocate<T*>(num_slots);
  for (int64_t slot = 0; slot < num_slots; ++slot) pointers[slot] = row_of(slot);
  return pointers;
}

void add_bias(const float* bias, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += bias[i];
}

// hidden = the activation of columns [begin, begin + n) of one row, which has the products without their biases; hidden
// may be gate or up.
void activate(Isa isa, const FfnWeights& ffn, int64_t begin, int64_t n, float* gate, float* up, float* hidden) {
  if (ffn.gate_bias != nullptr) add_bias(ffn.gate_bias + begin, n, gate);
  if (ffn.up_bias != nullptr) add_bias(ffn.up_bias + begin, n, up);
  switch (ffn.activation) {
    case FfnActivation::kSwiglu:
      return swiglu(isa, gate, up, n, hidden);
    case FfnActivation::kClampedSwiglu:
      return clamped_swiglu(isa, gate, up, n, ffn.limit, hidden);
    case FfnActivation::kRelu:
      return relu(isa, n, hidden);
  }
}

// hidden [num_slots, ffn_dim] = the activation of gate x and up x of each slot's expert.
void gate_up(ComputeContext& ctx, const MoeWeights& weights, const ExpertGroups& groups, const float* x,
             int64_t num_tokens, float* hidden) {
  const FfnWeights& first = weights.experts.front();
  const int64_t ffn_dim = first.ffn_dim();
  const bool gated = first.gate.rows > 0;
  const ScratchScope scope(ctx.scratch);
  const ActivationFormat up_format = activation_format(first.up.type, ctx.precision);
  const ActivationFormat gate_format = gated ? activation_format(first.gate.type, ctx.precision) : up_format;
  const StoredRows up_rows = store_rows(ctx, up_format, x, num_tokens, first.up.cols, first.up.cols);
  const StoredRows gate_rows = gate_format == up_format
                                   ? up_rows
                                   : store_rows(ctx, gate_format, x, num_tokens, first.gate.cols, first.gate.cols);
  const auto inputs = [&](const StoredRows& rows) {
    return slot_pointers<const std::byte>(ctx, groups.num_slots,
                                          [&](int64_t slot) { return rows.rows[groups.token[slot]]; });
  };
  auto** gate_in = inputs(gate_rows);
  auto** up_in = inputs(up_rows);
  // Without a gate, `up` is what the activation overwrites.
  auto* other = gated ? ctx.scratch.allocate<float>(groups.num_slots * ffn_dim) : hidden;
  const auto outputs = [&](float* y) {
    return slot_pointers<float>(ctx, groups.num_slots, [&](int64_t slot) { return y + slot * ffn_dim; });
  };
  auto** gate_y = outputs(hidden);
  auto** up_y = outputs(other);

  const std::span<const ExpertItem> items = make_items(ctx, groups, first.up.num_panels());
  ctx.threads.parallel_for(std::ssize(items), [&](int64_t i, int) {
    const ExpertItem& item = items[i];
    const FfnWeights& expert = weights.experts[item.expert];
    const int32_t slot = groups.begin[item.expert];
    const int32_t end = groups.begin[item.expert + 1];
    if (gated) {
      matmul(ctx.isa, expert.gate, gate_format, gate_in + slot, end - slot, item.panel_begin, item.panel_end,
             gate_y + slot);
    }
    matmul(ctx.isa, expert.up, up_format, up_in + slot, end - slot, item.panel_begin, item.panel_end, up_y + slot);
    const int64_t begin_col = item.panel_begin * int64_t{kPanelRows};
    const int64_t num_cols = std::min(ffn_dim, item.panel_end * int64_t{kPanelRows}) - begin_col;
    for (int32_t s = slot; s < end; ++s) {
      activate(ctx.isa, expert, begin_col, num_cols, gate_y[s] + begin_col, up_y[s] + begin_col, gate_y[s] + begin_col);
    }
  });
}

// outputs [num_slots, model_dim] = down hidden of each slot's expert.
void down(ComputeContext& ctx, const MoeWeights& weights, const ExpertGroups& groups, const float* hidden,
          float* outputs) {
  const PackedMatrix& first = weights.experts.front().down;
  const ScratchScope scope(ctx.scratch);
  const ActivationFormat format = activation_format(first.type, ctx.precision);
  const StoredRows rows = store_rows(ctx, format, hidden, groups.num_slots, first.cols, first.cols);
  auto** y = slot_pointers<float>(ctx, groups.num_slots, [&](int64_t slot) { return outputs + slot * first.rows; });
  const std::span<const ExpertItem> items = make_items(ctx, groups, first.num_panels());
  ctx.threads.parallel_for(std::ssize(items), [&](int64_t i, int) {
    const ExpertItem& item = items[i];
    const FfnWeights& expert = weights.experts[item.expert];
    const int32_t slot = groups.begin[item.expert];
    const int32_t end = groups.begin[item.expert + 1];
    matmul(ctx.isa, expert.down, format, rows.rows + slot, end - slot, item.panel_begin, item.panel_end, y + slot);
    if (expert.down_bias == nullptr) return;
    const int64_t begin_col = item.panel_begin * int64_t{kPanelRows};
    const int64_t num_cols = std::min(first.rows, item.panel_end * int64_t{kPanelRows}) - begin_col;
    for (int32_t s = slot; s < end; ++s) add_bias(expert.down_bias + begin_col, num_cols, y[s] + begin_col);
  });
}

// out [num_tokens, model_dim] = the shared expert's output, gated.
void shared_ffn(ComputeContext& ctx, const MoeWeights& weights, const float* x, int64_t num_tokens, float* out) {
  dense_ffn(ctx, weights.shared, x, num_tokens, out);
  if (weights.shared_gate.rows == 0) return;
  const ScratchScope scope(ctx.scratch);
  auto* gates = ctx.scratch.allocate<float>(num_tokens);
  ComputeContext exact{.threads = ctx.threads, .scratch = ctx.scratch, .isa = ctx.isa, .precision = Precision::kExact};
  linear(exact, weights.shared_gate, x, num_tokens, gates);
  const int64_t model_dim = weights.router.cols;
  for_rows(ctx, num_tokens, [&](int64_t token) {
    const float gate = 1.0f / (1.0f + std::exp(-gates[token]));
    float* y = out + token * model_dim;
    for (int64_t i = 0; i < model_dim; ++i) y[i] *= gate;
  });
}

}  // namespace

void dense_ffn(ComputeContext& ctx, const FfnWeights& weights, const float* x, int64_t num_tokens, float* out) {
  const int64_t ffn_dim = weights.ffn_dim();
  const int64_t model_dim = weights.up.cols;
  const bool gated = weights.gate.rows > 0;
  const ScratchScope scope(ctx.scratch);
  auto* up = ctx.scratch.allocate<float>(num_tokens * ffn_dim);
  auto* gate = gated ? ctx.scratch.allocate<float>(num_tokens * ffn_dim) : up;
  const LinearOutput outputs[] = {{.matrix = &weights.up, .y = up, .stride = ffn_dim},
                                  {.matrix = &weights.gate, .y = gate, .stride = ffn_dim}};
  linear(ctx, x, num_tokens, model_dim, model_dim, std::span(outputs).first(gated ? 2 : 1));
  for_rows(ctx, num_tokens, [&](int64_t token) {
    float* hidden = gate + token * ffn_dim;
    activate(ctx.isa, weights, 0, ffn_dim, hidden, up + token * ffn_dim, hidden);
  });
  linear(ctx, weights.down, gate, num_tokens, out, weights.down_bias);
}

void moe_ffn(ComputeContext& ctx, const MoeWeights& weights, const float* x, int64_t num_tokens,
             RouterTelemetry& telemetry, float* out, const ExpertCapacity& capacity) {
  const int64_t top_k = weights.spec.top_k;
  const int64_t model_dim = weights.router.cols;
  const auto num_pairs = static_cast<size_t>(num_tokens * top_k);
  const ScratchScope scope(ctx.scratch);
  Routes routes = route_tokens(ctx, weights, x, num_tokens);
  drop_beyond_capacity(ctx, weights.spec, capacity, routes);
  telemetry.record(weights.moe_layer, {routes.experts, num_pairs}, {routes.weights, num_pairs});
  const ExpertGroups groups = group_by_expert(ctx, weights.spec, routes.experts, num_tokens);

  auto* hidden = ctx.scratch.allocate<float>(groups.num_slots * weights.experts.front().ffn_dim());
  auto* outputs = ctx.scratch.allocate<float>(groups.num_slots * model_dim);
  gate_up(ctx, weights, groups, x, num_tokens, hidden);
  down(ctx, weights, groups, hidden, outputs);

  float* shared_out = nullptr;
  if (weights.shared.ffn_dim() > 0) {
    shared_out = ctx.scratch.allocate<float>(num_tokens * model_dim);
    shared_ffn(ctx, weights, x, num_tokens, shared_out);
  }
  for_rows(ctx, num_tokens, [&](int64_t token) {
    float* y = out + token * model_dim;
    std::memset(y, 0, static_cast<size_t>(model_dim) * sizeof(float));
    for (int64_t choice = token * top_k; choice < (token + 1) * top_k; ++choice) {
      const int32_t slot = groups.slot_of_pair[choice];
      if (slot >= 0) axpy(ctx.isa, routes.weights[choice], outputs + slot * model_dim, model_dim, y);
    }
    if (shared_out != nullptr) add(ctx.isa, shared_out + token * model_dim, model_dim, y);
  });
}

}  // namespace witan
