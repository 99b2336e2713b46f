// attention_split for a file that rounds queries and weights. Included after tiles.inl and these of the file:
//   round_queries(task)             unless the task has them
//   score_rows<kRows>(tile, keys)   scores kRows rows against the keys of a block
//   weigh(task, seen)               turns all rows' scores into weights and writes their states' first two numbers
//   add_blocks(task, seen)          adds the values of the blocks to the weighted sums

// After the last block comes `next`, nullptr or what will be read then.
inline void score_blocks(const SplitTask& task, const SeenBlocks& seen, const uint8_t* next) {
  for (int32_t i = 0; i < seen.count; ++i) {
    const uint8_t* keys = block_bytes(task, seen.blocks[i]);
    const uint8_t* ahead = i + 1 < seen.count ? block_bytes(task, seen.blocks[i + 1]) : next;
    for_rows_that_see(task, seen.blocks[i], ahead,
                      [&](const RowTile& tile, int32_t num_rows) { score_up_to<kMaxRows>(num_rows, tile, keys); });
  }
}

inline void split_rounded(const SplitTask& task) {
  const SeenBlocks seen(task);
  round_queries(task);
  score_blocks(task, seen, seen.count == 0 ? nullptr : block_bytes(task, seen.blocks[0]) + task.values);
  weigh(task, seen);
  clear_sums(task);
  add_blocks(task, seen);
  write_sums(task);
}
