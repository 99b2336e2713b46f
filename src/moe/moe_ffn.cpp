#include "moe/moe_ffn.h"

#include <algorithm>
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
  int32_t* begin;             // [num_experts + 1]
  int32_t* token;             // [num_slots] which token a slot computes
  int32_t* slot_of_pair;      // [num_tokens * top_k] where pair (token, choice) went
  std::vector<int32_t> used;  // experts with at least one token, most tokens first
};

struct Routes {
  int32_t* experts;  // [num_tokens, top_k]
  float* weights;    // [num_tokens, top_k]
};

Routes route_tokens(ComputeContext& ctx, const MoeWeights& weights, const float* x, int64_t num_tokens) {
  const RouterSpec& spec = weights.spec;
  Routes routes{.experts = ctx.scratch.allocate<int32_t>(num_tokens * spec.top_k),
                .weights = ctx.scratch.allocate<float>(num_tokens * spec.top_k)};
  const ScratchScope scope(ctx.scratch);
  auto* logits = ctx.scratch.allocate<float>(num_tokens * spec.num_experts);
  ComputeContext exact{.threads = ctx.threads, .scratch = ctx.scratch, .isa = ctx.isa, .precision = Precision::kExact};
  linear(exact, weights.router, x, num_tokens, logits);
  for_rows(ctx, num_tokens, [&](int64_t token) {
    route(ctx.isa, spec, logits + token * spec.num_experts, routes.experts + token * spec.top_k,
          routes.weights + token * spec.top_k);
  });
  return routes;
}

