#include "kernels/matmul/avx512_intrinsics.h"

#include "kernels/attention/attention_variants.h"

// attention_split in AttentionArithmetic::kBF16. An instruction multiplies and adds a word of two components or of two
// entries at a time, the odd one first. As in split.inl, every number of a row's state is one chain of operations on
// that row alone: a score walks the pairs of components in order, a weighted sum the visible pairs of entries, where
// an entry of a pair that the row does not see is taken as 0 times 0. The instructions take subnormal numbers for 0.
namespace witan {
namespace {

// Of the 32 registers, 16 sums of scores: 8 rows x 32 entries.
constexpr int kMaxRows = 8;
// Blocks whose values a register tile adds at once, where several tiles share them.
constexpr int kMaxBlocks = 4;
// Vectors of value components per row: 4 to 24 sums.
constexpr int vectors_per_row(int num_rows) { return num_rows <= 6 ? 4 : 2; }

// In this order: each uses names of the ones before.
#include "kernels/simd/vector_avx512.inl"
//
#include "kernels/attention/transpose_avx512.inl"
//
#include "kernels/attention/codecs.inl"
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

constexpr int64_t kRunBytes = kKvBlockSize / 2 * kLineBytes;  // 16 components of the values of a block

using Pairs = __m512bh;

inline Pairs load_pairs(const void* from) { return reinterpret_cast<Pairs>(_mm512_loadu_si512(from)); }
inline Pairs broadcast_pair(uint32_t pair) {
  return reinterpret_cast<Pairs>(_mm512_set1_epi32(static_cast<int>(pair)));
}
inline Pairs keep_halves(Pairs pairs, uint32_t halves) {
  return reinterpret_cast<Pairs>(
      _mm512_and_si512(reinterpret_cast<__m512i>(pairs), _mm512_set1_epi32(static_cast<int>(halves))));
}
// Of what is read one block later, into the second-level cache. Measured on Zen 4 with key and value dims of 128 and 8
// rows: 1.7 times as fast as into the first level, 2.2 times as without.
inline void prefetch(const uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T1); }

inline int64_t num_query_pairs(const SplitTask& task) { return (task.format.key_dim + 1) / 2; }

// Rounds the queries, which may lie where their words go; behind an odd number of components comes a 0.
inline void round_queries(const SplitTask& task) {
  if (task.has_queries) return;
  const int64_t key_dim = task.format.key_dim;
  for (int32_t r = 0; r < task.num_rows; ++r) {
    uint32_t* pairs = task.query_words + r * task.query_stride;
    for (int64_t d = 0; d < key_dim; d += kLanes) {
      const Mask lanes = key_dim - d >= kLanes ? Mask{0xffff} : first_lanes(key_dim - d);
      const __m256bh rounded = _mm512_cvtneps_pbh(load(lanes, task.queries[r] + d));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs + d / 2), reinterpret_cast<__m256i>(rounded));
    }
  }
}

// scores[r][e] = query r . key e, unscaled, for kRows rows and all 32 entries.
template <int kRows>
void score_rows(const RowTile& tile, const uint8_t* keys) {
  const SplitTask& task = tile.task;
  const uint32_t* queries = task.query_words + tile.first_row * task.query_stride;
  const int64_t stride = task.query_stride;
  const int64_t num_pairs = num_query_pairs(task);
  Float sums[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = zero();
  for (int64_t i = 0; i < num_pairs; ++i) {
    const Pairs key0 = load_pairs(keys + 2 * i * kLineBytes);
    const Pairs key1 = load_pairs(keys + (2 * i + 1) * kLineBytes);
    if (tile.ahead != nullptr) {
      prefetch(tile.ahead + 2 * i * kLineBytes);
      prefetch(tile.ahead + (2 * i + 1) * kLineBytes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Pairs query = broadcast_pair(queries[r * stride + i]);
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], key0, query);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], key1, query);
    }
  }
  float* scores = tile.scores();
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    store(scores + r * kScoreStride, sums[r][0]);
    store(scores + r * kScoreStride + kLanes, sums[r][1]);
  }
}

