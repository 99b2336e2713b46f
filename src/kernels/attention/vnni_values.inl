// The weighted sums of AttentionArithmetic::kInt8. Included after vnni_weights.inl.

// Field `kField` of each byte of quants of kBits, as 8-bit quants: its bits on top, below them 10..0.
template <int kBits, int kField>
inline Int unpack(Int bytes) {
  if constexpr (kBits == 8) {
    return bytes;
  } else {
    constexpr int kTopBits = 0xff << (8 - kBits) & 0xff;
    const Int top = _mm512_slli_epi32(bytes, 8 - kBits * (kField + 1));
    // (top & kTopBits) | middle
    return _mm512_ternarylogic_epi32(top, _mm512_set1_epi8(static_cast<char>(kTopBits)),
                                     _mm512_set1_epi8(static_cast<char>(1 << (7 - kBits))), 0xea);
  }
}

// The values of a step's blocks of which some row sees something, and the weights of kRows rows.
struct ValueTile {
  int num_blocks;                      // 1..kStepBlocks
  const uint8_t* values[kStepBlocks];  // [num_blocks]
  const uint8_t* ahead;                // to be prefetched, with kAhead, as many bytes as the values have
  int64_t first_words[kStepBlocks];    // [num_blocks] where in a row's weights those of the block begin
  const uint32_t* weights;             // of the first row; those of the next rows are kStepWords on
  const float* factors;                // [kRows]
  float* sums;                         // of the first row; those of the next rows are `stride` floats on
  int64_t stride;
};

// sums[r][c] += dots * factors[r] for kRuns runs of 16 components, `offset` bytes behind the values' first, over all
// entries of the blocks. Quants of less than 8 bits: the runs are the fields kField and kField + 1 of the bytes.
template <int kRows, int kBits, int kField, int kRuns, bool kAhead>
[[gnu::noinline]] void add_runs(const ValueTile& tile, int64_t offset) {
  constexpr int64_t kBytes = kBits == 8 ? kRuns * kRunBytes : kRunBytes;  // of a block
  Int dots[kRows][kRuns];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kRuns; ++v) dots[r][v] = _mm512_setzero_si512();
  }
  for (int block = 0; block < tile.num_blocks; ++block) {
    const uint8_t* values = tile.values[block] + offset;
    const uint32_t* weights = tile.weights + tile.first_words[block];
    const uint8_t* ahead = kAhead ? tile.ahead + offset * tile.num_blocks + block * kBytes : nullptr;
#pragma GCC unroll 8
    for (int64_t quad = 0; quad < kBlockQuads; ++quad) {
      Int value[kRuns];
      const Int bytes = load_bytes(values + quad * kLineBytes);
      if constexpr (kAhead) prefetch(ahead + quad * kLineBytes);
      value[0] = unpack<kBits, kField>(bytes);
      if constexpr (kRuns > 1 && kBits < 8) value[1] = unpack<kBits, kField + 1>(bytes);
      if constexpr (kRuns > 1 && kBits == 8) {
        value[1] = load_bytes(values + kRunBytes + quad * kLineBytes);
        if constexpr (kAhead) prefetch(ahead + kRunBytes + quad * kLineBytes);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Int weight = broadcast_word(weights[r * kStepWords + quad]);
#pragma GCC unroll 2
        for (int v = 0; v < kRuns; ++v) dots[r][v] = dot(dots[r][v], weight, value[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Float factor = broadcast(tile.factors[r]);
#pragma GCC unroll 2
    for (int v = 0; v < kRuns; ++v) {
      float* const to = tile.sums + r * tile.stride + v * kLanes;
      store(to, multiply_add(_mm512_cvtepi32_ps(dots[r][v]), factor, load(to)));
    }
  }
}

// The same for as many as there are of the runs kField and kField + 1.
template <int kRows, int kBits, int kField, bool kAhead>
void add_pair(const ValueTile& tile, int64_t offset, int64_t num_runs) {
  if (num_runs > kField + 1) {
    add_runs<kRows, kBits, kField, 2, kAhead>(tile, offset);
  } else if (num_runs > kField) {
    add_runs<kRows, kBits, kField, 1, kAhead>(tile, offset);
  }
}

// All components; the tile is at the first.
template <int kRows, int kBits, bool kAhead>
void add_all_runs(const SplitTask& task, ValueTile tile) {
  constexpr int kRunsOfBytes = kBits == 2 ? 4 : 2;  // that lie together, or are of a group
  static_assert(kKvQ8Group == 2 * kLanes);
  int64_t offset = 0;
  for (int64_t num_runs = (task.format.value_dim + kLanes - 1) / kLanes; num_runs > 0; num_runs -= kRunsOfBytes) {
    add_pair<kRows, kBits, 0, kAhead>(tile, offset, num_runs);
    tile.sums += 2 * kLanes;
    if constexpr (kRunsOfBytes > 2) {
      add_pair<kRows, kBits, 2, false>(tile, offset, num_runs);
      tile.sums += 2 * kLanes;
    }
    offset += kRunsOfBytes * kRunBytes * kBits / 8;
    if (task.num_value_groups == 1) continue;
    tile.weights += weight_words(task, 1) - weight_words(task, 0);
    tile.factors += weight_factors(task, 1) - weight_factors(task, 0);
  }
}

template <int kRows, int kBits>
void add_up_to(const SplitTask& task, int32_t num_rows, const ValueTile& tile, bool ahead) {
  if (num_rows < kRows) {
    if constexpr (kRows > 1) add_up_to<kRows - 1, kBits>(task, num_rows, tile, ahead);
  } else if (ahead) {
    add_all_runs<kRows, kBits, true>(task, tile);
  } else {
    add_all_runs<kRows, kBits, false>(task, tile);
  }
}

// The values of a step for all rows: weights of what a row does not see are 0, so that the products are, too.
template <int kBits>
void add_step(const SplitTask& task, const Step& step) {
  ValueTile tile{};
  tile.num_blocks = step.num_blocks;
  tile.stride = task.padded_value_dim;
  tile.ahead = step.ahead[1];
  for (int32_t i = 0; i < step.num_blocks; ++i) {
    tile.values[i] = block_bytes(task, step.blocks[i]) + task.values;
    tile.first_words[i] = (step.blocks[i] - step.first) * kBlockQuads;
  }
  if (tile.ahead != nullptr) prefetch_rest(task, tile.ahead, step.num_blocks * (task.value_scales - task.values));
  for (int32_t row = 0; row < task.num_rows; row += kMaxRows) {
    const int32_t num_rows = task.num_rows - row < kMaxRows ? task.num_rows - row : kMaxRows;
    tile.weights = weight_words(task, 0) + row * kStepWords;
    tile.factors = weight_factors(task, 0) + row;
    tile.sums = task.sums + row * task.padded_value_dim;
    add_up_to<kMaxRows, kBits>(task, num_rows, tile, row == 0 && tile.ahead != nullptr);
  }
}
