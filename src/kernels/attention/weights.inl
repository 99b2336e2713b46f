// From scores to weights: the parts that do not depend on how weights are kept. Included after tiles.inl.

// The largest scaled score that a row sees; NaNs are passed over, -inf where there is nothing else.
inline float max_score(const SplitTask& task, int32_t row) {
  const float* scores = task.scores + row * kScoreStride;
  const Float scale = broadcast(task.scale);
  const Float lowest = broadcast(-__builtin_inff());
  Float max = lowest;
  for (int32_t b = 0; b < task.num_blocks; ++b) {
    const uint32_t visible = visible_entries(task, row, b);
    if (visible == 0) continue;
    for (int i = 0; i < kKvBlockSize; i += kLanes) {
      const Float score = multiply(load(scores + b * kKvBlockSize + i), scale);
      max = larger(select(lanes_of_bits(visible >> i), score, lowest), max);
    }
  }
  return max_of_lanes(max);
}

// The first row's scores become the largest of all rows, NaNs passed over, of blocks that every row sees.
inline void keep_largest(const SplitTask& task) {
  for (int64_t i = 0; i < int64_t{task.num_blocks} * kKvBlockSize; i += kLanes) {
    Float largest = broadcast(-__builtin_inff());
    for (int32_t r = 0; r < task.num_rows; ++r) largest = larger(load(task.scores + r * kScoreStride + i), largest);
    store(task.scores + i, largest);
  }
}

// Scales a row's scores and adds its bias.
inline void bias_row(const SplitTask& task, int32_t row) {
  float* scores = task.scores + row * kScoreStride;
  const float* bias = task.biases[row] + task.first_entry;
  const Float scale = broadcast(task.scale);
  for (int32_t b = 0; b < task.num_blocks; ++b) {
    if (visible_entries(task, row, b) == 0) continue;
    for (int i = b * kKvBlockSize; i < (b + 1) * kKvBlockSize; i += kLanes) {
      store(scores + i, multiply_add(load(scores + i), scale, load(bias + i)));
    }
  }
}

// Calls weigh(task, row) for every row; where there are biases, with scores that are scaled and biased.
template <typename Weigh>
void weigh_rows(const SplitTask& task, const Weigh& weigh) {
  if (task.biases == nullptr) {
    for (int32_t r = 0; r < task.num_rows; ++r) weigh(task, r);
    return;
  }
  SplitTask biased = task;
  biased.scale = 1.0f;
  for (int32_t r = 0; r < task.num_rows; ++r) {
    bias_row(task, r);
    weigh(biased, r);
  }
}
