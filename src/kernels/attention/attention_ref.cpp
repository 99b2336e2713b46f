#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention/attention_variants.h"
#include "tensor/half.h"

namespace witan {
namespace {

constexpr double kNothing = -std::numeric_limits<double>::infinity();

bool sees(const KvView& view, const AttentionRows& rows, int32_t row, int32_t entry) {
  const int64_t query_position = rows.positions[row];
  const int64_t position = view.positions == nullptr ? entry : view.positions[entry];
  return position <= query_position && (rows.window <= 0 || position > query_position - rows.window);
}

bool any_row_sees(const KvView& view, const AttentionRows& rows, int32_t entry) {
  for (int32_t r = 0; r < rows.num_rows; ++r) {
    if (sees(view, rows, r, entry)) return true;
  }
  return false;
}

// The entries of a split, decoded; zeros for those that no row sees, whose blocks may be gone.
struct Entries {
  int32_t first;
  int32_t count;
  std::vector<float> keys;    // [count][key_dim]
  std::vector<float> values;  // [count][value_dim]

  Entries(const KvView& view, const AttentionRows& rows, int32_t split)
      : first(split * kAttentionSplit), count(std::min(kAttentionSplit, view.num_entries - first)) {
    const int64_t key_dim = view.format.key_dim;
    const int64_t value_dim = view.format.value_dim;
    keys.resize(static_cast<size_t>(count * key_dim));
    values.resize(static_cast<size_t>(count * value_dim));
    for (int32_t i = 0; i < count; ++i) {
      const int32_t entry = first + i;
      if (!any_row_sees(view, rows, entry)) continue;
      kv_load(view.format, view.blocks[entry / kKvBlockSize], entry % kKvBlockSize, keys.data() + i * key_dim,
              values.data() + i * value_dim);
    }
  }
};

double round_to_bf16(double x) { return bf16_to_f32(f32_to_bf16(static_cast<float>(x))); }

double round_to(AttentionArithmetic arithmetic, double x) {
  return arithmetic == AttentionArithmetic::kBF16 ? round_to_bf16(x) : x;
}

// Writes max and denominator to `state`; returns exp(score - max) of the split's entries, 0 for those not seen.
std::vector<double> weigh_row(AttentionArithmetic arithmetic, const KvView& view, const AttentionRows& rows,
                              int32_t row, const Entries& entries, float* state) {
  const int32_t key_dim = view.format.key_dim;
  std::vector<double> scores(static_cast<size_t>(entries.count), kNothing);
  double max = kNothing;
  for (int32_t i = 0; i < entries.count; ++i) {
    if (!sees(view, rows, row, entries.first + i)) continue;
    double dot = 0.0;
    for (int32_t d = 0; d < key_dim; ++d) {
      dot += round_to(arithmetic, rows.queries[row][d]) *
             static_cast<double>(
                 entries.keys[static_cast<size_t>(i) * static_cast<size_t>(key_dim) + static_cast<size_t>(d)]);
    }
    const double bias = rows.biases == nullptr ? 0.0 : static_cast<double>(rows.biases[row][entries.first + i]);
    scores[static_cast<size_t>(i)] = dot * static_cast<double>(rows.scale) + bias;
    max = std::fmax(max, scores[static_cast<size_t>(i)]);
  }
  double denominator = 0.0;
  for (double& score : scores) {
    score = score == kNothing ? 0.0 : std::exp(score - max);
    denominator += score;
  }
  state[0] = static_cast<float>(max);
  state[1] = static_cast<float>(denominator);
  return scores;
}

void attend_row(AttentionArithmetic arithmetic, const KvView& view, const AttentionRows& rows, int32_t row,
                const Entries& entries, float* state) {
  const int32_t value_dim = view.format.value_dim;
  const std::vector<double> weights = weigh_row(arithmetic, view, rows, row, entries, state);
  std::vector<double> sum(static_cast<size_t>(value_dim), 0.0);
  for (int32_t i = 0; i < entries.count; ++i) {
    if (!sees(view, rows, row, entries.first + i)) continue;
    const double weight = round_to(arithmetic, weights[static_cast<size_t>(i)]);
    for (int32_t c = 0; c < value_dim; ++c) {
      sum[static_cast<size_t>(c)] +=
          weight *
          static_cast<double>(
              entries.values[static_cast<size_t>(i) * static_cast<size_t>(value_dim) + static_cast<size_t>(c)]);
    }
  }
  for (int32_t c = 0; c < value_dim; ++c) state[2 + c] = static_cast<float>(sum[static_cast<size_t>(c)]);
}

}  // namespace

void attention_split_reference(AttentionArithmetic arithmetic, const KvView& view, const AttentionRows& rows,
                               int32_t split, float* const* states) {
  const Entries entries(view, rows, split);
  for (int32_t r = 0; r < rows.num_rows; ++r) attend_row(arithmetic, view, rows, r, entries, states[r]);
}

void attention_weights_reference(const KvView& view, const AttentionRows& rows, int32_t split, float* const* states,
                                 float* const* weights) {
  const Entries entries(view, rows, split);
  for (int32_t r = 0; r < rows.num_rows; ++r) {
    const std::vector<double> row = weigh_row(AttentionArithmetic::kF32, view, rows, r, entries, states[r]);
    std::fill_n(weights[r], kAttentionSplit, 0.0f);
    std::ranges::copy(row, weights[r]);
  }
}

void merge_attention_state_reference(float* into, const float* next, int32_t value_dim) {
  if (next[1] == 0.0f) return;
  if (into[1] == 0.0f) {
    for (int32_t i = 0; i < 2 + value_dim; ++i) into[i] = next[i];
    return;
  }
  const double max = std::fmax(into[0], next[0]);
  const double into_factor = std::exp(static_cast<double>(into[0]) - max);
  const double next_factor = std::exp(static_cast<double>(next[0]) - max);
  for (int32_t i = 1; i < 2 + value_dim; ++i) {
    into[i] =
        static_cast<float>(static_cast<double>(into[i]) * into_factor + static_cast<double>(next[i]) * next_factor);
  }
  into[0] = static_cast<float>(max);
}

void finish_attention_reference(float* state, const float* sink, int32_t value_dim, float* out) {
  if (sink != nullptr && *sink > -std::numeric_limits<float>::infinity()) {
    const double max = std::fmax(state[0], *sink);
    const double factor = std::exp(static_cast<double>(state[0]) - max);
    for (int32_t i = 1; i < 2 + value_dim; ++i) state[i] = static_cast<float>(static_cast<double>(state[i]) * factor);
    state[1] = static_cast<float>(static_cast<double>(state[1]) + std::exp(static_cast<double>(*sink) - max));
    state[0] = static_cast<float>(max);
  }
  for (int32_t c = 0; c < value_dim; ++c) out[c] = state[1] == 0.0f ? 0.0f : state[2 + c] / state[1];
}

}  // namespace witan
