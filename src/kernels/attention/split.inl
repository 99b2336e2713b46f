// attention_split in float32, written once for all instruction sets and codecs. Included after codecs.inl,
// transpose_*.inl, simd/exp.inl and weights.inl.
//
// Every number of a row's state is one chain of operations on that row alone: a score walks the components in order, a
// weighted sum walks the visible entries in order, the denominator adds vectors of entries in order. How many rows
// share a register tile, and which path decodes the block, changes which data are loaded together and nothing else.

// scores[r][e] = query r . key e, unscaled, for kRows rows and all 32 entries.
template <int kRows, typename Keys>
void score_rows(const RowTile& tile, const Keys& keys) {
  const float* queries[kRows];
  for (int r = 0; r < kRows; ++r) queries[r] = tile.task.queries[tile.first_row + r];
  float* scores = tile.scores();
  const int64_t key_dim = tile.task.format.key_dim;
  for (int64_t entry = 0; entry < kKvBlockSize; entry += 2 * kLanes) {
    Float sums[kRows][2];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = zero();
    const auto add_component = [&](int64_t d, Float key0, Float key1) {
      if (tile.ahead != nullptr && entry == 0) {
        prefetch<kKvBlockSize * Keys::kStoredBytes, Keys::kStoredBytes>(tile.ahead,
                                                                        d * kKvBlockSize * Keys::kStoredBytes);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Float q = broadcast(queries[r][d]);
        sums[r][0] = multiply_add(q, key0, sums[r][0]);
        sums[r][1] = multiply_add(q, key1, sums[r][1]);
      }
    };
    int64_t d = 0;
    for (; d + 2 <= key_dim; d += 2) {
      const auto [low0, high0] = pair_of_components(keys, d, entry);
      const auto [low1, high1] = pair_of_components(keys, d, entry + kLanes);
      add_component(d, low0, low1);
      add_component(d + 1, high0, high1);
    }
    if (d < key_dim) add_component(d, keys.vector(d, entry), keys.vector(d, entry + kLanes));
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      store(scores + r * kScoreStride + entry, sums[r][0]);
      store(scores + r * kScoreStride + entry + kLanes, sums[r][1]);
    }
  }
}

