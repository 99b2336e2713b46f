// Weights of any type with float activations. Included inside an anonymous namespace after a vector_*.inl, driver.inl,
// q4_k.inl and q6_k.inl.
//
// Stretches of 64 columns of a panel are decoded to floats [column][16 rows], bit for bit as QuantType::decode does, in
// a buffer in the L1 cache; then for each column k: y = fma(w[k], x[k], y).

constexpr int64_t kExactColumns = 64;

using ExactBuffer = float[kExactColumns][kPanelRows];

// Decoders: the weights of columns [begin, end) of a panel, in place or decoded to `buffer`. begin is a multiple of 64.
struct F32Decoder {
  static const float* decode(const MatmulArgs&, const uint8_t* panel, int64_t begin, int64_t, ExactBuffer&) {
    return reinterpret_cast<const float*>(panel) + begin * kPanelRows;
  }
};

struct F16Decoder {
  static const float* decode(const MatmulArgs&, const uint8_t* panel, int64_t begin, int64_t end, ExactBuffer& buffer) {
    float* out = buffer[0];
    const uint8_t* from = panel + begin * 2 * kPanelRows;
    for (int64_t i = 0; i < (end - begin) * kPanelRows; i += kLanes) store_floats(out + i, load_halves(from + 2 * i));
    return out;
  }
};

struct Bf16Decoder {
  static const float* decode(const MatmulArgs&, const uint8_t* panel, int64_t begin, int64_t end, ExactBuffer& buffer) {
    const Int upper = broadcast(static_cast<int32_t>(0xffff0000u));
    for (int64_t k = begin; k < end; k += 2) {
      for (int slice = 0; slice < kSlices; ++slice) {
        const Int pair = load(panel + k / 2 * kWordVectorBytes + slice * 4 * kLanes);
        store_floats(buffer[k - begin] + slice * kLanes, as_floats(shift_left<16>(pair)));
        store_floats(buffer[k - begin + 1] + slice * kLanes, as_floats(bit_and(pair, upper)));
      }
    }
    return buffer[0];
  }
};

// Stores f(byte i of each word as float) to rows i = 0..3 of `out`.
template <typename F>
inline void decode_words(Int words, float (*out)[kPanelRows], int slice, const F& f) {
  const Int byte = broadcast(255);
  store_floats(out[0] + slice * kLanes, f(to_floats(bit_and(words, byte))));
  store_floats(out[1] + slice * kLanes, f(to_floats(bit_and(shift_right<8>(words), byte))));
  store_floats(out[2] + slice * kLanes, f(to_floats(bit_and(shift_right<16>(words), byte))));
  store_floats(out[3] + slice * kLanes, f(to_floats(shift_right<24>(words))));
}

struct Q8Decoder {
  static const float* decode(const MatmulArgs& args, const uint8_t* panel, int64_t begin, int64_t end,
                             ExactBuffer& buffer) {
    const Float offset = broadcast(128.0f);
    const int64_t group = begin / kKQuantColumns;
    const int64_t in_group = smaller(kQ8GroupBlocks, args.cols / kQ8BlockColumns - group * kQ8GroupBlocks);
    const uint8_t* scales = panel + group * kQ8GroupBytes;
    const uint8_t* quants = scales + (in_group * 32 + 63) / 64 * 64;
    for (int64_t k = begin; k < end; k += kQ8BlockColumns) {
      const int64_t b = k % kKQuantColumns / kQ8BlockColumns;
      for (int slice = 0; slice < kSlices; ++slice) {
        const Float d = load_halves(scales + b * 32 + slice * 2 * kLanes);
        for (int64_t word = 0; word < 8; ++word) {
          const Int v = load(quants + b * kQ8BlockBytes + word * kWordVectorBytes + slice * 4 * kLanes);
          decode_words(v, buffer + (k - begin) + 4 * word, slice,
                       [&](Float q) { return multiply(d, subtract(q, offset)); });
        }
      }
    }
    return buffer[0];
  }
};

struct Q4KDecoder {
  static const float* decode(const MatmulArgs&, const uint8_t* panel, int64_t begin, int64_t, ExactBuffer& buffer) {
    const Q4KCell& cell = reinterpret_cast<const Q4KCell*>(panel)[begin / kKQuantColumns];
    const int64_t pair = begin % kKQuantColumns / 64;
    Q4KScales scales;
    unpack_q4_k_scales(cell, scales);
    for (int slice = 0; slice < kSlices; ++slice) {
      const int lane = slice * kLanes;
      const Int mins = load(scales.mins[pair] + 4 * lane);
      const Float dmin = load_floats(scales.dmin + lane);
      const Float scale0 = load_floats(scales.scales[2 * pair] + lane);
      const Float scale1 = load_floats(scales.scales[2 * pair + 1] + lane);
      const Float min0 = multiply(dmin, to_floats(bit_and(mins, broadcast(0xffff))));
      const Float min1 = multiply(dmin, to_floats(shift_right<16>(mins)));
      for (int64_t word = 0; word < 8; ++word) {
        const Int v = load(cell.quants[pair][word] + 4 * lane);
        const Int nibble = broadcast_byte(15);
        // scale * q is exact, so the fused operation rounds as decode's multiplication and subtraction do.
        decode_words(bit_and(v, nibble), buffer + 4 * word, slice,
                     [&](Float q) { return multiply_subtract(scale0, q, min0); });
        decode_words(bit_and(shift_right<4>(v), nibble), buffer + 32 + 4 * word, slice,
                     [&](Float q) { return multiply_subtract(scale1, q, min1); });
      }
    }
    return buffer[0];
  }
};

