// Which rows meet which blocks together. Included after hadamard.inl; kMaxRows, the rows of a register tile, comes
// from the including file.

// Arguments of the inner loops: rows first_row .. of the task meet one block.
struct RowTile {
  const SplitTask& task;
  int32_t first_row;
  int32_t block;
  const uint8_t* ahead;  // nullptr, or what will be read next, to be prefetched at the pace of this block

  float* scores() const { return task.scores + first_row * kScoreStride + block * kKvBlockSize; }
  float* sums() const { return task.sums + first_row * task.padded_value_dim; }
  uint32_t visible() const { return task.visible[first_row * kBlocksPerSplit + block]; }
};

inline uint32_t visible_entries(const SplitTask& task, int32_t row, int32_t block) {
  return task.visible[row * kBlocksPerSplit + block];
}

inline const uint8_t* block_bytes(const SplitTask& task, int32_t block) {
  return reinterpret_cast<const uint8_t*>(task.blocks[block]);
}

// Of the next split, nullptr if there is none; only to be prefetched.
inline const uint8_t* next_split(const SplitTask& task) {
  return task.num_next_blocks == 0 ? nullptr : block_bytes(task, task.num_blocks);
}

// The blocks of which some row sees something; the others are not touched.
struct SeenBlocks {
  int32_t blocks[kBlocksPerSplit];
  int32_t count = 0;

  explicit SeenBlocks(const SplitTask& task) {
    uint32_t seen[kBlocksPerSplit] = {};
    for (int32_t r = 0; r < task.num_rows; ++r) {
      for (int32_t b = 0; b < kBlocksPerSplit; ++b) seen[b] |= visible_entries(task, r, b);
    }
    for (int32_t b = 0; b < task.num_blocks; ++b) {
      if (seen[b] != 0) blocks[count++] = b;
    }
  }
};

// The task with queries as its keys are: turned, as far as these are.
inline SplitTask with_turned_queries(const SplitTask& task) {
  if (task.turned_key_dim == 0) return task;
  SplitTask turned = task;
  const int64_t num_plain = task.format.key_dim - task.turned_key_dim;
  for (int32_t r = 0; r < task.num_rows && !task.has_queries; ++r) {
    auto* query = reinterpret_cast<float*>(task.query_words + r * task.query_stride);
    turn(task.queries[r], task.turned_key_dim, task.key_rotation, query);
    __builtin_memcpy(query + task.turned_key_dim, task.queries[r] + task.turned_key_dim,
                     static_cast<size_t>(num_plain) * sizeof(float));
    task.turned_queries[r] = query;
  }
  turned.queries = task.turned_queries;
  return turned;
}

inline void clear_sums(const SplitTask& task) {
  const int64_t num_sums = task.num_rows * task.padded_value_dim;
  for (int64_t i = 0; i < num_sums; i += kLanes) store(task.sums + i, zero());
}

// Writes the weighted sums to the rows' states.
inline void write_sums(const SplitTask& task) {
  for (int32_t r = 0; r < task.num_rows; ++r) {
    float* const sums = task.sums + r * task.padded_value_dim;
    if (task.turned_key_dim != 0) turn(sums, task.format.value_dim, task.value_rotation, sums);
    __builtin_memcpy(task.states[r] + 2, sums, static_cast<size_t>(task.format.value_dim) * sizeof(float));
  }
}

// Calls body(tile, num_rows) for neighbouring rows that see anything of the block; the first tile gets `ahead`.
template <typename Body>
void for_rows_that_see(const SplitTask& task, int32_t block, const uint8_t* ahead, const Body& body) {
  for (int32_t row = 0; row < task.num_rows;) {
    if (visible_entries(task, row, block) == 0) {
      ++row;
      continue;
    }
    int32_t end = row + 1;
    while (end < task.num_rows && end - row < kMaxRows && visible_entries(task, end, block) != 0) ++end;
    body(RowTile{task, row, block, ahead}, end - row);
    ahead = nullptr;
    row = end;
  }
}

// The same for neighbouring rows that see the same entries of the block.
template <typename Body>
void for_rows_that_see_the_same(const SplitTask& task, int32_t block, const uint8_t* ahead, const Body& body) {
  for (int32_t row = 0; row < task.num_rows;) {
    const uint32_t visible = visible_entries(task, row, block);
    if (visible == 0) {
      ++row;
      continue;
    }
    int32_t end = row + 1;
    while (end < task.num_rows && end - row < kMaxRows && visible_entries(task, end, block) == visible) ++end;
    body(RowTile{task, row, block, ahead}, end - row);
    ahead = nullptr;
    row = end;
  }
}

// Scores num_rows <= kRows rows with score_rows<...>(tile, keys) of the including file.
template <int kRows, typename Keys>
void score_up_to(int num_rows, const RowTile& tile, const Keys& keys) {
  if (num_rows == kRows) return score_rows<kRows>(tile, keys);
  if constexpr (kRows > 1) score_up_to<kRows - 1>(num_rows, tile, keys);
}
