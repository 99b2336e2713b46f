// attention_split in kBF16 of entries that are no bf16 ones: each block's are decoded to the layout of these, which
// stays in the caches, and multiplied as such. Included after codecs.inl, rounded_split.inl and what that is included
// after.

// Asks for what is decoded one block later at the pace of this one, of which there are num_steps.
class PacedPrefetch {
 public:
  // from: nullptr: nothing.
  PacedPrefetch(const uint8_t* from, int64_t num_bytes, int64_t num_steps)
      : from_(from),
        end_(from == nullptr ? 0 : num_bytes),
        step_((num_bytes / num_steps + kLineBytes) / kLineBytes * kLineBytes) {}

  void step() {
    for (const int64_t end = at_ + step_; at_ < end && at_ < end_; at_ += kLineBytes) prefetch(from_ + at_);
  }

 private:
  const uint8_t* from_;
  int64_t end_;
  int64_t step_;
  int64_t at_ = 0;
};

// Words of `even` in their lower halves and of `odd` in the upper ones, both rounded.
inline void store_pairs(uint8_t* to, Float even, Float odd) {
  _mm512_storeu_si512(to, interleave(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even))));
}

// Components d and d + 1 of a block's keys, of which the second may not be there.
template <typename Keys>
inline void decode_pair(const Keys& keys, int64_t d, bool has_odd, uint8_t* to) {
  // Both halves of the entries before anything is stored: what they share is read once.
  const Float even[2] = {keys.vector(d, 0), keys.vector(d, kLanes)};
  const Float odd[2] = {has_odd ? keys.vector(d + 1, 0) : zero(), has_odd ? keys.vector(d + 1, kLanes) : zero()};
  store_pairs(to, even[0], odd[0]);
  store_pairs(to + kLineBytes, even[1], odd[1]);
}

constexpr int64_t kPairBytes = kKvBlockSize * 4;  // of two components of the keys

// Components [begin, end) of a block's keys; `begin` is even.
template <typename Keys>
void decode_pairs(const SplitTask& task, const Keys& keys, int64_t begin, int64_t end) {
  for (int64_t d = begin; d < end; d += 2) {
    decode_pair(keys, d, d + 1 < end, task.decoded + d / 2 * kPairBytes);
  }
}

// The first num_components of a block's keys.
template <typename Keys>
const uint8_t* decode_keys(const SplitTask& task, const Keys keys, int64_t num_components, const uint8_t* ahead) {
  constexpr int64_t kAtOnce = 16;  // a word has 4, 8 or 16 components: shifts are constants
  PacedPrefetch next(ahead, task.format.key_bytes(), (num_components + kAtOnce - 1) / kAtOnce);
  uint8_t* to = task.decoded;
  int64_t d = 0;
  for (; d + kAtOnce <= num_components; d += kAtOnce) {
    next.step();
#pragma GCC unroll 8
    for (int64_t i = 0; i < kAtOnce; i += 2, to += kPairBytes) decode_pair(keys, d + i, true, to);
  }
  next.step();
  decode_pairs(task, keys, d, num_components);
  return task.decoded;
}

// The same: what lies behind latents is there as it has to be, unless it is in other pairs.
template <int kBits>
const uint8_t* decode_keys(const SplitTask& task, const LatentKeys<kBits> keys, int64_t num_components,
                           const uint8_t* ahead) {
  if (keys.latent_dim % 2 != 0) {
    decode_pairs(task, keys, 0, num_components);
    return task.decoded;
  }
  decode_keys(task, keys.latent, keys.latent_dim, ahead);
  const int64_t num_behind = (num_components - keys.latent_dim + 1) / 2;
  __builtin_memcpy(task.decoded + keys.latent_dim / 2 * kPairBytes, keys.rope.data,
                   static_cast<size_t>(num_behind * kPairBytes));
  return task.decoded;
}

// The ranges of a group of components of a block's values.
struct KiviValueRanges {
  float steps[kKvBlockSize];
  float least[kKvBlockSize];

  explicit KiviValueRanges(const uint32_t* words) {
    for (int64_t entry = 0; entry < kKvBlockSize; entry += kLanes) {
      const __m512i ranges = _mm512_loadu_si512(words + entry);
      store(steps + entry, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(ranges)));
      store(least + entry, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(ranges, 16))));
    }
  }
  Float of(int64_t entry, Float quants) const {
    return multiply_add(quants, broadcast(steps[entry]), broadcast(least[entry]));
  }
};

template <int kBits>
const uint8_t* decode_values(const SplitTask& task, const KiviValues<kBits> values, const uint8_t* ahead) {
  const int64_t value_dim = task.format.value_dim;
  PacedPrefetch next(ahead, task.format.block_bytes() - task.values, (value_dim + kLanes - 1) / kLanes);
  auto* const decoded = reinterpret_cast<uint8_t*>(task.tile);
  uint8_t* to = decoded;
  for (int64_t begin = 0; begin < value_dim; begin += kKvKiviValueGroup) {
    const KiviValueRanges ranges(values.ranges + begin / kKvKiviValueGroup * kKvBlockSize);
    const int64_t end = begin + kKvKiviValueGroup < value_dim ? begin + kKvKiviValueGroup : value_dim;
    for (int64_t c = begin; c < end; c += kLanes) {
      next.step();
#pragma GCC unroll 16
      for (int64_t entry = 0; entry < kKvBlockSize; entry += 2, to += kLineBytes) {
        store_pairs(to, ranges.of(entry, values.quants(entry, c)), ranges.of(entry + 1, values.quants(entry + 1, c)));
      }
    }
  }
  return decoded;
}

// Values beside keys, of kKivi alone, and in keys.
template <int kBits>
const uint8_t* decoded_values(const SplitTask& task, KiviCodec<kBits>, const uint8_t* block, const uint8_t* ahead) {
  return decode_values(task, KiviCodec<kBits>::Values::of(task, block),
                       ahead == nullptr ? nullptr : ahead + task.values);
}

template <typename Codec>
const uint8_t* decoded_values(const SplitTask& task, Codec, const uint8_t* block, const uint8_t* ahead) {
  return values_of_keys(task, decode_keys(task, Codec::Keys::of(task, block), task.format.value_dim, ahead));
}

template <typename Codec>
void split_decoded(const SplitTask& given, Codec codec) {
  const SplitTask task = with_turned_queries(given);
  const SeenBlocks seen(task);
  const auto block_after = [&](int32_t i) {
    return i + 1 < seen.count ? block_bytes(task, seen.blocks[i + 1]) : nullptr;
  };
  round_queries(task);
  for (int32_t i = 0; i < seen.count; ++i) {
    const auto keys = Codec::Keys::of(task, block_bytes(task, seen.blocks[i]));
    const uint8_t* decoded = decode_keys(task, keys, task.format.key_dim, block_after(i));
    for_rows_that_see(task, seen.blocks[i], nullptr,
                      [&](const RowTile& tile, int32_t num_rows) { score_up_to<kMaxRows>(num_rows, tile, decoded); });
  }
  weigh_rows(task, [](const SplitTask& scaled, int32_t row) { weigh_row(scaled, row); });
  clear_sums(task);
  for (int32_t i = 0; i < seen.count; ++i) {
    const uint8_t* values = decoded_values(task, codec, block_bytes(task, seen.blocks[i]), block_after(i));
    const ValueBlocks blocks{{values}, {}, 1};
    for_rows_that_see_the_same(task, seen.blocks[i], nullptr, [&](const RowTile& tile, int32_t num_rows) {
      add_up_to<kMaxRows>(num_rows, tile, blocks);
    });
  }
  write_sums(task);
}
