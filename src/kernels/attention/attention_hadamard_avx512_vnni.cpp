#include "kernels/matmul/avx512_intrinsics.h"

#include "kernels/attention/attention_variants.h"

// attention_split in AttentionArithmetic::kInt8 over kHadamard entries: see vnni.inl. All components of an entry share
// a scale, so that sums of integers go over all components of a key, and weights are rounded once for all components of
// the values.
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
//
#include "kernels/attention/vnni.inl"

// Field `kField` of each byte of quants of kBits, as 8-bit quants: its bits on top, below them 10..0.
template <int kBits, int kField>
inline Int unpack(Int bytes) {
  if constexpr (kBits == 8) {
    return bytes;
  } else {
    constexpr int kTopBits = 0xff << (8 - kBits) & 0xff;
    const Int top = _mm512_slli_epi32(bytes, 8 - kBits * (kField + 1));
    // (top & kTopBits) | middle
    return _mm512_ternarylogic_epi32(top, _mm512_set1_epi8(static_cast<char>(kTopBits)),
                                     _mm512_set1_epi8(static_cast<char>(1 << (7 - kBits))), 0xea);
  }
}

inline void round_queries(const SplitTask& task) {
  for (int32_t r = 0; r < task.num_rows; ++r) {
    turn(task.queries[r], task.format.key_dim, task.key_rotation, task.tile);
    uint32_t* words = task.query_words + r * task.query_stride;
    auto* scale = reinterpret_cast<float*>(words + task.num_query_words);
    round_group(task.tile, task.format.key_dim, task.num_query_words, words, scale,
                reinterpret_cast<int32_t*>(scale + 1));
  }
}

// The keys of a block's 32 entries and kRows queries.
struct ScoreTile {
  const uint8_t* keys;
  const float* key_scales;  // [32]
  const uint32_t* queries;  // the first row's words; those of the next rows are `stride` words on, as are
  const float* scales;      // their scales
  const int32_t* offsets;   // and offsets
  int64_t stride;
  int64_t num_words;     // of a query; a multiple of 8
  const uint8_t* ahead;  // to be prefetched, with kAhead
  float* scores;         // of the first row
};

// Adds the components of a word of the queries, which meets field kField of the keys, to the sums.
template <int kRows, int kBits, int kField>
inline void add_field(const uint32_t* queries, int64_t stride, Int low, Int high, Int (&dots)[kRows][2]) {
  const Int key0 = unpack<kBits, kField>(low);
  const Int key1 = unpack<kBits, kField>(high);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Int query = broadcast_word(queries[r * stride]);
    dots[r][0] = dot(dots[r][0], key0, query);
    dots[r][1] = dot(dots[r][1], key1, query);
  }
}

// scores[r][e] = query r . key e, unscaled.
template <int kRows, int kBits, bool kAhead>
[[gnu::noinline]] void score_tile(const ScoreTile& tile) {
  constexpr int kFields = 8 / kBits;
  Int dots[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) dots[r][0] = dots[r][1] = _mm512_set1_epi32(tile.offsets[r * tile.stride]);
  const uint8_t* keys = tile.keys;
  const uint8_t* ahead = tile.ahead;
  const uint32_t* queries = tile.queries;
  for (const uint32_t* const end = queries + tile.num_words; queries < end; queries += 8) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += kFields) {
      const Int low = load_bytes(keys + i / kFields * kKeyWordBytes);
      const Int high = load_bytes(keys + i / kFields * kKeyWordBytes + kLineBytes);
      if constexpr (kAhead) {
        prefetch(ahead + i / kFields * kKeyWordBytes);
        prefetch(ahead + i / kFields * kKeyWordBytes + kLineBytes);
      }
      add_field<kRows, kBits, 0>(queries + i, tile.stride, low, high, dots);
      if constexpr (kFields > 1) add_field<kRows, kBits, 1>(queries + i + 1, tile.stride, low, high, dots);
      if constexpr (kFields > 2) {
        add_field<kRows, kBits, 2>(queries + i + 2, tile.stride, low, high, dots);
        add_field<kRows, kBits, 3>(queries + i + 3, tile.stride, low, high, dots);
      }
    }
    keys += 8 / kFields * kKeyWordBytes;
    if constexpr (kAhead) ahead += 8 / kFields * kKeyWordBytes;
  }
  const Float scale0 = load(tile.key_scales);
  const Float scale1 = load(tile.key_scales + kLanes);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Float scale = broadcast(tile.scales[r * tile.stride]);
    float* const of_row = tile.scores + r * kScoreStride;
    store(of_row, multiply(_mm512_cvtepi32_ps(dots[r][0]), multiply(scale0, scale)));
    store(of_row + kLanes, multiply(_mm512_cvtepi32_ps(dots[r][1]), multiply(scale1, scale)));
  }
}

