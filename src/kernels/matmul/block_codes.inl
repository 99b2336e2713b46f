// The codes of block formats as bytes value + 128, the form of Q8_0's. Included inside an anonymous namespace after
// block_scales.inl.

// Turns codes of kBits bits into bytes.
template <int kBits>
struct BlockCodes {
  static constexpr int kVectors = kBits;  // of 64 bytes, in a block
  static constexpr int kLowVectors = kBits >= 4 ? 4 : 2;

  // 4 bits: the bytes of the 16 codes. Otherwise: what is added to a code.
  Int table;

  static BlockCodes of(const BlockFormat& format) {
    if (kBits != 4) return {broadcast_byte(128 + format.bias)};
    uint8_t bytes[16];
    for (int code = 0; code < 16; ++code) {
      const int value = format.codebook != nullptr ? format.codebook[code] : code + format.bias;
      bytes[code] = static_cast<uint8_t>(value + 128);
    }
    return {broadcast_table(bytes)};
  }

  // Bit kFrom of each byte moved to bit kTo, the other bits 0.
  template <int kFrom, int kTo>
  [[gnu::always_inline]] static inline Int move_bit(Int v) {
    if constexpr (kFrom < kTo) v = shift_left<kTo - kFrom>(v);
    if constexpr (kFrom > kTo) v = shift_right<kFrom - kTo>(v);
    return bit_and(v, broadcast_byte(1 << kTo));
  }

  template <int kWord>
  [[gnu::always_inline]] inline Int word(const uint8_t* block, int slice) const {
    const uint8_t* at = block + slice * 4 * kLanes;
    if constexpr (kBits >= 4) {
      const Int v = load(at + kWord % 4 * kWordVectorBytes);
      const Int low = bit_and(kWord < 4 ? v : shift_right<4>(v), broadcast_byte(15));
      if constexpr (kBits == 4) return look_up(table, low);
      const Int high = move_bit<kWord, 4>(load(at + kLowVectors * kWordVectorBytes));
      return add_bytes(bit_or(low, high), table);
    } else {
      const Int v = load(at + kWord / 4 * kWordVectorBytes);
      const Int low = bit_and(shift_right<kWord % 4 * 2>(v), broadcast_byte(3));
      if constexpr (kBits == 2) return add_bytes(low, table);
      const Int high = move_bit<kWord, 2>(load(at + kLowVectors * kWordVectorBytes));
      return add_bytes(bit_or(low, high), table);
    }
  }

  // Words kWord..7 of a block.
  template <int kWord = 0>
  [[gnu::always_inline]] inline void unpack(const uint8_t* block, uint8_t (*out)[64]) const {
    for (int slice = 0; slice < kSlices; ++slice) store(out[kWord] + slice * 4 * kLanes, word<kWord>(block, slice));
    if constexpr (kWord < 7) unpack<kWord + 1>(block, out);
  }
};

template <int kBits>
inline void unpack_blocks(const BlockFormat& format, const uint8_t* codes, int64_t count, uint8_t (*out)[8][64]) {
  const BlockCodes<kBits> decoder = BlockCodes<kBits>::of(format);
  for (int64_t b = 0; b < count; ++b) decoder.unpack(codes + b * kBits * kWordVectorBytes, out[b]);
}

// `count` blocks from block `first` of a panel on.
inline void unpack_block_codes(const MatmulArgs& args, const uint8_t* panel, int64_t first, int64_t count,
                               uint8_t (*out)[8][64]) {
  const BlockFormat& format = *args.blocks;
  const uint8_t* codes = panel + args.block_scales_bytes + first * format.bits * kWordVectorBytes;
  switch (format.bits) {
    case 2:
      return unpack_blocks<2>(format, codes, count, out);
    case 3:
      return unpack_blocks<3>(format, codes, count, out);
    case 4:
      return unpack_blocks<4>(format, codes, count, out);
    default:
      return unpack_blocks<5>(format, codes, count, out);
  }
}
