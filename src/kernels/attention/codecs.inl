// How the kernels read each codec: element types, then the keys and the values of one block. Included after a
// vector_*.inl. All reads give the same bits as kv_load, but for turned entries, which nobody turns back here.

constexpr int64_t kLineBytes = 64;  // of the caches

// Asks for the bytes [begin, begin + kNumBytes) of `from`, which are read one block later. The keys or values of a
// block of single bytes fit into the first-level cache beside those being read; larger ones would evict them.
// Measured with key and value dims of 128, 8 rows, Zen 4: second level 1.6 times as fast for kF32.
template <int64_t kNumBytes, int kElementBytes>
inline void prefetch(const uint8_t* from, int64_t begin) {
  constexpr auto kHint = kElementBytes == 1 ? _MM_HINT_T0 : _MM_HINT_T1;
  // Ranges of half a line follow each other, so every second one does for both.
  if (kNumBytes < kLineBytes && begin % kLineBytes != 0) return;
#pragma GCC unroll 16
  for (int64_t i = 0; i < kNumBytes; i += kLineBytes) {
    _mm_prefetch(reinterpret_cast<const char*>(from + begin + i), kHint);
  }
}

struct VectorPair {
  Float first;
  Float second;
};

// Components d and d + 1 of kLanes keys, for an even d.
template <typename Keys>
VectorPair pair_of_components(const Keys& keys, int64_t d, int64_t entry) {
  if constexpr (requires { keys.pair(d, entry); }) {
    return keys.pair(d, entry);
  } else {
    return {keys.vector(d, entry), keys.vector(d + 1, entry)};
  }
}

// kLanes components of entries `entry` and `entry` + 1, for an even one.
template <typename Values>
VectorPair pair_of_entries(const Values& values, int64_t entry, int64_t c) {
  if constexpr (requires { values.pair(entry, c); }) {
    return values.pair(entry, c);
  } else {
    return {values.vector(entry, c), values.vector(entry + 1, c)};
  }
}

struct F32Element {
  static constexpr int kBytes = 4;
  static Float vector(const uint8_t* from) { return load(reinterpret_cast<const float*>(from)); }
  static float single(const uint8_t* from) { return *reinterpret_cast<const float*>(from); }
};

struct F16Element {
  static constexpr int kBytes = 2;
  static Float vector(const uint8_t* from) { return load_f16(from); }
  static float single(const uint8_t* from) { return _cvtsh_ss(*reinterpret_cast<const uint16_t*>(from)); }
};

// Keys lie as [key_dim][32 entries], values as [32 entries][stride]. kStored is the size of an element in the cache,
// which paces prefetching; it differs from the element's in decoded copies.
template <typename Element, int kStored = Element::kBytes>
struct PlainKeys {
  static constexpr int kBytes = Element::kBytes;
  static constexpr int kStoredBytes = kStored;
  const uint8_t* data;

  static PlainKeys of(const SplitTask&, const uint8_t* block) { return {block}; }
  // kLanes entries from `entry` on of component d.
  Float vector(int64_t d, int64_t entry) const { return Element::vector(data + (d * kKvBlockSize + entry) * kBytes); }
};

template <typename Element, int kStored = Element::kBytes>
struct PlainValues {
  static constexpr int kBytes = Element::kBytes;
  static constexpr int kStoredBytes = kStored;
  const uint8_t* data;
  int64_t stride;

  static PlainValues of(const SplitTask& task, const uint8_t* block) {
    return {block + task.values, task.format.value_dim};
  }
  // kLanes components from c on of an entry, and one.
  Float vector(int64_t entry, int64_t c) const { return Element::vector(data + (entry * stride + c) * kBytes); }
  float single(int64_t entry, int64_t c) const { return Element::single(data + (entry * stride + c) * kBytes); }
};

// Words of two components.
struct Bf16Keys {
  static constexpr int kStoredBytes = 2;
  const uint8_t* data;

  static Bf16Keys of(const SplitTask&, const uint8_t* block) { return {block}; }
  Float vector(int64_t d, int64_t entry) const {
    const uint8_t* words = data + (d / 2 * kKvBlockSize + entry) * 4;
    return d % 2 == 0 ? load_low_bf16(words) : load_high_bf16(words);
  }
  VectorPair pair(int64_t d, int64_t entry) const {
    const uint8_t* words = data + (d / 2 * kKvBlockSize + entry) * 4;
    return {load_low_bf16(words), load_high_bf16(words)};
  }
};

// Words of two entries.
struct Bf16Values {
  static constexpr int kStoredBytes = 2;
  static constexpr int64_t kRun = 16;  // components
  const uint8_t* data;

