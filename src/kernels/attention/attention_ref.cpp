#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "kernels/attention/attention_variants.h"
#include "kernels/attention/hadamard.h"
#include "kernels/attention/hadamard_entries.h"
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

// Components that share a scale, of kQ8 and the kHadamard codecs.
int32_t scale_group(const KvBlockFormat& format, int32_t dim) { return format.is_hadamard() ? dim : kKvQ8Group; }

// The entries of a split, decoded, turned ones as they are; zeros for those that no row sees, whose blocks may be gone.
struct Entries {
  int32_t first;
  int32_t count;
  std::vector<float> keys;    // [count][key_dim]
  std::vector<float> values;  // [count][value_dim]

  Entries(AttentionArithmetic arithmetic, const KvView& view, const AttentionRows& rows, int32_t split)
      : first(view.split_begin(split)), count(view.split_begin(split + 1) - first) {
    const int64_t key_dim = view.format.key_dim;
    const int64_t value_dim = view.format.value_dim;
    keys.resize(static_cast<size_t>(count * key_dim));
    values.resize(static_cast<size_t>(count * value_dim));
    for (int32_t i = 0; i < count; ++i) {
      const int32_t entry = first + i;
      if (!any_row_sees(view, rows, entry)) continue;
      const auto load = view.format.turned_key_dim() != 0 ? load_turned : kv_load;
      load(view.format, view.block_of(entry), view.slot_of(entry), keys.data() + i * key_dim,
           values.data() + i * value_dim);
    }
    if (arithmetic != AttentionArithmetic::kBF16) return;
    for (float& x : keys) x = bf16_to_f32(f32_to_bf16(x));
    for (float& x : values) x = bf16_to_f32(f32_to_bf16(x));
  }
};

// The view as if all of it had the format of one split, the only one that is then read.
KvView with_format_of(const KvView& view, int32_t split) {
  KvView of_split = view;
  of_split.format = view.format_of_split(split);
  of_split.demoted_channels = view.channels_of_split(split);
  return of_split;
}

// Of a row's query the components that the keys of such a view have.
std::vector<float> query_of(const KvView& view, const AttentionRows& rows, int32_t row) {
  const float* query = rows.queries[row];
  std::vector<float> chosen(query, query + view.format.key_dim);
  if (view.demoted_channels == nullptr) return chosen;
  for (size_t i = 0; i < chosen.size(); ++i) chosen[i] = query[view.demoted_channels[i]];
  return chosen;
}

double round_to_bf16(double x) { return bf16_to_f32(f32_to_bf16(static_cast<float>(x))); }

// Rounds groups of components as keys of 8 bits are rounded.
std::vector<double> round_to_int8(const float* x, int32_t dim, int32_t group) {
  std::vector<double> rounded(static_cast<size_t>(dim));
  for (int32_t begin = 0; begin < dim; begin += group) {
    const int32_t end = std::min(dim, begin + group);
    float max = 0.0f;
    bool finite = true;
    for (int32_t i = begin; i < end; ++i) {
      max = std::fmax(max, std::fabs(x[i]));
      finite = finite && std::isfinite(x[i]);
    }
    const float scale = max / 127.0f;
    const float inverse = scale >= std::numeric_limits<float>::min() ? 1.0f / scale : 0.0f;
    for (int32_t i = begin; i < end; ++i) {
      rounded[static_cast<size_t>(i)] =
          finite ? static_cast<double>(std::nearbyint(x[i] * inverse)) * static_cast<double>(scale)
                 : std::numeric_limits<double>::quiet_NaN();
    }
  }
  return rounded;
}

std::vector<double> round_query(AttentionArithmetic arithmetic, const KvBlockFormat& format,
                                std::vector<float> turned) {
  const int32_t dim = format.key_dim;
  if (format.turned_key_dim() != 0) hadamard_rotate(turned.data(), format.turned_key_dim());
  if (arithmetic == AttentionArithmetic::kInt8) return round_to_int8(turned.data(), dim, scale_group(format, dim));
  std::vector<double> rounded(turned.begin(), turned.end());
  if (arithmetic == AttentionArithmetic::kBF16) std::ranges::transform(rounded, rounded.begin(), round_to_bf16);
  return rounded;
}

// kInt8: the weights of entries from `first` on, which share a step, rounded for a group of components of the values;
// kNothing of those not seen, whose blocks may be gone.
void round_weights_to_int8(const KvView& view, int32_t first, int32_t group, std::span<double> weights) {
  const auto scale_of = [&](size_t i) {
    const int32_t entry = first + static_cast<int32_t>(i);
    const std::byte* scales = view.block_of(entry) + view.format.value_scales_offset();
    return static_cast<double>(reinterpret_cast<const float*>(scales)[group * kKvBlockSize + view.slot_of(entry)]);
  };
  double peak = 0.0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] != kNothing) peak = std::fmax(peak, weights[i] * scale_of(i));  // NaN is passed over
  }
  const double step = peak < 0x1p-100 ? 0.0 : peak / 255.0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const double scale = weights[i] == kNothing ? 0.0 : scale_of(i);
    if (weights[i] == kNothing || std::isnan(scale)) continue;
    weights[i] = step == 0.0 || scale == 0.0 ? 0.0 : std::nearbyint(weights[i] * scale / step) * step / scale;
  }
}

