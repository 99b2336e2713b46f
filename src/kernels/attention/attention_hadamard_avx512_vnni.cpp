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
#include "kernels/simd/exp.inl"
//
#include "kernels/attention/vnni.inl"
//
#include "kernels/attention/vnni_weights.inl"
//
#include "kernels/attention/vnni_values.inl"

inline void round_queries(const SplitTask& task) {
  if (task.has_queries) return;
  for (int32_t r = 0; r < task.num_rows; ++r) {
    turn(task.queries[r], task.format.key_dim, task.key_rotation, task.tile);
    uint32_t* words = task.query_words + r * task.query_stride;
    auto* scale = reinterpret_cast<float*>(words + task.num_query_words);
    round_group(task.tile, task.format.key_dim, task.num_query_words, task.scale, words, scale,
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

// Adds the components of a word of the queries, which meets field kField of the keys, to the sums. `upper` is at that
// of row 4.
template <int kRows, int kBits, int kField>
inline void add_field(const uint32_t* queries, const uint32_t* upper, int64_t stride, Int low, Int high,
                      Int (&dots)[kRows][2]) {
  const Int key0 = unpack<kBits, kField>(low);
  const Int key1 = unpack<kBits, kField>(high);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Int query = broadcast_word(r < 4 ? queries[r * stride] : upper[(r - 4) * stride]);
    dots[r][0] = dot(dots[r][0], key0, query);
    dots[r][1] = dot(dots[r][1], key1, query);
  }
}

// scores[r][e] = query r . key e, scaled.
template <int kRows, int kBits, bool kAhead>
[[gnu::noinline]] void score_tile(const ScoreTile& tile) {
  constexpr int kFields = 8 / kBits;
  Int dots[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) dots[r][0] = dots[r][1] = _mm512_set1_epi32(tile.offsets[r * tile.stride]);
  const uint8_t* keys = tile.keys;
  const uint8_t* ahead = tile.ahead;
  const uint32_t* queries = tile.queries;
  int64_t stride = tile.stride;
  const uint32_t* upper = kRows > 4 ? queries + 4 * stride : queries;
  for (const uint32_t* const end = queries + tile.num_words; queries < end; queries += 8, upper += 8) {
    // Else GCC keeps an address for each row and word, on the stack: 3 % of the time.
    asm("" : "+r"(queries), "+r"(upper), "+r"(stride));
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += kFields) {
      const Int low = load_bytes(keys + i / kFields * kKeyWordBytes);
      const Int high = load_bytes(keys + i / kFields * kKeyWordBytes + kLineBytes);
      if constexpr (kAhead) {
        prefetch(ahead + i / kFields * kKeyWordBytes);
        prefetch(ahead + i / kFields * kKeyWordBytes + kLineBytes);
      }
      add_field<kRows, kBits, 0>(queries + i, upper + i, stride, low, high, dots);
      if constexpr (kFields > 1) add_field<kRows, kBits, 1>(queries + i + 1, upper + i + 1, stride, low, high, dots);
      if constexpr (kFields > 2) {
        add_field<kRows, kBits, 2>(queries + i + 2, upper + i + 2, stride, low, high, dots);
        add_field<kRows, kBits, 3>(queries + i + 3, upper + i + 3, stride, low, high, dots);
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
    float* const of_row = tile.scores + r * kStepScoreStride;
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
                       .scores = step_scores(rows)};
  switch (task.key_bits) {
    case 8:
      return score_ahead_or_not<kRows, 8>(tile);
    case 4:
      return score_ahead_or_not<kRows, 4>(tile);
    default:
      return score_ahead_or_not<kRows, 2>(tile);
  }
}

inline void add_values(const SplitTask& task, const Step& step) {
  switch (task.value_bits) {
    case 8:
      return add_step<8>(task, step);
    case 4:
      return add_step<4>(task, step);
    default:
      return add_step<2>(task, step);
  }
}

#include "kernels/attention/vnni_split.inl"

}  // namespace

void attention_split_hadamard_avx512_vnni(const SplitTask& task) { split_in_steps(task); }

}  // namespace witan