  static Bf16Values of(const SplitTask& task, const uint8_t* block) { return {block + task.values}; }
  const uint8_t* words(int64_t entry, int64_t c) const {
    return data + ((c / kRun * kKvBlockSize / 2 + entry / 2) * kRun + c % kRun) * 4;
  }
  Float vector(int64_t entry, int64_t c) const {
    return entry % 2 == 0 ? load_low_bf16(words(entry, c)) : load_high_bf16(words(entry, c));
  }
  VectorPair pair(int64_t entry, int64_t c) const {
    const uint8_t* both = words(entry, c);
    return {load_low_bf16(both), load_high_bf16(both)};
  }
  float single(int64_t entry, int64_t c) const {
    const int bits = reinterpret_cast<const uint16_t*>(words(entry, c))[entry % 2] << 16;
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
  }
};

// Words of four components.
struct Q8Keys {
  static constexpr int kStoredBytes = 1;
  const uint8_t* data;
  const float* scales;  // [ceil(key_dim / 32)][32 entries]

  static Q8Keys of(const SplitTask& task, const uint8_t* block) {
    return {block, reinterpret_cast<const float*>(block + task.key_scales)};
  }
  Float vector(int64_t d, int64_t entry) const {
    const uint8_t* words = data + (d / 4 * kKvBlockSize + entry) * 4;
    return multiply(load_byte_of_words(words, static_cast<int>(d % 4), 128),
                    load(scales + d / kKvQ8Group * kKvBlockSize + entry));
  }
};

// Words of four entries.
struct Q8Values {
  static constexpr int kStoredBytes = 1;
  static constexpr int64_t kRun = 16;  // components
  const uint8_t* data;
  const float* scales;  // [ceil(value_dim / 32)][32 entries]

  static Q8Values of(const SplitTask& task, const uint8_t* block) {
    return {block + task.values, reinterpret_cast<const float*>(block + task.value_scales)};
  }
  const uint8_t* words(int64_t entry, int64_t c) const {
    return data + ((c / kRun * kKvBlockSize / 4 + entry / 4) * kRun + c % kRun) * 4;
  }
  float scale(int64_t entry, int64_t c) const { return scales[c / kKvQ8Group * kKvBlockSize + entry]; }
  Float vector(int64_t entry, int64_t c) const {
    return multiply(load_byte_of_words(words(entry, c), static_cast<int>(entry % 4), 0), broadcast(scale(entry, c)));
  }
  float single(int64_t entry, int64_t c) const {
    return static_cast<float>(static_cast<int8_t>(words(entry, c)[entry % 4])) * scale(entry, c);
  }
};

// Quants of `bits` bits, which are the upper ones of an 8-bit quant whose others are 10..0: of each word the one that
// ends at bit `end`, as an 8-bit quant; less 128 if they are unsigned.
inline Float load_quants(const void* words, int bits, int64_t end, bool is_unsigned) {
  // The top bit of every quant of a byte.
  const int top_bits = bits == 8 ? 0x80 : bits == 4 ? 0x88 : 0xaa;
  const Float field = load_field_of_words(words, static_cast<int>(32 - end), 32 - bits, is_unsigned ? top_bits : 0);
  if (bits == 8) return field;
  return multiply_add(field, broadcast(static_cast<float>(1 << (8 - bits))),
                      broadcast(static_cast<float>(1 << (7 - bits))));
}

// Turned keys.
struct HadamardKeys {
  static constexpr int kStoredBytes = 1;
  const uint8_t* data;
  const float* scales;  // [32 entries]
  int bits;

  static HadamardKeys of(const SplitTask& task, const uint8_t* block) {
    return {block, reinterpret_cast<const float*>(block + task.key_scales), task.key_bits};
  }
  Float vector(int64_t d, int64_t entry) const {
    const int64_t fields = 8 / bits;
    const uint8_t* words = data + (d / (4 * fields) * kKvBlockSize + entry) * 4;
    const int64_t end = d % 4 * 8 + (d / 4 % fields + 1) * bits;
    return multiply(load_quants(words, bits, end, true), load(scales + entry));
  }
};

// Turned values.
struct HadamardValues {
  static constexpr int kStoredBytes = 1;
  static constexpr int64_t kRun = 16;  // components
  const uint8_t* data;
  const float* scales;  // [32 entries]
  int bits;

  static HadamardValues of(const SplitTask& task, const uint8_t* block) {
    return {block + task.values, reinterpret_cast<const float*>(block + task.value_scales), task.value_bits};
  }
  const uint8_t* words(int64_t entry, int64_t c) const {
    return data + ((c / (kRun * 8 / bits) * kKvBlockSize / 4 + entry / 4) * kRun + c % kRun) * 4;
  }
  // Where the quant of a component ends in its word.
  int64_t end(int64_t entry, int64_t c) const { return entry % 4 * 8 + (c / kRun % (8 / bits) + 1) * bits; }
  Float vector(int64_t entry, int64_t c) const {
    return multiply(load_quants(words(entry, c), bits, end(entry, c), false), broadcast(scales[entry]));
  }
  float single(int64_t entry, int64_t c) const {
    const int32_t word = *reinterpret_cast<const int32_t*>(words(entry, c));
    const auto top = static_cast<int32_t>(static_cast<uint32_t>(word) << (32 - end(entry, c))) >> (32 - bits);
    const int middle = bits == 8 ? 0 : 1 << (7 - bits);
    return static_cast<float>(top * (1 << (8 - bits)) + middle) * scales[entry];
  }
};

