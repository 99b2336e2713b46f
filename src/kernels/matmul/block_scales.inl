// The scales of block formats as floats. Included inside an anonymous namespace after a vector_*.inl and driver.inl.

// Of up to 8 blocks: sub-blocks in order, so 8 or 16 of each. Mins are divided by the -128 that the activations' stored
// sums carry; a power of two, so they can be had back exactly.
constexpr float kMinDivisor = -128.0f;
struct BlockScales {
  alignas(64) float scale[16][16];
  alignas(64) float min[16][16];
};

// Bytes 0..3 of each lane.
struct LaneBytes {
  Int v[4];
};
inline LaneBytes split_bytes(Int words) {
  const Int byte = broadcast(255);
  return {{bit_and(words, byte), bit_and(shift_right<8>(words), byte), bit_and(shift_right<16>(words), byte),
           shift_right<24>(words)}};
}

// Vector i of the four of 6-bit values that lie in three; see Q4KCell.
inline Int load_six_bit(const uint8_t* vectors, int i, int lane) {
  const auto at = [&](int v) { return load(vectors + v * kWordVectorBytes + 4 * lane); };
  if (i < 3) return bit_and(at(i), broadcast_byte(63));
  return bit_or(
      bit_and(shift_right<6>(at(0)), broadcast_byte(3)),
      bit_or(bit_and(shift_right<4>(at(1)), broadcast_byte(12)), bit_and(shift_right<2>(at(2)), broadcast_byte(48))));
}

// Half of 2^(e - 127) as a product of two powers that are normal floats.
inline Float half_of_e8m0(Int e) {
  const Int first = shift_left<23>(add(shift_right<1>(e), broadcast(63)));
  const Int second = shift_left<23>(add(shift_right<1>(add(e, broadcast(1))), broadcast(63)));
  return multiply(as_floats(first), as_floats(second));
}

// One function per ScaleForm: `from` are the scales of the first of `count` blocks, `lane` the first row.

inline void unpack_half(const uint8_t* from, int64_t count, int lane, BlockScales& out) {
  for (int64_t b = 0; b < count; ++b) store_floats(out.scale[b] + lane, load_halves(from + b * 32 + 2 * lane));
}

inline void unpack_half_and_min(const uint8_t* from, int64_t count, int lane, BlockScales& out) {
  const Float factor = broadcast(1 / kMinDivisor);
  for (int64_t b = 0; b < count; ++b) {
    store_floats(out.scale[b] + lane, load_halves(from + b * 64 + 2 * lane));
    store_floats(out.min[b] + lane, multiply(factor, load_halves(from + b * 64 + 32 + 2 * lane)));
  }
}

inline void unpack_e8m0(const uint8_t* from, int64_t count, int lane, BlockScales& out) {
  for (int64_t b = 0; b < count; ++b) {
    store_floats(out.scale[b] + lane, half_of_e8m0(load_bytes(from + b * kPanelRows + lane)));
  }
}

inline void unpack_half_times_int8(const uint8_t* from, int lane, BlockScales& out) {
  const Float d = load_halves(from + 2 * lane);
  for (int64_t b = 0; b < kUnitBlocks; ++b) {
    const Int s = load_signed_bytes(from + 32 + b * kPanelRows + lane);
    store_floats(out.scale[b] + lane, multiply(d, to_floats(s)));
  }
}

inline void unpack_lines(const uint8_t* from, int lane, BlockScales& out) {
  constexpr int kMinOrder[] = {0, 2, 1, 3};
  const Float d = load_halves(from + 2 * lane);
  const Float min_factor = multiply(load_halves(from + 32 + 2 * lane), broadcast(-1 / kMinDivisor));
  for (int i = 0; i < 2; ++i) {
    const LaneBytes scales = split_bytes(load_six_bit(from + 64, i, lane));
    const LaneBytes mins = split_bytes(load_six_bit(from + 64, 2 + i, lane));
    for (int j = 0; j < 4; ++j) {
      store_floats(out.scale[4 * i + j] + lane, multiply(d, to_floats(scales.v[j])));
      store_floats(out.min[4 * i + kMinOrder[j]] + lane, multiply(min_factor, to_floats(mins.v[j])));
    }
  }
}

inline void unpack_six_bit(const uint8_t* from, int lane, BlockScales& out) {
  const Float d = load_halves(from + 2 * lane);
  for (int i = 0; i < 4; ++i) {
    const LaneBytes scales = split_bytes(load_six_bit(from + 32, i, lane));
    for (int j = 0; j < 4; ++j) {
      const Int s = subtract(scales.v[j], broadcast(32));
      store_floats(out.scale[4 * i + j] + lane, multiply(d, to_floats(s)));
    }
  }
}

inline void unpack_nibbles(const uint8_t* from, int lane, BlockScales& out) {
  const Float d = load_halves(from + 2 * lane);
  const Float min_factor = multiply(load_halves(from + 32 + 2 * lane), broadcast(-1 / kMinDivisor));
  for (int i = 0; i < 4; ++i) {
    const LaneBytes both = split_bytes(load(from + 64 + i * kWordVectorBytes + 4 * lane));
    for (int j = 0; j < 4; ++j) {
      store_floats(out.scale[4 * i + j] + lane, multiply(d, to_floats(bit_and(both.v[j], broadcast(15)))));
      store_floats(out.min[4 * i + j] + lane, multiply(min_factor, to_floats(shift_right<4>(both.v[j]))));
    }
  }
}

// Of the `count` blocks from `first` on, a multiple of kUnitBlocks.
inline void unpack_block_scales(const BlockFormat& format, const uint8_t* panel, int64_t first, int64_t count,
                                BlockScales& out) {
  const uint8_t* from = panel + first / format.scale_blocks * format.scale_bytes;
  for (int lane = 0; lane < kPanelRows; lane += kLanes) {
    switch (format.scales) {
      case ScaleForm::kHalf:
        unpack_half(from, count, lane, out);
        break;
      case ScaleForm::kHalfAndMin:
        unpack_half_and_min(from, count, lane, out);
        break;
      case ScaleForm::kE8M0:
        unpack_e8m0(from, count, lane, out);
        break;
      case ScaleForm::kHalfTimesInt8:
        unpack_half_times_int8(from, lane, out);
        break;
      case ScaleForm::kLines:
        unpack_lines(from, lane, out);
        break;
      case ScaleForm::kSixBit:
        unpack_six_bit(from, lane, out);
        break;
      case ScaleForm::kNibbles:
        unpack_nibbles(from, lane, out);
        break;
    }
  }
}