// Turns a row's scores into weights p = exp(score * scale - max), 0 for entries it does not see, and writes its state
// but for the weighted sum. Rounded weights take the first half of their block's scores, two entries to a word.
inline void weigh_row(const SplitTask& task, int32_t row) {
  const float max = max_score(task, row);
  float* scores = task.scores + row * kScoreStride;
  const Float scale = broadcast(task.scale);
  const Float shift = broadcast(max == -__builtin_inff() ? 0.0f : max);  // exp(-inf - -inf) would be NaN
  Float denominators = zero();
  for (int32_t b = 0; b < task.num_blocks; ++b) {
    const uint32_t visible = visible_entries(task, row, b);
    if (visible == 0) continue;
    float* block = scores + b * kKvBlockSize;
    Float p[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const Float score = multiply(load(block + i * kLanes), scale);
      p[i] = exp_of_seen(lanes_of_bits(visible >> i * kLanes), subtract(score, shift));
      denominators = add(denominators, p[i]);
    }
    _mm512_storeu_si512(block, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(p[1], p[0])));
  }
  task.states[row][0] = max;
  task.states[row][1] = sum_of_lanes(denominators);
}

enum class Seen { kAll, kSome };  // of the 32 entries of a block

// The values of blocks that a tile adds without leaving its registers.
struct ValueBlocks {
  const uint8_t* values[kMaxBlocks];
  const uint8_t* ahead[kMaxBlocks];  // nullptr, or what will be read after each
  int32_t count;
};

// sums[r][c ..] += p[r][e] * value e, for kRows rows that see the same entries and kVectors vectors of components.
// The tile's block is the first of `blocks`; the others follow it. Only with kAll there are others.
template <int kRows, int kVectors, Seen kSeen>
void add_values(const RowTile& tile, const ValueBlocks& blocks, int64_t c) {
  const SplitTask& task = tile.task;
  float* const out = tile.sums() + c;
  const uint32_t visible = tile.visible();
  Float sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) sums[r][v] = load(out + r * task.padded_value_dim + v * kLanes);
  }
  for (int32_t b = 0; b < blocks.count; ++b) {
    const uint32_t* weights = reinterpret_cast<const uint32_t*>(tile.scores() + b * kKvBlockSize);
    const uint8_t* run = blocks.values[b] + c / kLanes * kRunBytes;
    const uint8_t* ahead = blocks.ahead[b] == nullptr ? nullptr : blocks.ahead[b] + c / kLanes * kRunBytes;
    for (int64_t pair = 0; pair < kKvBlockSize / 2; ++pair) {
      const uint32_t seen = visible >> 2 * pair & 3u;
      if (kSeen == Seen::kSome && seen == 0) continue;
      Pairs value[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        value[v] = load_pairs(run + v * kRunBytes + pair * kLineBytes);
        if (ahead != nullptr) prefetch(ahead + (pair * kVectors + v) * kLineBytes);
        // What a row does not see may be anything, and 0 times infinity is not 0.
        if (kSeen == Seen::kSome && seen != 3u) value[v] = keep_halves(value[v], seen == 1u ? 0xffffu : 0xffff0000u);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Pairs weight = broadcast_pair(weights[r * kScoreStride + pair]);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], value[v], weight);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) store(out + r * task.padded_value_dim + v * kLanes, sums[r][v]);
  }
}

template <int kRows, Seen kSeen>
void add_all_values(const RowTile& tile, const ValueBlocks& blocks) {
  constexpr int kVectors = vectors_per_row(kRows);
  const int64_t value_dim = tile.task.format.value_dim;
  int64_t c = 0;
  for (; c + kVectors * kLanes <= value_dim; c += kVectors * kLanes) {
    add_values<kRows, kVectors, kSeen>(tile, blocks, c);
  }
  for (; c < value_dim; c += kLanes) add_values<kRows, 1, kSeen>(tile, blocks, c);
}