// sums[r][c ..] += p[r][e] * value e, for kRows rows that see the same entries and kVectors vectors of components.
template <int kRows, int kVectors, typename Values>
void add_values(const RowTile& tile, const Values& values, int64_t c) {
  const float* p = tile.scores();
  float* const out = tile.sums() + c;
  const int64_t out_stride = tile.task.padded_value_dim;
  Float sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) sums[r][v] = load(out + r * out_stride + v * kLanes);
  }
  const auto add_entry = [&](int64_t entry, const Float* value) {
    if (tile.ahead != nullptr) {
      prefetch<kVectors * kLanes * Values::kStoredBytes, Values::kStoredBytes>(
          tile.ahead, (c * kKvBlockSize + entry * kVectors * kLanes) * Values::kStoredBytes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Float weight = broadcast(p[r * kScoreStride + entry]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sums[r][v] = multiply_add(weight, value[v], sums[r][v]);
    }
  };
  const uint32_t visible = tile.visible();
  if (visible == ~0u) {
    for (int64_t entry = 0; entry < kKvBlockSize; entry += 2) {
      Float even[kVectors];
      Float odd[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const VectorPair pair = pair_of_entries(values, entry, c + v * kLanes);
        even[v] = pair.first;
        odd[v] = pair.second;
      }
      add_entry(entry, even);
      add_entry(entry + 1, odd);
    }
  } else {
    for (uint32_t entries = visible; entries != 0; entries &= entries - 1) {
      const int64_t entry = __builtin_ctz(entries);
      Float value[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) value[v] = values.vector(entry, c + v * kLanes);
      add_entry(entry, value);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) store(out + r * out_stride + v * kLanes, sums[r][v]);
  }
}

template <int kRows, typename Values>
void add_values_up_to(int num_rows, const RowTile& tile, const Values& values, int64_t num_components) {
  if (num_rows == kRows) {
    constexpr int kVectors = vectors_per_row(kRows);
    int64_t c = 0;
    for (; c + kVectors * kLanes <= num_components; c += kVectors * kLanes) {
      add_values<kRows, kVectors>(tile, values, c);
    }
    for (; c < num_components; c += kLanes) add_values<kRows, 1>(tile, values, c);
    return;
  }
  if constexpr (kRows > 1) add_values_up_to<kRows - 1>(num_rows, tile, values, num_components);
}

template <typename Keys>
PlainKeys<F32Element, Keys::kStoredBytes> decode_keys(const SplitTask& task, const Keys& keys) {
  for (int64_t d = 0; d < task.format.key_dim; ++d) {
    for (int64_t entry = 0; entry < kKvBlockSize; entry += kLanes) {
      store(task.tile + d * kKvBlockSize + entry, keys.vector(d, entry));
    }
  }
  return {reinterpret_cast<const uint8_t*>(task.tile)};
}

template <typename Values>
PlainValues<F32Element, Values::kStoredBytes> decode_values(const SplitTask& task, const Values& values) {
  const int64_t value_dim = task.format.value_dim;
  for (int64_t entry = 0; entry < kKvBlockSize; ++entry) {
    float* out = task.tile + entry * task.padded_value_dim;
    int64_t c = 0;
    for (; c + kLanes <= value_dim; c += kLanes) store(out + c, values.vector(entry, c));
    if (c == value_dim) continue;
    store(out + c, zero());
    for (; c < value_dim; ++c) out[c] = values.single(entry, c);
  }
  return {reinterpret_cast<const uint8_t*>(task.tile), task.padded_value_dim};
}

// The values of a block that has them as the first components of its keys: [value_dim][32] turned to [32][value_dim].
template <typename Keys>
PlainValues<F32Element, Keys::kStoredBytes> decode_values_in_keys(const SplitTask& task, const Keys& keys) {
  const int64_t value_dim = task.format.value_dim;
  for (int64_t c = 0; c < value_dim; c += kLanes) {
    for (int64_t entry = 0; entry < kKvBlockSize; entry += kLanes) {
      Float square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = c + i < value_dim ? keys.vector(c + i, entry) : zero();
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(task.tile + (entry + i) * task.padded_value_dim + c, square[i]);
    }
  }
  return {reinterpret_cast<const uint8_t*>(task.tile), task.padded_value_dim};
}

// Scores of the rows that see anything of the block.
template <typename Keys>
void score_block(const SplitTask& task, int32_t block, const Keys& keys, const uint8_t* ahead) {
  for_rows_that_see(task, block, ahead,
                    [&](const RowTile& tile, int32_t num_rows) { score_up_to<kMaxRows>(num_rows, tile, keys); });
}

// Adds the block to the weighted sums.
template <typename Values>
void add_block(const SplitTask& task, int32_t block, const Values& values, int64_t num_components,
               const uint8_t* ahead) {
  for_rows_that_see_the_same(task, block, ahead, [&](const RowTile& tile, int32_t num_rows) {
    add_values_up_to<kMaxRows>(num_rows, tile, values, num_components);
  });
}

// Turns a row's scores into p = exp(score * scale - max), 0 for entries it does not see, and writes its state but for
// the weighted sum.
inline void weigh_row(const SplitTask& task, int32_t row) {
  const float max = max_score(task, row);
  float* scores = task.scores + row * kScoreStride;
  const Float scale = broadcast(task.scale);
  const Float shift = broadcast(max == -__builtin_inff() ? 0.0f : max);  // exp(-inf - -inf) would be NaN
  Float denominators = zero();
  for (int32_t b = 0; b < task.num_blocks; ++b) {
    const uint32_t visible = visible_entries(task, row, b);
    if (visible == 0) continue;
    for (int i = 0; i < kKvBlockSize; i += kLanes) {
      float* score = scores + b * kKvBlockSize + i;
      const Float p =
          keep(lanes_of_bits(visible >> i), exp_of_nonpositive(subtract(multiply(load(score), scale), shift)));
      store(score, p);
      denominators = add(denominators, p);
    }
  }
  task.states[row][0] = max;
  task.states[row][1] = sum_of_lanes(denominators);
}

template <typename Codec>
void score_blocks(const SplitTask& task, const SeenBlocks& seen, bool decode) {
  for (int32_t i = 0; i < seen.count; ++i) {
    const int32_t block = seen.blocks[i];
    const auto keys = Codec::Keys::of(task, block_bytes(task, block));
    if (decode) {
      score_block(task, block, decode_keys(task, keys), nullptr);
    } else {
      // Then come the next block's keys; after the last, the first block's values.
      const uint8_t* ahead =
          i + 1 < seen.count ? block_bytes(task, seen.blocks[i + 1]) : block_bytes(task, seen.blocks[0]) + task.values;
      score_block(task, block, keys, ahead);
    }
  }
}

template <typename Codec>
void add_blocks(const SplitTask& task, const SeenBlocks& seen, bool decode) {
  const int64_t value_dim = task.format.value_dim;
  for (int32_t i = 0; i < seen.count; ++i) {
    const int32_t block = seen.blocks[i];
    const uint8_t* bytes = block_bytes(task, block);
    // Then come the next block's values; after the last, the next split's keys.
    const uint8_t* ahead = i + 1 < seen.count ? block_bytes(task, seen.blocks[i + 1]) + task.values : next_split(task);
    if (task.format.value_in_key) {
      add_block(task, block, decode_values_in_keys(task, Codec::Keys::of(task, bytes)), value_dim, ahead);
    } else if (decode || value_dim % kLanes != 0) {
      add_block(task, block, decode_values(task, Codec::Values::of(task, bytes)), value_dim, ahead);
    } else {
      add_block(task, block, Codec::Values::of(task, bytes), value_dim, ahead);
    }
  }
}

// A few register tiles of rows decode as they read; more rows share a decoded copy. Floats need no decoding.
// Four tiles: measured against 1, 2 and never; a copy paid only from there on, most for kQ8.
template <typename Codec>
bool decodes_first(const SplitTask& task, Codec) {
  return Codec::Keys::kStoredBytes < 4 && task.num_rows > 4 * kMaxRows;
}

template <typename Codec>
void weigh(const SplitTask& task, const SeenBlocks& seen, Codec codec) {
  score_blocks<Codec>(task, seen, decodes_first(task, codec));
  weigh_rows(task, [](const SplitTask& scaled, int32_t row) { weigh_row(scaled, row); });
}

template <typename Codec>
void attend(const SplitTask& task, Codec codec) {
  const SeenBlocks seen(task);
  weigh(with_turned_queries(task), seen, codec);
  clear_sums(task);
  add_blocks<Codec>(task, seen, decodes_first(task, codec));
  write_sums(task);
}

// Calls body(codec) with the task's codec.
template <typename Body>
void with_codec(const SplitTask& task, const Body& body) {
  switch (task.format.codec) {
    case KvCodec::kF32:
      return body(F32Codec{});
    case KvCodec::kF16:
      return body(F16Codec{});
    case KvCodec::kBF16:
      return body(Bf16Codec{});
    case KvCodec::kQ8:
      return body(Q8Codec{});
    case KvCodec::kLatent8:
      return body(LatentCodec<8>{});
    case KvCodec::kLatent4:
      return body(LatentCodec<4>{});
    case KvCodec::kKivi4:
      return body(KiviCodec<4>{});
    case KvCodec::kKivi2:
      return body(KiviCodec<2>{});
    default:
      return body(HadamardCodec{});
  }
}
