// attention_split in AttentionArithmetic::kInt8: steps of kWeightStep entries one after the other, their keys, then
// their values, so that memory is read nearly in its order. Included after vnni_values.inl and these of the file:
//   round_queries(task)             unless the task has them
//   score_rows<kRows>(tile, keys)   scores kRows rows against the keys of a block
//   add_values(task, step)          adds the values of the step, times rounded weights, to the sums

inline void score_step(const SplitTask& task, const Step& step) {
  const uint8_t* ahead = step.ahead[0];
  if (ahead != nullptr) prefetch_rest(task, ahead, step.num_blocks * task.key_scales);
  for (int32_t i = 0; i < step.num_blocks; ++i) {
    const uint8_t* keys = block_bytes(task, step.blocks[i]);
    for_rows_that_see(task, step.blocks[i], ahead,
                      [&](const RowTile& tile, int32_t num_rows) { score_up_to<kMaxRows>(num_rows, tile, keys); });
    if (ahead != nullptr) ahead += task.key_scales;
  }
}

// The step of seen block `begin` and its successors.
inline Step step_at(const SplitTask& task, const SeenBlocks& seen, int32_t begin) {
  Step step;
  step.first = seen.blocks[begin] / kStepBlocks * kStepBlocks;
  int32_t next = begin;
  for (; next < seen.count && seen.blocks[next] < step.first + kStepBlocks; ++next) {
    step.blocks[step.num_blocks++] = seen.blocks[next];
  }
  for (int32_t i = 0; i < kStepBlocks; ++i) {
    const int32_t left = seen.count - next;
    if (i < left) {
      step.ahead[i] = block_bytes(task, seen.blocks[next + i]);
    } else if (left == 0 && i < task.num_next_blocks) {
      step.ahead[i] = block_bytes(task, task.num_blocks + i);
    }
  }
  return step;
}

inline void split_in_steps(const SplitTask& task) {
  const SeenBlocks seen(task);
  round_queries(task);
  clear_sums(task);
  for (int32_t r = 0; r < task.num_rows; ++r) {
    task.states[r][0] = -__builtin_inff();
    store(task.denominators + r * kLanes, zero());
  }
  for (int32_t begin = 0; begin < seen.count;) {
    const Step step = step_at(task, seen, begin);
    score_step(task, step);
    weigh(task, step);
    add_values(task, step);
    begin += step.num_blocks;
  }
  for (int32_t r = 0; r < task.num_rows; ++r) task.states[r][1] = sum_of_lanes(load(task.denominators + r * kLanes));
  write_sums(task);
}