template <int kRows>
void add_up_to(int num_rows, const RowTile& tile, const ValueBlocks& blocks) {
  if (num_rows == kRows) {
    return tile.visible() == ~0u ? add_all_values<kRows, Seen::kAll>(tile, blocks)
                                 : add_all_values<kRows, Seen::kSome>(tile, blocks);
  }
  if constexpr (kRows > 1) add_up_to<kRows - 1>(num_rows, tile, blocks);
}

// The values of a block that has them as the first components of its keys, laid out as those of other blocks.
inline const uint8_t* values_of_keys(const SplitTask& task, const uint8_t* keys) {
  auto* to = reinterpret_cast<uint8_t*>(task.tile);
  const int64_t num_pairs = num_query_pairs(task);
  // Of two entries' components 0..32, those of the first or second half side by side.
  alignas(kLineBytes) uint16_t halves[2][2 * kLanes];
  for (int i = 0; i < kLanes; ++i) {
    for (int half = 0; half < 2; ++half) {
      halves[half][2 * i] = static_cast<uint16_t>(half * kLanes + i);
      halves[half][2 * i + 1] = static_cast<uint16_t>((half + 2) * kLanes + i);
    }
  }
  const __m512i first = _mm512_load_si512(halves[0]);
  const __m512i second = _mm512_load_si512(halves[1]);
  for (int64_t c = 0; c < task.format.value_dim; c += 2 * kLanes, to += 2 * kRunBytes) {
    for (int64_t entry = 0; entry < kKvBlockSize; entry += kLanes) {
      Float square[kLanes];  // words of pairs of components by entry, then the other way round
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const uint8_t* words = keys + ((c / 2 + i) * kKvBlockSize + entry) * 4;
        square[i] = c / 2 + i < num_pairs ? load(reinterpret_cast<const float*>(words)) : zero();
      }
      transpose(square);
#pragma GCC unroll 8
      for (int i = 0; i < kLanes; i += 2) {
        const __m512i even = _mm512_castps_si512(square[i]);
        const __m512i odd = _mm512_castps_si512(square[i + 1]);
        uint8_t* pair = to + (entry + i) / 2 * kLineBytes;
        _mm512_storeu_si512(pair, _mm512_permutex2var_epi16(even, first, odd));
        _mm512_storeu_si512(pair + kRunBytes, _mm512_permutex2var_epi16(even, second, odd));
      }
    }
  }
  return reinterpret_cast<const uint8_t*>(task.tile);
}

inline bool all_rows_see_all(const SplitTask& task, int32_t block) {
  for (int32_t r = 0; r < task.num_rows; ++r) {
    if (visible_entries(task, r, block) != ~0u) return false;
  }
  return true;
}

inline void add_blocks(const SplitTask& task, const SeenBlocks& seen) {
  // One tile of rows reads values from memory, and as they lie there; more than one, from caches.
  const bool value_in_key = task.format.value_in_key;
  const int32_t max_blocks = task.num_rows <= kMaxRows || value_in_key ? 1 : kMaxBlocks;
  for (int32_t i = 0; i < seen.count;) {
    const int32_t first = seen.blocks[i];
    const uint8_t* bytes = block_bytes(task, first);
    ValueBlocks blocks{{value_in_key ? values_of_keys(task, bytes) : bytes + task.values}, {}, 1};
    if (all_rows_see_all(task, first)) {
      while (blocks.count < max_blocks && first + blocks.count < task.num_blocks &&
             all_rows_see_all(task, first + blocks.count)) {
        blocks.values[blocks.count] = block_bytes(task, first + blocks.count) + task.values;
        ++blocks.count;
      }
    }
    i += blocks.count;
    // Then come the next blocks' values, unless they were read as keys; after the last, the next split's keys.
    for (int32_t b = 0; b < blocks.count; ++b) {
      blocks.ahead[b] =
          i + b < seen.count && !value_in_key ? block_bytes(task, seen.blocks[i + b]) + task.values : nullptr;
    }
    if (i == seen.count) blocks.ahead[0] = next_split(task);
    for_rows_that_see_the_same(task, first, nullptr, [&](const RowTile& tile, int32_t num_rows) {
      add_up_to<kMaxRows>(num_rows, tile, blocks);
      for (const uint8_t*& ahead : blocks.ahead) ahead = nullptr;
    });
  }
}

