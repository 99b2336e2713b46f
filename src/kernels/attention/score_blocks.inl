// The scores of all blocks of a split, from score_rows<kRows>(tile, keys), which scores kRows rows against the keys of
// a block. Included after that and tiles.inl.

template <int kRows>
void score_up_to(int num_rows, const RowTile& tile, const uint8_t* keys) {
  if (num_rows == kRows) return score_rows<kRows>(tile, keys);
  if constexpr (kRows > 1) score_up_to<kRows - 1>(num_rows, tile, keys);
}

inline void score_blocks(const SplitTask& task, const SeenBlocks& seen) {
  for (int32_t i = 0; i < seen.count; ++i) {
    const uint8_t* keys = block_bytes(task, seen.blocks[i]);
    // Then come the next block's keys; after the last, the first block's values.
    const uint8_t* ahead =
        i + 1 < seen.count ? block_bytes(task, seen.blocks[i + 1]) : block_bytes(task, seen.blocks[0]) + task.values;
    for_rows_that_see(task, seen.blocks[i], ahead,
                      [&](const RowTile& tile, int32_t num_rows) { score_up_to<kMaxRows>(num_rows, tile, keys); });
  }
}
