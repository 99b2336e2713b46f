// From scores to rounded weights, of AttentionArithmetic::kInt8. Included after vnni.inl.

constexpr int kStepBlocks = kWeightStep / kKvBlockSize;
constexpr int kStepVectors = kWeightStep / kLanes;
constexpr int64_t kStepWords = kWeightStep / 4;  // the rounded weights of a row

// Of a group of components of the values and a step: [num_rows][kStepWords], and the factors that products with the
// values' quants are to be multiplied with, [num_rows].
inline uint32_t* weight_words(const SplitTask& task, int64_t group, int64_t step) {
  return task.weight_words + (group * kStepsPerSplit + step) * task.num_rows * kStepWords;
}
inline float* weight_factors(const SplitTask& task, int64_t group, int64_t step) {
  return task.weight_factors + (group * kStepsPerSplit + step) * task.num_rows;
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

// As max_score() of scores that are scaled.
inline float max_scaled_score(const SplitTask& task, int32_t row) {
  const float* scores = task.scores + row * kScoreStride;
  Float max[2] = {broadcast(-__builtin_inff()), broadcast(-__builtin_inff())};
  for (int32_t b = 0; b < task.num_blocks; ++b, scores += kKvBlockSize) {
    const uint32_t visible = visible_entries(task, row, b);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      max[i] = _mm512_mask_max_ps(max[i], lanes_of_bits(visible >> i * kLanes), load(scores + i * kLanes), max[i]);
    }
  }
  return max_of_lanes(larger(max[0], max[1]));
}

// Turns a row's scaled scores into rounded weights, of 0 for entries that it does not see, and writes its state but for
// the weighted sum. scales[b]: see WeightStep.
inline void weigh_row(const SplitTask& task, const float* const* scales, int32_t row) {
  const float max = max_scaled_score(task, row);
  // exp(-inf - -inf) would be NaN
  const Float shift = broadcast(max == -__builtin_inff() ? 0.0f : max * -0x1.715476p0f);
  Float denominators = zero();
  for (int64_t s = 0; s * kStepBlocks < task.num_blocks; ++s) {
    const uint32_t* visible = task.visible + row * kBlocksPerSplit + s * kStepBlocks;
    const WeightStep step{.scores = task.scores + row * kScoreStride + s * kWeightStep,
                          .visible = visible,
                          .scales = scales + s * kStepBlocks,
                          .num_groups = task.num_value_groups,
                          .words = weight_words(task, 0, s) + row * kStepWords,
                          .words_stride = kStepsPerSplit * task.num_rows * kStepWords,
                          .factors = weight_factors(task, 0, s) + row,
                          .factors_stride = kStepsPerSplit * task.num_rows};
    uint32_t by_all = ~0u;
    for (int b = 0; b < kStepBlocks; ++b) by_all &= visible[b];
    const bool all = by_all == ~0u;
    denominators = all ? weigh_step<true>(step, shift, denominators) : weigh_step<false>(step, shift, denominators);
  }
  task.states[row][0] = max;
  task.states[row][1] = sum_of_lanes(denominators);
}

// The rounded weights of all rows.
inline void weigh(const SplitTask& task, const SeenBlocks& seen) {
  const float* scales[kBlocksPerSplit];
  const auto scales_of = [&](int32_t block) {
    return reinterpret_cast<const float*>(block_bytes(task, block) + task.value_scales);
  };
  for (const float*& of_block : scales) of_block = task.sums;
  for (int32_t i = 0; i < seen.count; ++i) scales[seen.blocks[i]] = scales_of(seen.blocks[i]);
  SplitTask scaled = task;
  scaled.scale = 1.0f;
  weigh_rows(scaled, [&](const SplitTask& biased, int32_t row) { weigh_row(biased, scales, row); });
}
