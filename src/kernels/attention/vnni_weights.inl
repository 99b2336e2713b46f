// From scores to rounded weights, of AttentionArithmetic::kInt8. Included after vnni.inl.

constexpr int kStepVectors = kWeightStep / kLanes;
constexpr int64_t kStepWords = kWeightStep / 4;  // the rounded weights of a row

// Of a group of components of the values: [num_rows][kStepWords], and the factors that products with the values' quants
// are to be multiplied with, [num_rows].
inline uint32_t* weight_words(const SplitTask& task, int64_t group) {
  return task.weight_words + group * task.num_rows * kStepWords;
}
inline float* weight_factors(const SplitTask& task, int64_t group) {
  return task.weight_factors + group * task.num_rows;
}

// 2^x, of relative error 7.5e-05: of the part of x in [0, 1) by the cubic polynomial whose largest relative error there
// is least. 2^-inf = 0, 2^NaN = NaN. Weights that are rounded to 8 bits need no more, and the denominator adds the
// same.
inline Float power_of_two(Float x) {
  const Float fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
  Float power = broadcast(0x1.3f96a4p-4f);
  power = multiply_add(power, fraction, broadcast(0x1.cefc4cp-3f));
  power = multiply_add(power, fraction, broadcast(0x1.64444cp-1f));
  power = multiply_add(power, fraction, broadcast(0x1.fff632p-1f));
  return _mm512_scalef_ps(power, x);  // times 2^floor(x)
}

// One row and one step.
struct WeightStep {
  const float* scores;         // [kWeightStep]
  const uint32_t* visible;     // [kStepBlocks]
  const float* const* scales;  // [kStepBlocks] the value scales of the blocks; of those that no row sees, anything
  int64_t num_groups;
  uint32_t* words;  // of the first group; those of the next are words_stride words on, as are
  int64_t words_stride;
  float* factors;  // its factors
  int64_t factors_stride;
};

// Four vectors of numbers, rounded to bytes in their order.
inline Int pack(const Float* quants) {
  const Int low = _mm512_packus_epi32(nearest(quants[0]), nearest(quants[1]));
  const Int high = _mm512_packus_epi32(nearest(quants[2]), nearest(quants[3]));
  const Int order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
}

// Rounds p = exp(score - max) times the entries' scales to bytes; the row sees all entries, or where not kAll those of
// `visible`. Returns denominators + p.
template <bool kAll>
[[gnu::noinline]] Float weigh_step(const WeightStep& step, Float shift, Float denominators) {
  Mask seen[kStepVectors];
  Float p[kStepVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kStepVectors; ++i) {
    p[i] = power_of_two(multiply_add(load(step.scores + i * kLanes), broadcast(0x1.715476p0f), shift));
    if constexpr (!kAll) {
      seen[i] = lanes_of_bits(step.visible[i / 2] >> i % 2 * kLanes);
      p[i] = keep(seen[i], p[i]);
    }
    denominators = add(denominators, p[i]);
  }
  for (int64_t group = 0; group < step.num_groups; ++group) {
    Float weights[kStepVectors];
    Int peaks = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < kStepVectors; ++i) {
      const float* from = step.scales[i / 2] + group * kKvBlockSize + i % 2 * kLanes;
      weights[i] = multiply(p[i], kAll ? load(from) : load(seen[i], from));
      peaks = _mm512_max_epu32(peaks, _mm512_castps_si512(weights[i]));  // not negative, or NaN
    }
    const float peak = largest(peaks);
    step.factors[group * step.factors_stride] = peak * (1.0f / 255.0f);
    const Float inverse = broadcast(peak < kSmallestPeak ? 0.0f : 255.0f / peak);
#pragma GCC unroll 8
    for (int i = 0; i < kStepVectors; ++i) weights[i] = multiply(weights[i], inverse);
    uint32_t* words = step.words + group * step.words_stride;
#pragma GCC unroll 2
    for (int i = 0; i < kStepVectors; i += 4) _mm512_store_si512(words + i * 4, pack(weights + i));
  }
  return denominators;
}