template <int kRows, int kBits>
void score_ahead_or_not(const ScoreTile& tile) {
  return tile.ahead == nullptr ? score_tile<kRows, kBits, false>(tile) : score_tile<kRows, kBits, true>(tile);
}

template <int kRows>
void score_rows(const RowTile& rows, const uint8_t* keys) {
  const SplitTask& task = rows.task;
  const Query query(task, rows.first_row);
  const ScoreTile tile{.keys = keys,
                       .key_scales = reinterpret_cast<const float*>(keys + task.key_scales),
                       .queries = query.words,
                       .scales = query.scales,
                       .offsets = query.offsets,
                       .stride = task.query_stride,
                       .num_words = task.num_query_words,
                       .ahead = rows.ahead,
                       .scores = rows.scores()};
  if (rows.ahead != nullptr) {
    prefetch(rows.ahead + task.key_scales);
    prefetch(rows.ahead + task.key_scales + kLineBytes);
  }
  switch (task.key_bits) {
    case 8:
      return score_ahead_or_not<kRows, 8>(tile);
    case 4:
      return score_ahead_or_not<kRows, 4>(tile);
    default:
      return score_ahead_or_not<kRows, 2>(tile);
  }
}

// The values of a block's 32 entries from some components on, and the weights of kRows rows.
struct ValueTile {
  const uint8_t* values;
  const uint32_t* weights;  // [kRows][8]
  const float* factors;     // [kRows]
  const uint8_t* ahead;     // to be prefetched, with kAhead
  float* sums;              // of the first row; those of the next rows are `stride` floats on
  int64_t stride;
};

// sums[r][c] += dots * factors[r] for kRuns runs of 16 components, over all entries of a block. Quants of less than 8
// bits: the runs are the fields kField and kField + 1 of the bytes.
template <int kRows, int kBits, int kField, int kRuns, bool kAhead>
[[gnu::noinline]] void add_runs(const ValueTile& tile) {
  Int dots[kRows][kRuns];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kRuns; ++v) dots[r][v] = _mm512_setzero_si512();
  }
