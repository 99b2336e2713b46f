// The weighted sums of AttentionArithmetic::kInt8. Included after vnni.inl and this of the file:
//   add_values<kRows>(tile, values, scales)   adds the values of a block to the sums of kRows rows

template <int kRows>
void add_up_to(int num_rows, const RowTile& tile, const uint8_t* values, const float* scales) {
  if (num_rows == kRows) return add_values<kRows>(tile, values, scales);
  if constexpr (kRows > 1) add_up_to<kRows - 1>(num_rows, tile, values, scales);
}

inline void add_blocks(const SplitTask& task, const SeenBlocks& seen) {
  for (int32_t i = 0; i < seen.count; ++i) {
    const uint8_t* block = block_bytes(task, seen.blocks[i]);
    // Then come the next block's values; after the last, the next split's keys.
    const uint8_t* ahead = i + 1 < seen.count ? block_bytes(task, seen.blocks[i + 1]) + task.values
                                              : reinterpret_cast<const uint8_t*>(task.next_split);
    const auto* scales = reinterpret_cast<const float*>(block + task.value_scales);
    for_rows_that_see_the_same(task, seen.blocks[i], ahead, [&](const RowTile& tile, int32_t num_rows) {
      add_up_to<kMaxRows>(num_rows, tile, block + task.values, scales);
    });
  }
}