struct Q6KDecoder {
  template <int kBlock>
  static void block(const Q6KCell& cell, int64_t half, const float (*scales)[16], ExactBuffer& buffer) {
    const Float offset = broadcast(32.0f);
    for (int slice = 0; slice < kSlices; ++slice) {
      for (int word = 0; word < 8; ++word) {
        const Float scale = load_floats(scales[8 * half + 2 * kBlock + word / 4] + slice * kLanes);
        decode_words(q6_k_quants<kBlock>(cell.halves[half], word, slice), buffer + 32 * (kBlock % 2) + 4 * word, slice,
                     [&](Float q) { return multiply(scale, subtract(q, offset)); });
      }
    }
  }
  static const float* decode(const MatmulArgs& args, const uint8_t* panel, int64_t begin, int64_t,
                             ExactBuffer& buffer) {
    const int64_t c = begin / kKQuantColumns;
    const Q6KCell& cell = reinterpret_cast<const Q6KCell*>(panel + q6_k_cells_offset(args))[c];
    const int64_t half = begin % kKQuantColumns / 128;
    alignas(64) float scales[16][16];
    unpack_q6_k_scales(cell, panel + 32 * c, scales);
    if (begin % 128 == 0) {
      block<0>(cell, half, scales, buffer);
      block<1>(cell, half, scales, buffer);
    } else {
      block<2>(cell, half, scales, buffer);
      block<3>(cell, half, scales, buffer);
    }
    return buffer[0];
  }
};

// Adds columns [begin, end) to the tile's sums; weights[p] are [column][16] from `begin` on.
template <int kPanels, int kTokens>
inline void exact_tile(const float* const* weights, int64_t begin, int64_t end, const std::byte* const* rows,
                       float* sums) {
  const float* w[kPanels];
  const float* x[kTokens];
  for (int p = 0; p < kPanels; ++p) w[p] = weights[p];
  for (int t = 0; t < kTokens; ++t) x[t] = reinterpret_cast<const float*>(rows[t]) + begin;
  Sums<kPanels, kTokens> totals;
  totals.load(sums);
#pragma GCC unroll 2
  for (int64_t k = 0; k < end - begin; ++k) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const Float v = broadcast(x[t][k]);
#pragma GCC unroll 16
      for (int s = 0; s < kPanels * kSlices; ++s) {
        const Float column = load_floats(w[s / kSlices] + k * kPanelRows + s % kSlices * kLanes);
        totals.v[s][t] = multiply_add(column, v, totals.v[s][t]);
      }
    }
  }
  totals.save(sums);
}

template <typename Decoder>
inline void multiply_exact(const MatmulArgs& args) {
  for (int64_t block = 0; block < args.num_rows; block += kTokenBlock) {
    const int64_t num_tokens = smaller(kTokenBlock, args.num_rows - block);
    for_each_panel_group<FloatTile::kPanels>(args, [&](int64_t panel, auto panels) {
      constexpr int kPanels = decltype(panels)::value;
      constexpr int64_t kSumsPerToken = kPanels * kPanelRows;
      alignas(64) float sums[kTokenBlock * kSumsPerToken];
      alignas(64) ExactBuffer buffers[kPanels];
      __builtin_memset(sums, 0, static_cast<size_t>(num_tokens * kSumsPerToken) * sizeof(float));
      for (int64_t begin = 0; begin < args.cols; begin += kExactColumns) {
        const int64_t end = smaller(args.cols, begin + kExactColumns);
        const float* weights[kPanels];
        for (int p = 0; p < kPanels; ++p) {
          weights[p] = Decoder::decode(args, panel_address(args, panel + p), begin, end, buffers[p]);
        }
        for_each_tile<FloatTile::kTokens>(num_tokens, [&](int64_t first, auto tokens) {
          exact_tile<kPanels, decltype(tokens)::value>(weights, begin, end, args.activations + block + first,
                                                       sums + first * kSumsPerToken);
        });
      }
      write_out<kPanels>(args, panel, block, num_tokens, sums);
    });
  }
}