double dot(const std::vector<double>& query, const float* key) {
  double sum = 0.0;
  for (size_t d = 0; d < query.size(); ++d) sum += query[d] * static_cast<double>(key[d]);
  return sum;
}

// Writes max and denominator to `state`; returns exp(score - max) of the split's entries, 0 for those not seen.
std::vector<double> weigh_row(AttentionArithmetic arithmetic, const KvView& view, const AttentionRows& rows,
                              int32_t row, const Entries& entries, float* state) {
  const std::vector<double> query = round_query(arithmetic, view.format, query_of(view, rows, row));
  std::vector<double> scores(static_cast<size_t>(entries.count), kNothing);
  double max = kNothing;
  for (int32_t i = 0; i < entries.count; ++i) {
    if (!sees(view, rows, row, entries.first + i)) continue;
    const double bias = rows.biases == nullptr ? 0.0 : static_cast<double>(rows.biases[row][entries.first + i]);
    const double product = dot(query, entries.keys.data() + int64_t{i} * view.format.key_dim);
    scores[static_cast<size_t>(i)] = product * static_cast<double>(rows.scale) + bias;
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
  const auto add_components = [&](const std::vector<double>& rounded, int32_t begin, int32_t end) {
    for (int32_t i = 0; i < entries.count; ++i) {
      if (!sees(view, rows, row, entries.first + i)) continue;
      for (int32_t c = begin; c < end; ++c) {
        sum[static_cast<size_t>(c)] +=
            rounded[static_cast<size_t>(i)] *
            static_cast<double>(
                entries.values[static_cast<size_t>(i) * static_cast<size_t>(value_dim) + static_cast<size_t>(c)]);
      }
    }
  };
  if (arithmetic == AttentionArithmetic::kInt8) {
    const int32_t group = scale_group(view.format, value_dim);
    for (int32_t begin = 0; begin < value_dim; begin += group) {
      std::vector<double> rounded = weights;
      for (int32_t i = 0; i < entries.count; ++i) {
        if (!sees(view, rows, row, entries.first + i)) rounded[static_cast<size_t>(i)] = kNothing;
      }
      for (int32_t i = 0; i < entries.count; i += kWeightStep) {
        const auto count = static_cast<size_t>(std::min(kWeightStep, entries.count - i));
        round_weights_to_int8(view, entries.first + i, begin / group,
                              std::span(rounded).subspan(static_cast<size_t>(i), count));
      }
      add_components(rounded, begin, std::min(value_dim, begin + group));
    }
  } else {
    std::vector<double> rounded = weights;
    if (arithmetic == AttentionArithmetic::kBF16) std::ranges::transform(rounded, rounded.begin(), round_to_bf16);
    add_components(rounded, 0, value_dim);
  }
  for (int32_t c = 0; c < value_dim; ++c) state[2 + c] = static_cast<float>(sum[static_cast<size_t>(c)]);
  if (view.format.turned_key_dim() != 0) hadamard_rotate(state + 2, value_dim);
}

}  // namespace

void attention_split_reference(AttentionArithmetic arithmetic, const KvView& all, const AttentionRows& rows,
                               int32_t split, float* const* states) {
  const KvView view = with_format_of(all, split);
  const Entries entries(arithmetic, view, rows, split);
  for (int32_t r = 0; r < rows.num_rows; ++r) attend_row(arithmetic, view, rows, r, entries, states[r]);
}

void attention_weights_reference(const KvView& all, const AttentionRows& rows, int32_t split, float* const* states,
                                 float* const* weights) {
  const KvView view = with_format_of(all, split);
  const Entries entries(AttentionArithmetic::kF32, view, rows, split);
  for (int32_t r = 0; r < rows.num_rows; ++r) {
    const std::vector<double> row = weigh_row(AttentionArithmetic::kF32, view, rows, r, entries, states[r]);
    std::fill_n(weights[r], kAttentionSplit, 0.0f);
    std::ranges::copy(row, weights[r]);
  }
}

void attention_largest_scores_reference(AttentionArithmetic arithmetic, const KvView& all, const AttentionRows& rows,
                                        int32_t split, float* largest) {
  const KvView view = with_format_of(all, split);
  const Entries entries(arithmetic, view, rows, split);
  const int32_t key_dim = view.format.key_dim;
  std::vector<double> of_all(static_cast<size_t>(entries.count), kNothing);
  for (int32_t r = 0; r < rows.num_rows; ++r) {
    const std::vector<double> query = round_query(arithmetic, view.format, query_of(view, rows, r));
    for (int32_t i = 0; i < entries.count; ++i) {
      double& of_entry = of_all[static_cast<size_t>(i)];
      of_entry = std::fmax(of_entry, dot(query, entries.keys.data() + int64_t{i} * key_dim));
    }
  }
  std::ranges::transform(of_all, largest, [](double score) { return static_cast<float>(score); });
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