// 0, 16, 1, 17, ...
struct InterleavedHalves {
  uint16_t halves[2 * kLanes] = {};

  constexpr InterleavedHalves() {
    for (int i = 0; i < kLanes; ++i) {
      halves[2 * i] = static_cast<uint16_t>(i);
      halves[2 * i + 1] = static_cast<uint16_t>(kLanes + i);
    }
  }
};

// Words of one number of the lower half of `halves` and one of the upper half.
inline __m512i interleave(__m512i halves) {
  static constexpr InterleavedHalves kOrder;
  return _mm512_permutexvar_epi16(_mm512_loadu_si512(kOrder.halves), halves);
}

// The first `count` of 16 floats, rounded, and zeros.
inline __m256i round_floats(const float* from, int64_t count) {
  const Mask lanes = count >= kLanes ? Mask{0xffff} : first_lanes(count < 0 ? 0 : count);
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(load(lanes, from)));
}

inline __m512i join(__m256i low, __m256i high) { return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1); }

inline void store_keys(const KvBlockFormat& format, uint8_t* block, int count, const KvRows& rows) {
  const int64_t num_pairs = (format.key_dim + 1) / 2;
  for (int64_t d = 0; d < format.key_dim; d += 2 * kLanes) {
    for (int half = 0; half < kKvBlockSize; half += kLanes) {
      Float square[kLanes];  // pairs of components by entry, then the other way round
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const float* key = rows.keys + (half + i) * rows.key_stride + d;
        const int64_t left = half + i < count ? format.key_dim - d : 0;
        square[i] = _mm512_castsi512_ps(join(round_floats(key, left), round_floats(key + kLanes, left - kLanes)));
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        if (d / 2 + i >= num_pairs) continue;
        store(reinterpret_cast<float*>(block + ((d / 2 + i) * kKvBlockSize + half) * 4), square[i]);
      }
    }
  }
}

inline void store_values(const KvBlockFormat& format, uint8_t* values, int count, const KvRows& rows) {
  for (int64_t c = 0; c < format.value_dim; c += kLanes) {
    for (int entry = 0; entry < kKvBlockSize; entry += 2, values += kLineBytes) {
      const float* value = rows.values + entry * rows.value_stride + c;
      const int64_t left = format.value_dim - c;
      const __m512i pair = join(round_floats(value, entry < count ? left : 0),
                                round_floats(value + rows.value_stride, entry + 1 < count ? left : 0));
      _mm512_storeu_si512(values, interleave(pair));
    }
  }
}

inline void weigh(const SplitTask& task, const SeenBlocks& /*seen*/) {
  weigh_rows(task, [](const SplitTask& scaled, int32_t row) { weigh_row(scaled, row); });
}

#include "kernels/attention/rounded_split.inl"
//
#include "kernels/attention/decoded_split.inl"

}  // namespace

void kv_store_block_avx512_bf16(const KvBlockFormat& format, std::byte* block, int count, const KvRows& rows) {
  auto* bytes = reinterpret_cast<uint8_t*>(block);
  store_keys(format, bytes, count, rows);
  store_values(format, bytes + format.key_bytes(), count, rows);
}

void attention_split_bf16_avx512_bf16(const SplitTask& task) { split_rounded(task); }

void attention_largest_scores_bf16_avx512_bf16(const SplitTask& task) {
  round_queries(task);
  score_blocks(task, SeenBlocks(task), next_split(task));
  keep_largest(task);
}

void attention_split_decoded_avx512_bf16(const SplitTask& task) {
  switch (task.format.codec) {
    case KvCodec::kLatent8:
      return split_decoded(task, LatentCodec<8>{});
    case KvCodec::kLatent4:
      return split_decoded(task, LatentCodec<4>{});
    case KvCodec::kKivi4:
      return split_decoded(task, KiviCodec<4>{});
    case KvCodec::kKivi2:
      return split_decoded(task, KiviCodec<2>{});
    default:
      return split_decoded(task, Q8Codec{});
  }
}

}  // namespace witan
