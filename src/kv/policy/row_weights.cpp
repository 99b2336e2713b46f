#include "kv/policy/row_weights.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "kernels/elementwise/elementwise.h"

namespace witan {
namespace {

int64_t state_floats(const KvView& view) {
  return (int64_t{RowWeights::kMaxRows} * view.num_splits() * 2 + 15) / 16 * 16;
}

int64_t whole_splits(const KvView& view) { return int64_t{view.num_splits()} * kAttentionSplit; }

}  // namespace

int64_t RowWeights::scratch_floats(const KvView& view) {
  return kMaxRows * whole_splits(view) + state_floats(view) +
         (attention_scratch_bytes(view, kMaxRows) / static_cast<int64_t>(sizeof(float)) + 15) / 16 * 16;
}

RowWeights::RowWeights(const KvView& view, float* scratch)
    : view_(view),
      num_splits_(view.num_splits()),
      row_floats_(whole_splits(view)),
      weights_(scratch),
      states_(weights_ + kMaxRows * row_floats_),
      kernel_scratch_(states_ + state_floats(view)) {}

void RowWeights::compute(Isa isa, const AttentionRows& rows) {
  WITAN_CHECK(rows.num_rows <= kMaxRows, "{} rows", rows.num_rows);
  float* states[kMaxRows];
  float* weights[kMaxRows];
  for (int32_t split = 0; split < num_splits_; ++split) {
    for (int32_t r = 0; r < rows.num_rows; ++r) {
      states[r] = const_cast<float*>(state(r, split));
      weights[r] = const_cast<float*>(this->weights(r, split));
    }
    attention_weights(isa, view_, rows, split, states, weights, reinterpret_cast<std::byte*>(kernel_scratch_));
  }
}

RowWeights::Total RowWeights::total(int32_t r, const float* sink) const {
  const auto max_of = [&](int32_t split) { return static_cast<double>(state(r, split)[0]); };
  double max = sink == nullptr ? -std::numeric_limits<double>::infinity() : static_cast<double>(*sink);
  for (int32_t split = 0; split < num_splits_; ++split) max = std::fmax(max, max_of(split));
  double sum = sink == nullptr ? 0.0 : std::exp(static_cast<double>(*sink) - max);
  for (int32_t split = 0; split < num_splits_; ++split) {
    sum += static_cast<double>(state(r, split)[1]) * std::exp(max_of(split) - max);
  }
  return {.max = max, .sum = sum};
}

float RowWeights::share(const Total& total, int32_t r, int32_t split) const {
  return static_cast<float>(std::exp(static_cast<double>(state(r, split)[0]) - total.max) / total.sum);
}

void RowWeights::add_to(Isa isa, int32_t r, const float* sink, float factor, float* sums) const {
  const Total of_row = total(r, sink);
  for (int32_t split = 0; split < num_splits_; ++split) {
    const int32_t begin = view_.split_begin(split);
    axpy(isa, factor * share(of_row, r, split), weights(r, split), view_.split_begin(split + 1) - begin, sums + begin);
  }
}

void RowWeights::raise_to(int32_t r, const float* sink, float* largest) const {
  const Total of_row = total(r, sink);
  for (int32_t split = 0; split < num_splits_; ++split) {
    const float factor = share(of_row, r, split);
    const float* of_split = weights(r, split);
    const int32_t begin = view_.split_begin(split);
    const int32_t end = view_.split_begin(split + 1);
    for (int32_t i = begin; i < end; ++i) largest[i] = std::max(largest[i], factor * of_split[i - begin]);
  }
}

float RowWeights::merge_largest(int32_t num_rows, float shift, float* largest, float* of_row) const {
  const float before = shift;
  for (int32_t r = 0; r < num_rows; ++r) shift = std::max(shift, max(r));
  if (shift == -std::numeric_limits<float>::infinity()) return shift;
  const float rescale = std::exp(before - shift);
  for (int32_t i = 0; i < view_.num_entries; ++i) largest[i] *= rescale;
  for (int32_t r = 0; r < num_rows; ++r) {
    exponentials(r, shift, of_row);
    for (int32_t i = 0; i < view_.num_entries; ++i) largest[i] = std::max(largest[i], of_row[i]);
  }
  return shift;
}

float RowWeights::max(int32_t r) const {
  float max = -std::numeric_limits<float>::infinity();
  for (int32_t split = 0; split < num_splits_; ++split) max = std::max(max, state(r, split)[0]);
  return max;
}

void RowWeights::exponentials(int32_t r, float shift, float* out) const {
  for (int32_t split = 0; split < num_splits_; ++split) {
    const float factor = std::exp(state(r, split)[0] - shift);
    const int32_t begin = view_.split_begin(split);
    const int32_t end = view_.split_begin(split + 1);
    for (int32_t i = begin; i < end; ++i) out[i] = factor * weights(r, split)[i - begin];
  }
}

}  // namespace witan