#pragma GCC unroll 8
  for (int64_t quad = 0; quad < kBlockQuads; ++quad) {
    Int value[kRuns];
    const Int bytes = load_bytes(tile.values + quad * kLineBytes);
    if constexpr (kAhead) prefetch(tile.ahead + quad * kLineBytes);
    value[0] = unpack<kBits, kField>(bytes);
    if constexpr (kRuns > 1 && kBits < 8) value[1] = unpack<kBits, kField + 1>(bytes);
    if constexpr (kRuns > 1 && kBits == 8) {
      value[1] = load_bytes(tile.values + kRunBytes + quad * kLineBytes);
      if constexpr (kAhead) prefetch(tile.ahead + kRunBytes + quad * kLineBytes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Int weight = broadcast_word(tile.weights[r * kBlockQuads + quad]);
#pragma GCC unroll 2
      for (int v = 0; v < kRuns; ++v) dots[r][v] = dot(dots[r][v], weight, value[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Float factor = broadcast(tile.factors[r]);
#pragma GCC unroll 2
    for (int v = 0; v < kRuns; ++v) {
      float* const to = tile.sums + r * tile.stride + v * kLanes;
      store(to, multiply_add(_mm512_cvtepi32_ps(dots[r][v]), factor, load(to)));
    }
  }
}

// The same for as many as there are of the runs kField and kField + 1.
template <int kRows, int kBits, int kField, bool kAhead>
void add_pair(ValueTile tile, int64_t num_runs) {
  tile.sums += kField * kLanes;
  if (num_runs > kField + 1) {
    add_runs<kRows, kBits, kField, 2, kAhead>(tile);
  } else if (num_runs > kField) {
    add_runs<kRows, kBits, kField, 1, kAhead>(tile);
  }
}

// All components; `tile` is at the first.
template <int kRows, int kBits, bool kAhead>
void add_all_runs(ValueTile tile, int64_t num_runs) {
  constexpr int kStep = kBits == 2 ? 4 : 2;  // runs of bytes that lie together
  for (; num_runs > 0; num_runs -= kStep) {
    add_pair<kRows, kBits, 0, kAhead>(tile, num_runs);
    if constexpr (kStep > 2) add_pair<kRows, kBits, 2, false>(tile, num_runs);
    constexpr int64_t kBytes = kStep * kRunBytes * kBits / 8;
    tile.values += kBytes;
    if constexpr (kAhead) tile.ahead += kBytes;
    tile.sums += kStep * kLanes;
  }
}

template <int kRows, int kBits>
void add_ahead_or_not(const ValueTile& tile, int64_t num_runs) {
  if (tile.ahead == nullptr) return add_all_runs<kRows, kBits, false>(tile, num_runs);
  add_all_runs<kRows, kBits, true>(tile, num_runs);
}

// Rounds the weights of kRows rows times the entries' scales to bytes, four entries to a word, and writes the factors
// that products with the values' quants are to be multiplied with.
template <int kRows>
void round_weights(const RowTile& rows, const float* value_scales, uint32_t* words, float* factors) {
  const uint32_t visible = rows.visible();
  const Float scale[2] = {load(lanes_of_bits(visible), value_scales),
                          load(lanes_of_bits(visible >> kLanes), value_scales + kLanes)};
  Float weights[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const float* p = rows.scores() + r * kScoreStride;
    weights[r][0] = multiply(load(p), scale[0]);
    weights[r][1] = multiply(load(p + kLanes), scale[1]);
    const float peak = largest(_mm512_max_epu32(magnitude_bits(weights[r][0]), magnitude_bits(weights[r][1])));
    const Float inverse = broadcast(peak < kSmallestPeak ? 0.0f : 255.0f / peak);
    weights[r][0] = multiply(weights[r][0], inverse);
    weights[r][1] = multiply(weights[r][1], inverse);
    factors[r] = peak * (1.0f / 255.0f);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r += 2) {
    const int next = r + 1 < kRows ? r + 1 : r;
    const Int bytes = pack_two_rows(nearest(weights[r][0]), nearest(weights[r][1]), nearest(weights[next][0]),
                                    nearest(weights[next][1]));
    _mm512_store_si512(words + r * kBlockQuads, bytes);
  }
}

// sums[r][c] += p[r][e] * value e over the entries of a block, for kRows rows that see the same of them and all c.
template <int kRows>
void add_values(const RowTile& rows, const uint8_t* values, const float* value_scales) {
  const SplitTask& task = rows.task;
  RoundedWeights<kRows> rounded;
  float factors[kRows];
  round_weights<kRows>(rows, value_scales, rounded.words[0], factors);
  if (rows.ahead != nullptr) {
    prefetch(rows.ahead + (task.value_scales - task.values));
    prefetch(rows.ahead + (task.value_scales - task.values) + kLineBytes);
  }
  const ValueTile tile{.values = values,
                       .weights = rounded.words[0],
                       .factors = factors,
                       .ahead = rows.ahead,
                       .sums = rows.sums(),
                       .stride = task.padded_value_dim};
  const int64_t num_runs = (task.format.value_dim + kLanes - 1) / kLanes;
  switch (task.value_bits) {
    case 8:
      return add_ahead_or_not<kRows, 8>(tile, num_runs);
    case 4:
      return add_ahead_or_not<kRows, 4>(tile, num_runs);
    default:
      return add_ahead_or_not<kRows, 2>(tile, num_runs);
  }
}

#include "kernels/attention/vnni_values.inl"
//
#include "kernels/attention/rounded_split.inl"

}  // namespace

void attention_split_hadamard_avx512_vnni(const SplitTask& task) { split_rounded(task); }

}  // namespace witan