// Adds a row's biases to its scores of a step.
inline void add_biases(const SplitTask& task, const Step& step, int32_t row) {
  for (int32_t i = 0; i < step.num_blocks; ++i) {
    if (visible_entries(task, row, step.blocks[i]) == 0) continue;
    const float* bias = task.biases[row] + task.first_entry + step.blocks[i] * kKvBlockSize;
    float* scores = task.scores + row * kStepScoreStride + step.blocks[i] % kStepBlocks * kKvBlockSize;
    for (int e = 0; e < kKvBlockSize; e += kLanes) store(scores + e, add(load(scores + e), load(bias + e)));
  }
}

// Scores may exceed the one that weights are relative to by so much, exp of which is of no concern to float32.
constexpr float kMaxScoreExcess = 8.0f;

// Makes weights relative to another score, with all that the row has summed up so far.
[[gnu::noinline]] inline void change_reference(const SplitTask& task, int32_t row, float score) {
  float& reference = task.states[row][0];
  const Float factor = broadcast(exp_of_nonpositive(reference - score));
  const bool first = reference == -__builtin_inff();
  reference = score;
  if (first) return;
  float* denominators = task.denominators + row * kLanes;
  store(denominators, multiply(load(denominators), factor));
  float* sums = task.sums + row * task.padded_value_dim;
  for (int64_t c = 0; c < task.padded_value_dim; c += kLanes) store(sums + c, multiply(load(sums + c), factor));
}

// Turns a row's scaled scores of a step into rounded weights, of 0 for entries that it does not see. scales[b]: see
// WeightStep.
inline void weigh_row(const SplitTask& task, const Step& step, const float* const* scales, int32_t row) {
  if (task.biases != nullptr) add_biases(task, step, row);
  const WeightStep weights{.scores = task.scores + row * kStepScoreStride,
                           .visible = task.visible + row * kBlocksPerSplit + step.first,
                           .scales = scales,
                           .num_groups = task.num_value_groups,
                           .words = weight_words(task, 0) + row * kStepWords,
                           .words_stride = task.num_rows * kStepWords,
                           .factors = weight_factors(task, 0) + row,
                           .factors_stride = task.num_rows};
  uint32_t by_all = ~0u;
  Float highest = broadcast(-__builtin_inff());  // NaNs are passed over
  for (int b = 0; b < kStepBlocks; ++b) {
    by_all &= weights.visible[b];
#pragma GCC unroll 2
    for (int i = 0; i < kKvBlockSize; i += kLanes) {
      highest = _mm512_mask_max_ps(highest, lanes_of_bits(weights.visible[b] >> i),
                                   load(weights.scores + b * kKvBlockSize + i), highest);
    }
  }
  const float& reference = task.states[row][0];
  const Float limit = broadcast(reference + kMaxScoreExcess);
  if (less_than(limit, highest) != 0) change_reference(task, row, max_of_lanes(highest));
  // exp(-inf - -inf) would be NaN
  const Float shift = broadcast(reference == -__builtin_inff() ? 0.0f : reference * -0x1.715476p0f);
  float* of_row = task.denominators + row * kLanes;
  const Float denominators = load(of_row);
  store(of_row, by_all == ~0u ? weigh_step<true>(weights, shift, denominators)
                              : weigh_step<false>(weights, shift, denominators));
}

// The rounded weights of all rows.
inline void weigh(const SplitTask& task, const Step& step) {
  const float* scales[kStepBlocks];
  for (const float*& of_block : scales) of_block = task.sums;
  for (int32_t i = 0; i < step.num_blocks; ++i) {
    scales[step.blocks[i] - step.first] =
        reinterpret_cast<const float*>(block_bytes(task, step.blocks[i]) + task.value_scales);
  }
  for (int32_t r = 0; r < task.num_rows; ++r) weigh_row(task, step, scales, r);
}
