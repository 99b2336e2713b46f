#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "base/isa.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/hadamard.h"
#include "kernels/attention/hadamard_entries.h"
#include "kernels/supported_isas.h"
#include "tensor/half.h"
#include "tensor/random_bits.h"

namespace witan::test {

struct AlignedDelete {
  void operator()(std::byte* bytes) const { std::free(bytes); }
};
using AlignedBytes = std::unique_ptr<std::byte[], AlignedDelete>;

// 64-byte aligned, every byte 0xff: NaN in each float format and in the scales of kQ8, so that whatever is read without
// having been written shows.
inline AlignedBytes poisoned_bytes(int64_t num_bytes) {
  const auto size = static_cast<size_t>((num_bytes + 63) / 64 * 64);
  AlignedBytes bytes(static_cast<std::byte*>(std::aligned_alloc(64, size)));
  std::memset(bytes.get(), 0xff, size);
  return bytes;
}

// Entries of one kv head in exactly as many blocks as they need.
struct KvEntries {
  KvBlockFormat format;
  std::vector<AlignedBytes> storage;
  std::vector<const std::byte*> blocks;
  std::vector<std::byte*> writable;
  int32_t num_entries;
  std::vector<int32_t> positions;  // empty: entry i is at position i

  KvEntries(const KvBlockFormat& block_format, int32_t count, uint64_t seed = 1, float key_magnitude = 1.0f)
      : format(block_format), num_entries(count) {
    for (int32_t i = 0; i < (count + kKvBlockSize - 1) / kKvBlockSize; ++i) {
      storage.push_back(poisoned_bytes(format.block_bytes()));
      writable.push_back(storage.back().get());
      blocks.push_back(storage.back().get());
    }
    // What is written in whole blocks has entries behind the last one, which nobody sees.
    const bool blockwise = kv_codec_is_blockwise(format.codec);
    const int32_t num_stored = blockwise ? static_cast<int32_t>(storage.size()) * kKvBlockSize : count;
    keys_.resize(static_cast<size_t>(blockwise ? num_stored * format.key_dim : 0));
    values_.resize(static_cast<size_t>(blockwise ? num_stored * format.value_dim : 0));
    RandomBits random(seed);
    std::vector<float> key(static_cast<size_t>(format.key_dim));
    std::vector<float> value(static_cast<size_t>(format.value_dim));
    for (int32_t i = 0; i < num_stored; ++i) {
      for (float& k : key) k = key_magnitude * random.next_signed_unit();
      for (float& v : value) v = random.next_signed_unit();
      store(i, key, value);
    }
  }

  void store(int32_t entry, const std::vector<float>& key, const std::vector<float>& value) {
    const int32_t block = entry / kKvBlockSize;
    std::byte* bytes = writable[static_cast<size_t>(block)];
    if (!kv_codec_is_blockwise(format.codec)) {
      return kv_store(format, bytes, entry % kKvBlockSize, key.data(), value.data());
    }
    std::ranges::copy(key, keys_.begin() + entry * format.key_dim);
    std::ranges::copy(value, values_.begin() + entry * format.value_dim);
    kv_store_block(Isa::kReference, format, bytes, kKvBlockSize,
                   {.keys = keys_.data() + block * kKvBlockSize * format.key_dim,
                    .key_stride = format.key_dim,
                    .values = values_.data() + block * kKvBlockSize * format.value_dim,
                    .value_stride = format.value_dim});
  }

  // Its first `count` entries; all by default.
  KvView view(int32_t count = -1) const {
    return {.format = format,
            .blocks = blocks.data(),
            .num_entries = count < 0 ? num_entries : count,
            .positions = positions.empty() ? nullptr : positions.data()};
  }

 private:
  // Of what is written in whole blocks: what they were made of.
  std::vector<float> keys_;
  std::vector<float> values_;
};

struct Queries {
  std::vector<std::vector<float>> rows;
  std::vector<const float*> pointers;
  std::vector<int32_t> positions;
  float scale;
  int32_t window = 0;

