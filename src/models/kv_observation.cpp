#include "models/kv_observation.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kv/policy/row_weights.h"

namespace witan {
namespace {

void save_queries(QueryWindow& window, const SequenceSlice& slice, int32_t layer, const AttentionSpec& spec,
                  const float* queries) {
  WITAN_CHECK(window.num_heads() == spec.num_heads && window.key_dim() == spec.key_dim,
              "queries of {} x {} for a window of {} x {}", spec.num_heads, spec.key_dim, window.num_heads(),
              window.key_dim());
  window.scoring(layer) = {.scale = spec.scale, .sinks = spec.sinks};
  const int64_t num_floats = int64_t{spec.num_heads} * spec.key_dim;
  const int32_t begin = std::max(slice.first_token, window.first_token());
  const int32_t end = std::min(slice.first_token + slice.num_tokens, window.first_token() + window.num_tokens());
  for (int32_t token = begin; token < end; ++token) {
    const int64_t row = slice.first_row + (token - slice.first_token);
    std::memcpy(window.queries(layer, token), queries + row * num_floats,
                static_cast<size_t>(num_floats) * sizeof(float));
  }
}

// Calls take(weights, r, head, sink) with the weights of each row of the slice, those of a head in the order of their
// tokens and by one thread. view_of(head) has the entries that they are over.
template <typename ViewOf, typename Take>
void for_row_weights(ForwardContext& ctx, const ForwardBatch& batch, const SequenceSlice& slice,
                     const AttentionSpec& spec, const float* queries, const ViewOf& view_of, const Take& take) {
  ComputeContext& compute = ctx.compute;
  const ScratchScope scope(compute.scratch);
  const int32_t group = spec.num_heads / spec.num_kv_heads;
  int64_t scratch_floats = 0;
  for (int32_t head = 0; head < spec.num_kv_heads; ++head) {
    scratch_floats = std::max(scratch_floats, RowWeights::scratch_floats(view_of(head)));
  }
  const bool buffer_per_head = spec.num_kv_heads <= compute.threads.num_threads();
  const int64_t num_buffers = buffer_per_head ? spec.num_kv_heads : compute.threads.num_threads();
  auto* scratch = compute.scratch.allocate<float>(scratch_floats * num_buffers);
  compute.threads.parallel_for(spec.num_kv_heads, [&](int64_t h, int thread) {
    const auto head = static_cast<int32_t>(h);
    RowWeights weights(view_of(head), scratch + (buffer_per_head ? h : thread) * scratch_floats);
    const int32_t num_rows = slice.num_tokens * group;
    for (int32_t first = 0; first < num_rows; first += RowWeights::kMaxRows) {
      const int32_t count = std::min(RowWeights::kMaxRows, num_rows - first);
      const float* pointers[RowWeights::kMaxRows];
      int32_t positions[RowWeights::kMaxRows];
      const auto query_head = [&](int32_t r) { return head * group + (first + r) % group; };
      for (int32_t r = 0; r < count; ++r) {
        const int64_t row = slice.first_row + (first + r) / group;
        pointers[r] = queries + (row * spec.num_heads + query_head(r)) * spec.key_dim;
        positions[r] = batch.positions[static_cast<size_t>(row)];
      }
      weights.compute(compute.isa,
                      {.queries = pointers, .positions = positions, .num_rows = count, .scale = spec.scale});
      for (int32_t r = 0; r < count; ++r) {
        take(weights, r, head, spec.sinks == nullptr ? nullptr : spec.sinks + query_head(r));
      }
    }
  });
}

KvView view_with_slice(const ForwardContext& ctx, const SequenceSlice& slice, int32_t layer, int32_t head) {
  return ctx.kv.view(slice.kv_sequence, layer, head, slice.num_entries(ctx.kv, layer, head) + slice.num_tokens);
}

// Rows are added one by one, so that sums do not depend on how a text is cut into slices.
void add_mass(ForwardContext& ctx, const ForwardBatch& batch, const SequenceSlice& slice, int32_t layer,
              const AttentionSpec& spec, const float* queries) {
  for_row_weights(
      ctx, batch, slice, spec, queries, [&](int32_t head) { return view_with_slice(ctx, slice, layer, head); },
      [&](const RowWeights& weights, int32_t r, int32_t head, const float* sink) {
        weights.add_to(ctx.compute.isa, r, sink, 1.0f, slice.evidence->mass->of(layer, head));
      });
}

void raise_repetition(ForwardContext& ctx, const ForwardBatch& batch, const SequenceSlice& slice, int32_t layer,
                      const AttentionSpec& spec, const float* queries) {
  RepetitionAttention& attention = *slice.evidence->repetition;
  const int32_t num_prompt_tokens = slice.first_token - slice.num_uncommitted;
  std::vector<RepetitionView> views;
  std::vector<std::vector<float>> largest;
  for (int32_t head = 0; head < spec.num_kv_heads; ++head) {
    views.emplace_back(view_with_slice(ctx, slice, layer, head), slice.repeated_chunk, attention.num_sinks(),
                       num_prompt_tokens);
    largest.emplace_back(static_cast<size_t>(RowWeights(views.back().view(), nullptr).row_floats()));
  }
  const auto of_head = [&](int32_t head) { return largest[static_cast<size_t>(head)].data(); };
  for_row_weights(
      ctx, batch, slice, spec, queries, [&](int32_t head) { return views[static_cast<size_t>(head)].view(); },
      [&](const RowWeights& weights, int32_t r, int32_t head, const float* sink) {
        weights.raise_to(r, sink, of_head(head));
      });
  for (int32_t head = 0; head < spec.num_kv_heads; ++head) {
    views[static_cast<size_t>(head)].raise(of_head(head), attention.of(layer, head));
  }
}

bool wants_repetition(const SequenceSlice& slice) {
  return !slice.repeated_chunk.empty() && slice.evidence->repetition != nullptr;
}

// The slice's tokens that the moments leave out.
int32_t num_skipped_tokens(const SequenceSlice& slice, const QueryMoments& moments) {
  return std::clamp(moments.first_token() - slice.first_token, 0, slice.num_tokens);
}

}  // namespace

void observe_queries(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const AttentionSpec& spec,
                     const float* queries) {
  for (const SequenceSlice& slice : batch.slices) {
    if (slice.evidence == nullptr) continue;
    if (slice.evidence->window != nullptr) save_queries(*slice.evidence->window, slice, layer, spec, queries);
    if (spec.window > 0) continue;
    if (slice.evidence->mass != nullptr) add_mass(ctx, batch, slice, layer, spec, queries);
    if (wants_repetition(slice)) raise_repetition(ctx, batch, slice, layer, spec, queries);
  }
}

void observe_unrotated_queries(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const AttentionSpec& spec,
                               const RopeAngles& angles, int32_t rope_offset, const float* queries) {
  if (spec.window > 0) return;
  for (const SequenceSlice& slice : batch.slices) {
    if (slice.evidence == nullptr || slice.evidence->moments == nullptr) continue;
    QueryMoments& moments = *slice.evidence->moments;
    WITAN_CHECK(moments.num_heads() == spec.num_heads && moments.key_dim(layer) == spec.key_dim,
                "queries of {} x {} for moments of {} x {}", spec.num_heads, spec.key_dim, moments.num_heads(),
                moments.key_dim(layer));
    moments.scoring(layer) = {
        .scale = spec.scale, .sinks = spec.sinks, .rope = &angles.table, .rope_offset = rope_offset};
    const int32_t num_skipped = num_skipped_tokens(slice, moments);
    const int32_t num_tokens = slice.num_tokens - num_skipped;
    if (num_tokens == 0) continue;
    const float* first = queries + int64_t{slice.first_row + num_skipped} * spec.num_heads * spec.key_dim;
    ctx.compute.threads.parallel_for(spec.num_heads, [&](int64_t h, int) {
      const auto head = static_cast<int32_t>(h);
      moments.add(layer, head, first + h * spec.key_dim, int64_t{spec.num_heads} * spec.key_dim, num_tokens);
    });
    moments.count(layer, num_tokens);
  }
}

std::vector<int32_t> observed_unrotated_rows(const ForwardBatch& batch) {
  std::vector<int32_t> rows;
  for (const SequenceSlice& slice : batch.slices) {
    if (slice.evidence == nullptr || slice.evidence->moments == nullptr) continue;
    for (int32_t i = num_skipped_tokens(slice, *slice.evidence->moments); i < slice.num_tokens; ++i) {
      rows.push_back(slice.first_row + i);
    }
  }
  return rows;
}

std::vector<int32_t> observed_rows(const ForwardBatch& batch) {
  std::vector<int32_t> rows;
  for (const SequenceSlice& slice : batch.slices) {
    if (slice.evidence == nullptr) continue;
    const KvEvidence& evidence = *slice.evidence;
    for (int32_t i = 0; i < slice.num_tokens; ++i) {
      const bool in_window = evidence.window != nullptr && evidence.window->has(slice.first_token + i);
      if (evidence.mass != nullptr || wants_repetition(slice) || in_window) rows.push_back(slice.first_row + i);
    }
  }
  return rows;
}

}  // namespace witan