// Turned latents.
template <int kBits>
struct LatentQuants {
  const uint8_t* data;
  const float* scales;  // [ceil(value_dim / 128)][32 entries]

  Float vector(int64_t d, int64_t entry) const {
    return HadamardKeys{data, scales + d / kKvLatentGroup * kKvBlockSize, kBits}.vector(d, entry);
  }
};

// Latents, and behind them words of two bf16 components.
template <int kBits>
struct LatentKeys {
  static constexpr int kStoredBytes = 1;
  LatentQuants<kBits> latent;
  Bf16Keys rope;
  int64_t latent_dim;

  static LatentKeys of(const SplitTask& task, const uint8_t* block) {
    return {
        {block, reinterpret_cast<const float*>(block + task.key_scales)}, {block + task.rope}, task.format.value_dim};
  }
  Float vector(int64_t d, int64_t entry) const {
    return d < latent_dim ? latent.vector(d, entry) : rope.vector(d - latent_dim, entry);
  }
};

// The smallest number of a group of components and the step between quants: float16 halves of a word.
struct KiviRange {
  float step;
  float least;

  static KiviRange of(const uint32_t* word) {
    const __m128 halves = _mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int>(*word)));
    return {_mm_cvtss_f32(halves), _mm_cvtss_f32(_mm_movehdup_ps(halves))};
  }
  Float vector(Float quants) const { return multiply_add(quants, broadcast(step), broadcast(least)); }
  // As a quant times a step is exact, this has the bits of an fma.
  float single(uint32_t quant) const { return static_cast<float>(quant) * step + least; }
};

// Words of consecutive components.
template <int kBits>
struct KiviKeys {
  static constexpr int kStoredBytes = 1;
  static constexpr int64_t kPerWord = 32 / kBits;
  const uint8_t* data;
  const uint32_t* ranges;  // [key_dim]

  static KiviKeys of(const SplitTask& task, const uint8_t* block) {
    return {block, reinterpret_cast<const uint32_t*>(block + task.key_scales)};
  }
  Float vector(int64_t d, int64_t entry) const {
    const uint8_t* words = data + (d / kPerWord * kKvBlockSize + entry) * 4;
    const auto end = static_cast<int>((d % kPerWord + 1) * kBits);
    return KiviRange::of(ranges + d).vector(load_unsigned_field_of_words(words, 32 - end, 32 - kBits));
  }
};

// Words of consecutive entries.
template <int kBits>
struct KiviValues {
  static constexpr int kStoredBytes = 1;
  static constexpr int64_t kRun = 16;  // components
  static constexpr int64_t kPerWord = 32 / kBits;
  const uint8_t* data;
  const uint32_t* ranges;  // [ceil(value_dim / 32)][32 entries]

  static KiviValues of(const SplitTask& task, const uint8_t* block) {
    return {block + task.values, reinterpret_cast<const uint32_t*>(block + task.value_scales)};
  }
  const uint8_t* words(int64_t entry, int64_t c) const {
    return data + ((c / kRun * kBits + entry / kPerWord) * kRun + c % kRun) * 4;
  }
  KiviRange range(int64_t entry, int64_t c) const {
    return KiviRange::of(ranges + c / kKvKiviValueGroup * kKvBlockSize + entry);
  }
  Float quants(int64_t entry, int64_t c) const {
    const auto end = static_cast<int>((entry % kPerWord + 1) * kBits);
    return load_unsigned_field_of_words(words(entry, c), 32 - end, 32 - kBits);
  }
  Float vector(int64_t entry, int64_t c) const { return range(entry, c).vector(quants(entry, c)); }
  float single(int64_t entry, int64_t c) const {
    const uint32_t word = *reinterpret_cast<const uint32_t*>(words(entry, c));
    return range(entry, c).single(word >> (entry % kPerWord * kBits) & ((1u << kBits) - 1u));
  }
};

struct F32Codec {
  using Keys = PlainKeys<F32Element>;
  using Values = PlainValues<F32Element>;
};
struct F16Codec {
  using Keys = PlainKeys<F16Element>;
  using Values = PlainValues<F16Element>;
};
struct Bf16Codec {
  using Keys = Bf16Keys;
  using Values = Bf16Values;
};
struct Q8Codec {
  using Keys = Q8Keys;
  using Values = Q8Values;
};
struct HadamardCodec {
  using Keys = HadamardKeys;
  using Values = HadamardValues;
};
template <int kBits>
struct LatentCodec {
  using Keys = LatentKeys<kBits>;
  using Values = HadamardValues;  // of no entries: latents have their values in their keys
};
template <int kBits>
struct KiviCodec {
  using Keys = KiviKeys<kBits>;
  using Values = KiviValues<kBits>;
};