  Queries(int32_t key_dim, std::vector<int32_t> row_positions, uint64_t seed = 2)
      : positions(std::move(row_positions)), scale(1.0f / std::sqrt(static_cast<float>(key_dim))) {
    RandomBits random(seed);
    for (size_t r = 0; r < positions.size(); ++r) {
      rows.emplace_back(static_cast<size_t>(key_dim));
      for (float& q : rows.back()) q = 3.0f * random.next_signed_unit();
    }
    for (const auto& row : rows) pointers.push_back(row.data());
  }

  // Rows [begin, end).
  AttentionRows tile(size_t begin, size_t end) const {
    return {.queries = pointers.data() + begin,
            .positions = positions.data() + begin,
            .num_rows = static_cast<int32_t>(end - begin),
            .scale = scale,
            .window = window};
  }
};

// A kernel to test: an instruction set, and the precision that chooses its arithmetic.
struct Variant {
  Isa isa;
  Precision precision;

  AttentionArithmetic arithmetic(const KvBlockFormat& format) const {
    return attention_arithmetic(isa, format, precision);
  }
};

inline std::string describe(const Variant& variant) {
  return fmt::format("{} {}", isa_name(variant.isa), variant.precision == Precision::kFast ? "fast" : "exact");
}

// Those that this machine can run and whose results for `format` are their own.
inline std::vector<Variant> variants(const KvBlockFormat& format) {
  std::vector<Variant> all;
  for (Isa isa : supported_isas()) {
    all.push_back({isa, Precision::kExact});
    const Variant fast{isa, Precision::kFast};
    if (fast.arithmetic(format) != AttentionArithmetic::kF32) all.push_back(fast);
  }
  return all;
}

using State = std::vector<float>;  // [reference, denominator, weighted sum]

inline State empty_state(int32_t value_dim) {
  State state(static_cast<size_t>(attention_state_floats(value_dim)), 0.0f);
  state[0] = -std::numeric_limits<float>::infinity();
  return state;
}

// The states of all rows of a tile over one split.
inline std::vector<State> split_states(const Variant& variant, const KvView& view, const AttentionRows& rows,
                                       int32_t split) {
  const auto num_floats = static_cast<size_t>(attention_state_floats(view.format.value_dim));
  // One float more, to see that nothing is written past the end.
  std::vector<State> states(static_cast<size_t>(rows.num_rows), State(num_floats + 1, 12345.0f));
  std::vector<float*> pointers;
  for (State& state : states) pointers.push_back(state.data());
  const AlignedBytes scratch = poisoned_bytes(attention_scratch_bytes(view, rows.num_rows));
  attention_split(variant.isa, variant.precision, view, rows, split, pointers.data(), scratch.get());
  for (State& state : states) {
    EXPECT_EQ(state.back(), 12345.0f);
    state.pop_back();
  }
  return states;
}

// The states of all rows over all splits, merged in order.
inline std::vector<State> attend(const Variant& variant, const KvView& view, const AttentionRows& rows) {
  std::vector<State> total(static_cast<size_t>(rows.num_rows), empty_state(view.format.value_dim));
  for (int32_t split = 0; split < view.num_splits(); ++split) {
    const std::vector<State> next = split_states(variant, view, rows, split);
    for (size_t r = 0; r < total.size(); ++r) {
      merge_attention_state(variant.isa, total[r].data(), next[r].data(), view.format.value_dim);
    }
  }
  return total;
}

inline std::vector<float> finish(Isa isa, State state, const float* sink = nullptr) {
  std::vector<float> out(state.size() - 2);
  finish_attention(isa, state.data(), sink, static_cast<int32_t>(out.size()), out.data());
  return out;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// As AttentionArithmetic::kInt8 rounds queries.
inline void round_to_int8(std::vector<float>& x, size_t group) {
  for (size_t begin = 0; begin < x.size(); begin += group) {
    const auto end = x.begin() + static_cast<std::ptrdiff_t>(std::min(x.size(), begin + group));
    float max = 0.0f;
    for (auto at = x.begin() + static_cast<std::ptrdiff_t>(begin); at != end; ++at) max = std::max(max, std::fabs(*at));
    const float scale = max / 127.0f;
    for (auto at = x.begin() + static_cast<std::ptrdiff_t>(begin); at != end; ++at) {
      *at = max == 0.0f ? 0.0f : std::nearbyint(*at * (1.0f / scale)) * scale;
    }
  }
}

// x times the orthonormal Hadamard matrix, in blocks of the largest power of two that divides x's size; with `bounds`,
// times the magnitudes of its elements.
inline std::vector<double> turned(const std::vector<double>& x, bool bounds = false) {
  const auto size = static_cast<size_t>(hadamard_size(static_cast<int32_t>(x.size())));
  std::vector<double> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    double sum = 0.0;
    for (size_t j = 0; j < size; ++j) {
      const double term = x[i / size * size + j];
      sum += bounds || std::popcount(i % size & j) % 2 == 0 ? term : -term;
    }
    out[i] = sum / std::sqrt(static_cast<double>(size));
  }
  return out;
}

// Attention of one row in double over the entries as they were stored, all at once, and how far a kernel of the given
// arithmetic may be from it.
struct Oracle {
  std::vector<double> out;
  std::vector<double> tolerance;

