// What the files of AttentionArithmetic::kInt8 share. An instruction multiplies four pairs of bytes, one of each
// unsigned, and adds them to a 32-bit integer: four components of a key, or four entries of a component of the values.
// Integer sums are exact, so their order is free; the float sums over groups of components and over blocks are one
// chain of operations per number and row, as in split.inl. Included after tiles.inl and simd/exp.inl.

constexpr int64_t kLineBytes = 64;                       // of the caches; a vector is one
constexpr int64_t kBlockQuads = kKvBlockSize / 4;        // of entries
constexpr int64_t kRunBytes = kBlockQuads * kLineBytes;  // 16 components of the values of a block, in bytes
constexpr int64_t kKeyWordBytes = kKvBlockSize * 4;      // a word of each entry
constexpr float kSmallestPeak = 0x1p-100f;               // products of weights and scales below it count as 0

using Int = __m512i;

inline Int load_bytes(const void* from) { return _mm512_loadu_si512(from); }
inline Int broadcast_word(uint32_t word) { return _mm512_set1_epi32(static_cast<int>(word)); }
// sum + unsigned bytes x signed bytes, four of each to a lane.
inline Int dot(Int sum, Int unsigned_bytes, Int signed_bytes) {
  return _mm512_dpbusd_epi32(sum, unsigned_bytes, signed_bytes);
}
inline Int nearest(Float v) { return _mm512_cvtps_epi32(v); }
inline Int magnitude_bits(Float v) { return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff)); }
inline void prefetch(const uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T1); }

// Of bits of magnitudes, which order like these, infinity and NaN above all.
inline float largest(Int bits) { return __builtin_bit_cast(float, _mm512_reduce_max_epu32(bits)); }

struct Query {
  const uint32_t* words;
  const float* scales;     // [groups]
  const int32_t* offsets;  // [groups]: -128 times the sum of the quants, since keys lie as quant + 128

  Query(const SplitTask& task, int64_t row)
      : words(task.query_words + row * task.query_stride),
        scales(reinterpret_cast<const float*>(words + task.num_query_words)),
        offsets(reinterpret_cast<const int32_t*>(scales + task.num_key_groups)) {}
};

constexpr int kStepBlocks = kWeightStep / kKvBlockSize;

// The blocks of kWeightStep entries of which some row sees something, and those that come next: of the next step, or of
// the next split. Blocks mostly lie behind one another in memory, keys and values in turn. Their bytes are prefetched
// in that order, at the pace at which these are read, and then memory gives them nearly as fast as caches do: while
// keys are scored, those of the first of the next blocks, while values are added, those of the second.
struct Step {
  int32_t first = 0;                       // block of the step, seen or not
  int32_t num_blocks = 0;                  // 1..kStepBlocks
  int32_t blocks[kStepBlocks] = {};        // [num_blocks]
  const uint8_t* ahead[kStepBlocks] = {};  // nullptr: none
};

// Where scores of a tile's first row begin.
inline float* step_scores(const RowTile& tile) {
  return tile.task.scores + tile.first_row * kStepScoreStride + tile.block % kStepBlocks * kKvBlockSize;
}

// What is left of a block of which `begin` bytes are prefetched at the pace of others.
inline void prefetch_rest(const SplitTask& task, const uint8_t* block, int64_t begin) {
  for (int64_t at = begin; at < task.block_bytes; at += kLineBytes) prefetch(block + at);
}

// Rounds a group of `dim` components of a query to num_words words; behind them come zeros. A group that is not finite
// gets a scale of NaN. Scales include `factor`, that of the scores.
inline void round_group(const float* x, int64_t dim, int64_t num_words, float factor, uint32_t* words, float* scale,
                        int32_t* offset) {
  const auto part = [&](int64_t d) {
    const int64_t left = dim - d;
    return load(left >= kLanes ? Mask{0xffff} : first_lanes(left < 0 ? 0 : left), x + d);
  };
  Int bits = _mm512_setzero_si512();
  for (int64_t d = 0; d < dim; d += kLanes) bits = _mm512_max_epu32(bits, magnitude_bits(part(d)));
  const float max = largest(bits);
  const bool finite = max <= __FLT_MAX__;
  const float step = max / 127.0f;
  const float inverse = finite && step >= __FLT_MIN__ ? 1.0f / step : 0.0f;
  Int sum = _mm512_setzero_si512();
  for (int64_t d = 0; d < num_words * 4; d += kLanes) {
    const Int quants = finite ? nearest(multiply(part(d), broadcast(inverse))) : _mm512_setzero_si512();
    _mm_storeu_si128(reinterpret_cast<__m128i*>(words + d / 4), _mm512_cvtsepi32_epi8(quants));
    sum = _mm512_add_epi32(sum, quants);
  }
  *scale = !finite ? __builtin_nanf("") : inverse == 0.0f ? 0.0f : step * factor;
  *offset = -128 * _mm512_reduce_add_epi32(sum);
}
