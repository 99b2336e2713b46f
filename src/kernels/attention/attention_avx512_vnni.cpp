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
#include "kernels/simd/exp.inl"
//
#include "kernels/attention/vnni.inl"
//
#include "kernels/attention/vnni_weights.inl"
//
#include "kernels/attention/vnni_values.inl"

constexpr int64_t kGroupWords = kKvQ8Group / 4;  // of a query or of keys

inline void round_queries(const SplitTask& task) {
  if (task.has_queries) return;
  for (int32_t r = 0; r < task.num_rows; ++r) {
    uint32_t* words = task.query_words + r * task.query_stride;
    auto* scales = reinterpret_cast<float*>(words + task.num_query_words);
    auto* offsets = reinterpret_cast<int32_t*>(scales + task.num_key_groups);
    for (int64_t g = 0; g < task.num_key_groups; ++g) {
      const int64_t first = g * kKvQ8Group;
      const int64_t left = task.format.key_dim - first;
      round_group(task.queries[r] + first, left < kKvQ8Group ? left : kKvQ8Group, kGroupWords, task.scale,
                  words + g * kGroupWords, scales + g, offsets + g);
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
    float* const of_row = group.scores + r * kStepScoreStride;
    const Float sum0 = first ? zero() : load(of_row);
    const Float sum1 = first ? zero() : load(of_row + kLanes);
    store(of_row, multiply_add(_mm512_cvtepi32_ps(dots[r][0]), multiply(scale0, scale), sum0));
    store(of_row + kLanes, multiply_add(_mm512_cvtepi32_ps(dots[r][1]), multiply(scale1, scale), sum1));
  }
}

// scores[r][e] = query r . key e, scaled, for kRows rows and all 32 entries.
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
                           .scores = step_scores(tile)};
    if (group.num_words < kGroupWords) {
      score_group<kRows, 0, false>(group, g == 0);
    } else if (tile.ahead == nullptr) {
      score_group<kRows, kGroupWords, false>(group, g == 0);
    } else {
      score_group<kRows, kGroupWords, true>(group, g == 0);
    }
  }
}

inline void add_values(const SplitTask& task, const Step& step) { add_step<8>(task, step); }

#include "kernels/attention/vnni_split.inl"

}  // namespace

void attention_split_q8_avx512_vnni(const SplitTask& task) { split_in_steps(task); }

}  // namespace witan