  Oracle(const KvView& view, const AttentionRows& rows, int32_t row,
         AttentionArithmetic arithmetic = AttentionArithmetic::kF32, const float* sink = nullptr) {
    const auto key_dim = static_cast<size_t>(view.format.key_dim);
    const auto value_dim = static_cast<size_t>(view.format.value_dim);
    const bool bf16 = arithmetic == AttentionArithmetic::kBF16;
    const auto round_to_bf16 = [&](std::span<float> numbers) {
      for (float& x : numbers) x = bf16_to_f32(f32_to_bf16(x));
    };
    std::vector<float> query(rows.queries[row], rows.queries[row] + key_dim);
    const bool is_turned = view.format.turned_key_dim() != 0;
    if (is_turned) hadamard_rotate(query.data(), view.format.turned_key_dim());
    if (bf16) round_to_bf16(query);
    if (arithmetic == AttentionArithmetic::kInt8) round_to_int8(query, is_turned ? key_dim : 32);
    std::vector<double> scores;
    std::vector<int32_t> seen;
    std::vector<float> values;
    double max = sink == nullptr ? -std::numeric_limits<double>::infinity() : *sink;
    double score_terms = std::fabs(sink == nullptr ? 0.0 : static_cast<double>(*sink));
    for (int32_t i = 0; i < view.num_entries; ++i) {
      const int64_t position = view.positions == nullptr ? i : view.positions[i];
      if (position > rows.positions[row]) continue;
      if (rows.window > 0 && position <= int64_t{rows.positions[row]} - rows.window) continue;
      seen.push_back(i);
      std::vector<float> key(key_dim);
      values.resize(values.size() + value_dim);
      const std::span<float> value = std::span(values).last(value_dim);
      const auto load = is_turned ? load_turned : kv_load;
      load(view.format, view.blocks[i / kKvBlockSize], i % kKvBlockSize, key.data(), value.data());
      if (bf16) {
        round_to_bf16(key);
        round_to_bf16(value);
      }
      double dot = 0.0;
      double terms = 0.0;
      for (size_t d = 0; d < key_dim; ++d) {
        const double term = static_cast<double>(query[d]) * static_cast<double>(key[d]);
        dot += term;
        terms += std::fabs(term);
      }
      const double bias = rows.biases == nullptr ? 0.0 : static_cast<double>(rows.biases[row][i]);
      scores.push_back(dot * static_cast<double>(rows.scale) + bias);
      score_terms = std::fmax(score_terms, terms * static_cast<double>(rows.scale) + std::fabs(bias));
      max = std::fmax(max, scores.back());
    }
    double denominator = sink == nullptr ? 0.0 : std::exp(static_cast<double>(*sink) - max);
    out.assign(value_dim, 0.0);
    std::vector<double> value_terms(value_dim, 0.0);
    for (size_t i = 0; i < scores.size(); ++i) {
      const double p = std::exp(scores[i] - max);
      denominator += p;
      for (size_t c = 0; c < value_dim; ++c) {
        out[c] += p * static_cast<double>(values[i * value_dim + c]);
        value_terms[c] += p * std::fabs(static_cast<double>(values[i * value_dim + c]));
      }
    }
    // A score is a chain of key_dim fmas, then scaled, shifted and merged: an absolute error of (key_dim + 4) half
    // epsilons of its terms, which is a relative one of p. It counts twice, once in the denominator. A weighted sum is
    // a chain over the entries of a split, then one of merges. Weights rounded to bf16 are off by half an epsilon of
    // that, on top of what the oracle's unrounded ones may be off in float; the denominator has them unrounded. Those
    // rounded to 8 bits are off by 7.5e-05 before, in the denominator too, and by half a step, which is common to
    // kWeightStep entries and a group of components.
    constexpr double kHalfEps = std::numeric_limits<float>::epsilon() / 2;
    const double p_error = kHalfEps * ((static_cast<double>(key_dim) + 4.0) * score_terms + 4.0) +
                           (arithmetic == AttentionArithmetic::kInt8 ? 7.5e-5 : 0.0);
    const double sum_error = kHalfEps * (kAttentionSplit + 3.0 * view.num_splits() + 8.0);
    const double rounding = bf16 ? 0x1p-7 * 0.5 * (1.0 + p_error) : 0.0;
    for (size_t c = 0; c < value_dim; ++c) {
      if (denominator > 0.0) out[c] /= denominator;
      const double terms = denominator > 0.0 ? value_terms[c] / denominator : 0.0;
      tolerance.push_back(terms * (2.0 * p_error + 2.0 * sum_error + rounding) + 1e-30);
    }
    if (arithmetic == AttentionArithmetic::kInt8 && denominator > 0.0) {
      allow_rounded_weights(view, seen, scores, values, max, denominator, p_error);
    }
    if (!is_turned) return;
    out = turned(out);
    tolerance = turned(tolerance, true);
    // Turning the sums adds as many numbers as there are steps, and a last product.
    double largest = 0.0;
    for (const double x : out) largest = std::fmax(largest, std::fabs(x));
    for (double& t : tolerance) t += kHalfEps * 10.0 * largest * std::sqrt(static_cast<double>(value_dim));
  }

