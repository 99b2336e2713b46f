#include "kernels/matmul/avx512_intrinsics.h"

#include "kernels/attention/attention_variants.h"

// attention_split in AttentionArithmetic::kInt8 over kQ8 entries: see vnni.inl.
namespace witan {
namespace {

// Of the 32 registers, 16 sums: 8 rows x 32 entries or components.
constexpr int kMaxRows = 8;

// In this order: each uses names of the ones before.
#include "kernels/simd/vector_avx512.inl"
//
#include "kernels/attention/hadamard_avx512.inl"
//
#include "kernels/attention/hadamard.inl"
//
#include "kernels/attention/tiles.inl"
//
#include "kernels/attention/weights.inl"
//
#include "kernels/attention/exp_avx512.inl"

#include "kernels/attention/vnni.inl"

constexpr int64_t kGroupWords = kKvQ8Group / 4;     // of a query or of keys
constexpr int kRunsPerGroup = kKvQ8Group / kLanes;  // of components

inline void round_queries(const SplitTask& task) {
  for (int32_t r = 0; r < task.num_rows; ++r) {
    uint32_t* words = task.query_words + r * task.query_stride;
    auto* scales = reinterpret_cast<float*>(words + task.num_query_words);
    auto* offsets = reinterpret_cast<int32_t*>(scales + task.num_key_groups);
    for (int64_t g = 0; g < task.num_key_groups; ++g) {
      const int64_t first = g * kKvQ8Group;
      const int64_t left = task.format.key_dim - first;
      round_group(task.queries[r] + first, left < kKvQ8Group ? left : kKvQ8Group, kGroupWords, words + g * kGroupWords,
                  scales + g, offsets + g);
    }
  }
}

// One group of components of kRows queries and the keys of a block's 32 entries.
struct ScoreGroup {
  const uint8_t* keys;      // words from the group's first on
  const float* key_scales;  // [32]
  const uint32_t* queries;  // the first row's words; those of the next rows are `stride` words on, as are
  const float* scales;      // their scales
  const int32_t* offsets;   // and offsets
  int64_t stride;
  int64_t num_words;     // from there to the last
  const uint8_t* ahead;  // to be prefetched, with kAhead
  float* scores;         // of the first row
};

// scores[r][e] = or, unless it is the first group, += query r . key e over the components of a group.
// kNumWords is their number of words, or 0: any.
template <int kRows, int kNumWords, bool kAhead>
[[gnu::noinline]] void score_group(const ScoreGroup& group, bool first) {
  Int dots[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) dots[r][0] = dots[r][1] = _mm512_set1_epi32(group.offsets[r * group.stride]);
  const int64_t end = kNumWords == 0 ? group.num_words : kNumWords;
#pragma GCC unroll 8
  for (int64_t word = 0; word < end; ++word) {
    const Int key0 = load_bytes(group.keys + word * kKeyWordBytes);
    const Int key1 = load_bytes(group.keys + word * kKeyWordBytes + kLineBytes);
    if constexpr (kAhead) {
      prefetch(group.ahead + word * kKeyWordBytes);
      prefetch(group.ahead + word * kKeyWordBytes + kLineBytes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Int query = broadcast_word(group.queries[r * group.stride + word]);
      dots[r][0] = dot(dots[r][0], key0, query);
      dots[r][1] = dot(dots[r][1], key1, query);
    }
  }
  const Float scale0 = load(group.key_scales);
  const Float scale1 = load(group.key_scales + kLanes);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Float scale = broadcast(group.scales[r * group.stride]);
    float* const of_row = group.scores + r * kScoreStride;
    const Float sum0 = first ? zero() : load(of_row);
    const Float sum1 = first ? zero() : load(of_row + kLanes);
    store(of_row, multiply_add(_mm512_cvtepi32_ps(dots[r][0]), multiply(scale0, scale), sum0));
    store(of_row + kLanes, multiply_add(_mm512_cvtepi32_ps(dots[r][1]), multiply(scale1, scale), sum1));
  }
}

// scores[r][e] = query r . key e, unscaled, for kRows rows and all 32 entries.
template <int kRows>
void score_rows(const RowTile& tile, const uint8_t* keys) {
  const SplitTask& task = tile.task;
  const Query query(task, tile.first_row);
  const int64_t num_words = (task.format.key_dim + 3) / 4;
  const auto* key_scales = reinterpret_cast<const float*>(keys + task.key_scales);
  for (int64_t g = 0; g * kGroupWords < num_words; ++g) {
    const int64_t word = g * kGroupWords;
    const ScoreGroup group{.keys = keys + word * kKeyWordBytes,
                           .key_scales = key_scales + g * kKvBlockSize,
                           .queries = query.words + word,
                           .scales = query.scales + g,
                           .offsets = query.offsets + g,
                           .stride = task.query_stride,
                           .num_words = num_words - word,
                           .ahead = tile.ahead == nullptr ? nullptr : tile.ahead + word * kKeyWordBytes,
                           .scores = tile.scores()};
    if (tile.ahead != nullptr) {
      prefetch(tile.ahead + task.key_scales + g * kKvBlockSize * 4);
      prefetch(tile.ahead + task.key_scales + g * kKvBlockSize * 4 + kLineBytes);
    }
    if (group.num_words < kGroupWords) {
      score_group<kRows, 0, false>(group, g == 0);
    } else if (tile.ahead == nullptr) {
      score_group<kRows, kGroupWords, false>(group, g == 0);
    } else {
      score_group<kRows, kGroupWords, true>(group, g == 0);
    }
  }
}

// sums[r][c] += dots * factors[r] for the kRuns runs of 16 components from `values` on, over all entries of a block.
template <int kRows, int kRuns, bool kAhead>
[[gnu::noinline]] void add_runs(const uint8_t* values, const RoundedWeights<kRows>& weights, const float* factors,
                                const uint8_t* ahead, float* sums, int64_t stride) {
  Int dots[kRows][kRuns];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kRuns; ++v) dots[r][v] = _mm512_setzero_si512();
  }
#pragma GCC unroll 8
  for (int64_t quad = 0; quad < kBlockQuads; ++quad) {
    Int value[kRuns];
#pragma GCC unroll 2
    for (int v = 0; v < kRuns; ++v) {
      value[v] = load_bytes(values + v * kRunBytes + quad * kLineBytes);
      if constexpr (kAhead) prefetch(ahead + v * kRunBytes + quad * kLineBytes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Int weight = broadcast_word(weights.words[r][quad]);
#pragma GCC unroll 2
      for (int v = 0; v < kRuns; ++v) dots[r][v] = dot(dots[r][v], weight, value[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Float factor = broadcast(factors[r]);
#pragma GCC unroll 2
    for (int v = 0; v < kRuns; ++v) {
      float* const to = sums + r * stride + v * kLanes;
      store(to, multiply_add(_mm512_cvtepi32_ps(dots[r][v]), factor, load(to)));
    }
  }
}

// The scales of a block's values as its rows' weights meet them; of entries that are not seen, 0.
struct ValueScales {
  Mask seen[2];
  Float largest_of_entry[2];  // over all groups

  ValueScales(uint32_t visible, const float* scales, int64_t num_groups)
      : seen{lanes_of_bits(visible), lanes_of_bits(visible >> kLanes)} {
    Int bits[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int64_t g = 0; g < num_groups; ++g) {
      for (int half = 0; half < 2; ++half) {
        bits[half] = _mm512_max_epu32(bits[half], magnitude_bits(of(scales, g, half)));
      }
    }
    for (int half = 0; half < 2; ++half) largest_of_entry[half] = _mm512_castsi512_ps(bits[half]);
  }
  // What is not seen may be anything.
  Float of(const float* scales, int64_t group, int half) const {
    return load(seen[half], scales + group * kKvBlockSize + half * kLanes);
  }
  // Of a group, over those of their entries: at most 1, and 0 of 0 is 0.
  Float relative(Float scale, int half) const {
    const Mask not_zero = _mm512_cmp_ps_mask(largest_of_entry[half], zero(), _CMP_NEQ_UQ);
    return _mm512_maskz_div_ps(not_zero, scale, largest_of_entry[half]);
  }
};

// sums[r][c] += p[r][e] * value e over the entries of a block, for kRows rows that see the same of them and all c.
template <int kRows>
void add_values(const RowTile& tile, const uint8_t* values, const float* value_scales) {
  const SplitTask& task = tile.task;
  const int64_t num_runs = (task.format.value_dim + kLanes - 1) / kLanes;
  const int64_t stride = task.padded_value_dim;
  const ValueScales scales(tile.visible(), value_scales, (num_runs + kRunsPerGroup - 1) / kRunsPerGroup);
  float* const weights = tile.scores();
  float* const sums = tile.sums();
  float peaks[kRows];  // of a row's weights times the largest scales of the entries, 1/255 of the largest
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    float* const p = weights + r * kScoreStride;
    const Float low = load(p);
    const Float high = load(p + kLanes);
    const float peak =
        max_of_lanes(larger(multiply(low, scales.largest_of_entry[0]), multiply(high, scales.largest_of_entry[1])));
    const Float factor = broadcast(peak < kSmallestPeak ? 0.0f : 255.0f / peak);
    peaks[r] = peak * (1.0f / 255.0f);
    store(p, multiply(low, factor));
    store(p + kLanes, multiply(high, factor));
  }
  for (int64_t run = 0; run < num_runs; run += kRunsPerGroup) {
    const int64_t group = run / kRunsPerGroup;
    Float scale[2] = {scales.of(value_scales, group, 0), scales.of(value_scales, group, 1)};
    const float relative = largest(
        _mm512_max_epu32(magnitude_bits(scales.relative(scale[0], 0)), magnitude_bits(scales.relative(scale[1], 1))));
    const Float inverse = broadcast(relative == 0.0f ? 0.0f : 1.0f / relative);
    scale[0] = multiply(scale[0], inverse);
    scale[1] = multiply(scale[1], inverse);
    if (tile.ahead != nullptr) {
      const uint8_t* scales_ahead = tile.ahead + (task.value_scales - task.values) + group * kKvBlockSize * 4;
      prefetch(scales_ahead);
      prefetch(scales_ahead + kLineBytes);
    }
    RoundedWeights<kRows> rounded;
    float factors[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r += 2) {
      const float* p = weights + r * kScoreStride;
      const float* next = r + 1 < kRows ? p + kScoreStride : p;
      const Int bytes =
          pack_two_rows(nearest(multiply(load(p), scale[0])), nearest(multiply(load(p + kLanes), scale[1])),
                        nearest(multiply(load(next), scale[0])), nearest(multiply(load(next + kLanes), scale[1])));
      _mm512_store_si512(rounded.words[r], bytes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) factors[r] = peaks[r] * relative;
    const uint8_t* from = values + run * kRunBytes;
    float* to = sums + run * kLanes;
    if (num_runs - run < kRunsPerGroup) {
      add_runs<kRows, 1, false>(from, rounded, factors, nullptr, to, stride);
    } else if (tile.ahead == nullptr) {
      add_runs<kRows, kRunsPerGroup, false>(from, rounded, factors, nullptr, to, stride);
    } else {
      add_runs<kRows, kRunsPerGroup, true>(from, rounded, factors, tile.ahead + run * kRunBytes, to, stride);
    }
  }
}

#include "kernels/attention/vnni_values.inl"
//
#include "kernels/attention/rounded_split.inl"

}  // namespace

void attention_split_q8_avx512_vnni(const SplitTask& task) { split_rounded(task); }

}  // namespace witan