// Counting sort; within an expert the tokens stay in ascending order.
ExpertGroups group_by_expert(ComputeContext& ctx, const RouterSpec& spec, const int32_t* experts, int64_t num_tokens) {
  const int64_t num_slots = num_tokens * spec.top_k;
  ExpertGroups groups{.begin = ctx.scratch.allocate<int32_t>(spec.num_experts + 1),
                      .token = ctx.scratch.allocate<int32_t>(num_slots),
                      .slot_of_pair = ctx.scratch.allocate<int32_t>(num_slots),
                      .used = {}};
  std::fill_n(groups.begin, spec.num_experts + 1, 0);
  for (int64_t i = 0; i < num_slots; ++i) ++groups.begin[experts[i] + 1];
  for (int32_t e = 0; e < spec.num_experts; ++e) {
    if (groups.begin[e + 1] > 0) groups.used.push_back(e);
  }
  std::ranges::stable_sort(groups.used,
                           [&](int32_t a, int32_t b) { return groups.begin[a + 1] > groups.begin[b + 1]; });
  std::partial_sum(groups.begin, groups.begin + spec.num_experts + 1, groups.begin);
  auto* next = ctx.scratch.allocate<int32_t>(spec.num_experts);
  std::copy_n(groups.begin, spec.num_experts, next);
  for (int64_t i = 0; i < num_slots; ++i) {
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

// hidden [num_slots, ffn_dim] = silu(gate x) * up x of each slot's expert.
void gate_up(ComputeContext& ctx, const MoeWeights& weights, const ExpertGroups& groups, const float* x,
             int64_t num_tokens, float* hidden) {
  const FfnWeights& first = weights.experts.front();
  const int64_t ffn_dim = first.gate.rows;
  const int64_t num_slots = num_tokens * weights.spec.top_k;
  const ScratchScope scope(ctx.scratch);
  const ActivationFormat gate_format = activation_format(first.gate.type, ctx.precision);
  const ActivationFormat up_format = activation_format(first.up.type, ctx.precision);
  const StoredRows gate_rows = store_rows(ctx, gate_format, x, num_tokens, first.gate.cols, first.gate.cols);
  const StoredRows up_rows =
      up_format == gate_format ? gate_rows : store_rows(ctx, up_format, x, num_tokens, first.up.cols, first.up.cols);
  auto** gate_in =
      slot_pointers<const std::byte>(ctx, num_slots, [&](int64_t slot) { return gate_rows.rows[groups.token[slot]]; });
  auto** up_in =
      slot_pointers<const std::byte>(ctx, num_slots, [&](int64_t slot) { return up_rows.rows[groups.token[slot]]; });
  auto* up_out = ctx.scratch.allocate<float>(num_slots * ffn_dim);
  auto** gate_y = slot_pointers<float>(ctx, num_slots, [&](int64_t slot) { return hidden + slot * ffn_dim; });
  auto** up_y = slot_pointers<float>(ctx, num_slots, [&](int64_t slot) { return up_out + slot * ffn_dim; });

  const std::span<const ExpertItem> items = make_items(ctx, groups, first.gate.num_panels());
  ctx.threads.parallel_for(std::ssize(items), [&](int64_t i, int) {
    const ExpertItem& item = items[i];
    const FfnWeights& expert = weights.experts[item.expert];
    const int32_t slot = groups.begin[item.expert];
    const int32_t end = groups.begin[item.expert + 1];
    matmul(ctx.isa, expert.gate, gate_format, gate_in + slot, end - slot, item.panel_begin, item.panel_end,
           gate_y + slot);
    matmul(ctx.isa, expert.up, up_format, up_in + slot, end - slot, item.panel_begin, item.panel_end, up_y + slot);
    const int64_t begin_col = item.panel_begin * int64_t{kPanelRows};
    const int64_t num_cols = std::min(ffn_dim, item.panel_end * int64_t{kPanelRows}) - begin_col;
    for (int32_t s = slot; s < end; ++s) {
      swiglu(ctx.isa, gate_y[s] + begin_col, up_y[s] + begin_col, num_cols, gate_y[s] + begin_col);
    }
  });
}

// outputs [num_slots, model_dim] = down hidden of each slot's expert.
void down(ComputeContext& ctx, const MoeWeights& weights, const ExpertGroups& groups, const float* hidden,
          int64_t num_slots, float* outputs) {
  const PackedMatrix& first = weights.experts.front().down;
  const ScratchScope scope(ctx.scratch);
  const ActivationFormat format = activation_format(first.type, ctx.precision);
  const StoredRows rows = store_rows(ctx, format, hidden, num_slots, first.cols, first.cols);
  auto** y = slot_pointers<float>(ctx, num_slots, [&](int64_t slot) { return outputs + slot * first.rows; });
  const std::span<const ExpertItem> items = make_items(ctx, groups, first.num_panels());
  ctx.threads.parallel_for(std::ssize(items), [&](int64_t i, int) {
    const ExpertItem& item = items[i];
    const int32_t slot = groups.begin[item.expert];
    matmul(ctx.isa, weights.experts[item.expert].down, format, rows.rows + slot, groups.begin[item.expert + 1] - slot,
           item.panel_begin, item.panel_end, y + slot);
  });
}

}  // namespace

void dense_ffn(ComputeContext& ctx, const FfnWeights& weights, const float* x, int64_t num_tokens, float* out) {
  const int64_t ffn_dim = weights.gate.rows;
  const int64_t model_dim = weights.gate.cols;
  const ScratchScope scope(ctx.scratch);
  auto* gate = ctx.scratch.allocate<float>(num_tokens * ffn_dim);
  auto* up = ctx.scratch.allocate<float>(num_tokens * ffn_dim);
  const LinearOutput outputs[] = {{.matrix = &weights.gate, .y = gate, .stride = ffn_dim},
                                  {.matrix = &weights.up, .y = up, .stride = ffn_dim}};
  linear(ctx, x, num_tokens, model_dim, model_dim, outputs);
  swiglu_rows(ctx, gate, up, num_tokens, ffn_dim, gate);
  linear(ctx, weights.down, gate, num_tokens, out);
}

void moe_ffn(ComputeContext& ctx, const MoeWeights& weights, const FfnWeights* shared, const float* x,
             int64_t num_tokens, RouterTelemetry& telemetry, float* out) {
  const int64_t top_k = weights.spec.top_k;
  const int64_t model_dim = weights.router.cols;
  const int64_t num_slots = num_tokens * top_k;
  const ScratchScope scope(ctx.scratch);
  const Routes routes = route_tokens(ctx, weights, x, num_tokens);
  telemetry.record(weights.moe_layer, {routes.experts, static_cast<size_t>(num_slots)},
                   {routes.weights, static_cast<size_t>(num_slots)});
  const ExpertGroups groups = group_by_expert(ctx, weights.spec, routes.experts, num_tokens);

  auto* hidden = ctx.scratch.allocate<float>(num_slots * weights.experts.front().gate.rows);
  auto* outputs = ctx.scratch.allocate<float>(num_slots * model_dim);
  gate_up(ctx, weights, groups, x, num_tokens, hidden);
  down(ctx, weights, groups, hidden, num_slots, outputs);

  float* shared_out = nullptr;
  if (shared != nullptr) {
    shared_out = ctx.scratch.allocate<float>(num_tokens * model_dim);
    dense_ffn(ctx, *shared, x, num_tokens, shared_out);
  }
  for_rows(ctx, num_tokens, [&](int64_t token) {
    float* y = out + token * model_dim;
    std::memset(y, 0, static_cast<size_t>(model_dim) * sizeof(float));
    for (int64_t choice = token * top_k; choice < (token + 1) * top_k; ++choice) {
      axpy(ctx.isa, routes.weights[choice], outputs + groups.slot_of_pair[choice] * model_dim, model_dim, y);
    }
    if (shared_out != nullptr) add(ctx.isa, shared_out + token * model_dim, model_dim, y);
  });
}

}  // namespace witan