 private:
  // kInt8: half a step for each entry.
  void allow_rounded_weights(const KvView& view, const std::vector<int32_t>& seen, const std::vector<double>& scores,
                             const std::vector<float>& values, double max, double denominator, double p_error) {
    const auto value_dim = static_cast<size_t>(view.format.value_dim);
    const size_t group = kv_hadamard_bits(view.format.codec).value != 0 ? value_dim : 32;
    for (size_t begin = 0; begin < seen.size();) {
      const int32_t step = seen[begin] / kWeightStep;
      size_t end = begin;
      while (end < seen.size() && seen[end] / kWeightStep == step) ++end;
      const auto scale_of = [&](size_t g, size_t i) {
        const std::byte* scales = view.blocks[seen[i] / kKvBlockSize] + view.format.value_scales_offset();
        const size_t at = g * kKvBlockSize + static_cast<size_t>(seen[i] % kKvBlockSize);
        return static_cast<double>(reinterpret_cast<const float*>(scales)[at]);
      };
      for (size_t c = 0; c < value_dim; ++c) {
        double peak = 0.0;
        double quants = 0.0;
        for (size_t i = begin; i < end; ++i) {
          const double scale = scale_of(c / group, i);
          if (scale == 0.0) continue;
          peak = std::fmax(peak, std::exp(scores[i] - max) * scale);
          quants += std::fabs(static_cast<double>(values[i * value_dim + c])) / scale;
        }
        const double half_step = 0.5 * (1.0 + 1e-3 + p_error) * peak / 255.0;
        tolerance[c] += half_step * quants / denominator;
      }
      begin = end;
    }
  }
};

inline void expect_matches(const std::vector<float>& out, const Oracle& oracle, const std::string& where) {
  ASSERT_EQ(out.size(), oracle.out.size());
  for (size_t c = 0; c < out.size(); ++c) {
    ASSERT_NEAR(out[c], oracle.out[c], oracle.tolerance[c]) << where << ", component " << c;
  }
}

}  // namespace witan::test
