// Block formats (block_formats.h) with int8 activations of one scale per 32 columns. Included inside an anonymous
// namespace after a dot_*.inl and block_codes.inl.
//
// Per block of 32 columns, with exact integer sums in brackets, over its sub-blocks j of 16 columns or the one of 32:
//   s = 0; for j: s = fma([sum of value x], scale[j], s); s = fma([-128 * sum of x], min[j] / -128, s)
//   y = fma(s, scale of x, y)

// kSubBlocks: 1 or 2 in a block of 32 columns.
template <int kSubBlocks, bool kMins>
struct BlockKernel {
  static constexpr int64_t kUnpackedUnits = 3;  // of 256 columns
  static constexpr int64_t kColumnScales = kUnitBlocks * kSubBlocks;

  static int64_t num_blocks(const MatmulArgs& args) { return args.cols / kBlockColumns; }
  static int64_t num_units(const MatmulArgs& args) { return (num_blocks(args) + kUnitBlocks - 1) / kUnitBlocks; }
  static int64_t blocks_of_unit(const MatmulArgs& args, int64_t unit) {
    return smaller(kUnitBlocks, num_blocks(args) - unit * kUnitBlocks);
  }

  static void unpack_scales(const MatmulArgs& args, const uint8_t* panel, int64_t unit, BlockScales& out) {
    unpack_block_scales(*args.blocks, panel, unit * kUnitBlocks, blocks_of_unit(args, unit), out);
  }

  template <int kPanels>
  class Unpacked {
   public:
    void unpack(const MatmulArgs& args, int64_t panel, int64_t begin, int64_t end, int64_t num_tiles) {
      args_ = &args;
      first_ = begin;
      for (int p = 0; p < kPanels; ++p) {
        const uint8_t* bytes = panel_address(args, panel + p);
        for (int64_t unit = begin; unit < end; ++unit) {
          Unit& to = buffer_[p][unit - begin];
          unpack_scales(args, bytes, unit, to.scales);
          unpack_block_codes(args, bytes, unit * kUnitBlocks, blocks_of_unit(args, unit), to.codes);
        }
      }
      prefetch_.start_after(args, panel, end, num_units(args), kUnpackedUnits, args.block_scales_bytes,
                            kUnitBlocks * args.blocks->bits * kWordVectorBytes,
                            num_tiles * (end - begin) * kUnitBlocks);
    }
    [[gnu::always_inline]] inline void enter(int64_t unit) {
      for (int p = 0; p < kPanels; ++p) current_[p] = &buffer_[p][unit - first_];
    }
    int64_t blocks(int64_t unit) const { return blocks_of_unit(*args_, unit); }
    template <int kWord>
    [[gnu::always_inline]] inline Int word(int panel, int64_t block, int slice) const {
      return load(current_[panel]->codes[block][kWord] + slice * 4 * kLanes);
    }
    const BlockScales& scales(int panel) const { return current_[panel]->scales; }
    template <int kTokens>
    [[gnu::always_inline]] inline void prefetch() {
      prefetch_.step();
    }

   private:
    struct Unit {
      BlockScales scales;
      alignas(64) uint8_t codes[kUnitBlocks][8][64];
    };
    Unit buffer_[kPanels][kUnpackedUnits];
    const Unit* current_[kPanels];
    const MatmulArgs* args_;
    int64_t first_;
    SpreadPrefetch<kPanels> prefetch_;
  };

  // Adds the products of words [kWord, kEnd) of a block.
  template <int kWord, int kEnd, int kPanels, int kTokens, typename Weights>
  [[gnu::always_inline]] static inline void add_words(const Weights& weights, int64_t b, const int8_t* const* q,
                                                      Int (&dots)[kPanels * kSlices][kTokens]) {
    constexpr int kTileSlices = kPanels * kSlices;
    Q8Weights w[kTileSlices];
#pragma GCC unroll 16
    for (int s = 0; s < kTileSlices; ++s) {
      w[s] = prepare_q8(weights.template word<kWord>(s / kSlices, b, s % kSlices));
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const Int v = broadcast(load_word(q[t] + 4 * kWord));
#pragma GCC unroll 16
      for (int s = 0; s < kTileSlices; ++s) dots[s][t] = dot_q8(dots[s][t], w[s], v);
    }
    if constexpr (kWord + 1 < kEnd) add_words<kWord + 1, kEnd, kPanels, kTokens>(weights, b, q, dots);
  }

  // The sums of sub-block kSub of block b, times its scales and with its mins, added to `sums` (or their first value).
  template <int kSub, int kPanels, int kTokens, typename Weights>
  [[gnu::always_inline]] static inline void sub_block(const Weights& weights, int64_t b, const int8_t* const* q,
                                                      const int32_t* const* offsets, Sums<kPanels, kTokens>& sums) {
    constexpr int kTileSlices = kPanels * kSlices;
    constexpr int kWords = 8 / kSubBlocks;
    Int dots[kTileSlices][kTokens];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const Int start = start_q8(offsets[t][kSub]);
#pragma GCC unroll 16
      for (int s = 0; s < kTileSlices; ++s) dots[s][t] = start;
    }
    add_words<kWords * kSub, kWords*(kSub + 1), kPanels, kTokens>(weights, b, q, dots);
#pragma GCC unroll 16
    for (int s = 0; s < kTileSlices; ++s) {
      const BlockScales& scales = weights.scales(s / kSlices);
      const int lane = s % kSlices * kLanes;
      const Float scale = load_floats(scales.scale[b * kSubBlocks + kSub] + lane);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const Float dot = to_floats(dots[s][t]);
        sums.v[s][t] = kSub == 0 ? multiply(dot, scale) : multiply_add(dot, scale, sums.v[s][t]);
      }
      if constexpr (kMins) {
        const Float min = load_floats(scales.min[b * kSubBlocks + kSub] + lane);
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
          sums.v[s][t] = multiply_add(to_floats(broadcast(offsets[t][kSub])), min, sums.v[s][t]);
        }
      }
    }
  }

  template <int kPanels, int kTokens, typename Weights>
  [[gnu::always_inline]] static inline void block(const Weights& weights, int64_t unit, int64_t b,
                                                  const Int8Per32Group* const* x, Sums<kPanels, kTokens>& totals) {
    const int8_t* q[kTokens];
    const int32_t* offsets[kTokens];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      q[t] = x[t][unit].q + kBlockColumns * b;
      offsets[t] = kSubBlocks == 1 ? x[t][unit].offset + b : x[t][unit].half_offset + 2 * b;
    }
    Sums<kPanels, kTokens> sums;
    sub_block<0>(weights, b, q, offsets, sums);
    if constexpr (kSubBlocks == 2) sub_block<1>(weights, b, q, offsets, sums);
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const Float scale = broadcast(x[t][unit].scale[b]);
#pragma GCC unroll 16
      for (int s = 0; s < kPanels * kSlices; ++s) totals.v[s][t] = multiply_add(sums.v[s][t], scale, totals.v[s][t]);
    }
  }

  template <int kPanels, int kTokens, typename Weights>
  static void tile(Weights& weights, int64_t begin, int64_t end, const std::byte* const* rows, float* sums) {
    const Int8Per32Group* x[kTokens];
    for (int t = 0; t < kTokens; ++t) x[t] = reinterpret_cast<const Int8Per32Group*>(rows[t]);
    Sums<kPanels, kTokens> totals;
    totals.load(sums);
    for (int64_t unit = begin; unit < end; ++unit) {
      weights.enter(unit);
      const int64_t num_blocks = weights.blocks(unit);
#pragma GCC unroll 1
      for (int64_t b = 0; b < num_blocks; ++b) {
        block(weights, unit, b, x, totals);
        weights.template prefetch<kTokens>();
      }
    }
    totals.save(sums);
  }
};

// The same on packed codes of kBits bits.
template <int kBits, int kSubBlocks, bool kMins>
struct PackedBlockKernel : BlockKernel<kSubBlocks, kMins> {
  using Base = BlockKernel<kSubBlocks, kMins>;

  template <int kPanels>
  class Packed {
   public:
    Packed(const MatmulArgs& args, int64_t panel)
        : args_(args), decoder_(BlockCodes<kBits>::of(*args.blocks)), prefetch_(args) {
      for (int p = 0; p < kPanels; ++p) {
        panels_[p] = panel_address(args, panel + p);
        // All scales of the panel at once, so that its codes are the only stream from here on.
        for (int64_t line = 0; line < args.block_scales_bytes; line += kLineBytes) touch_line(panels_[p] + line);
      }
    }
    [[gnu::always_inline]] inline void enter(int64_t unit) {
      for (int p = 0; p < kPanels; ++p) {
        codes_[p] = panels_[p] + args_.block_scales_bytes + unit * kUnitBytes;
        Base::unpack_scales(args_, panels_[p], unit, scales_[p]);
        prefetch_.enter(p, codes_[p]);
      }
    }
    int64_t blocks(int64_t unit) const { return Base::blocks_of_unit(args_, unit); }
    template <int kWord>
    [[gnu::always_inline]] inline Int word(int panel, int64_t block, int slice) const {
      return decoder_.template word<kWord>(codes_[panel] + block * kBits * kWordVectorBytes, slice);
    }
    const BlockScales& scales(int panel) const { return scales_[panel]; }
    template <int kTokens>
    [[gnu::always_inline]] inline void prefetch() {
      prefetch_.template step<kTokens, kUnitBytes / kUnitBlocks>();
    }

   private:
    static constexpr int64_t kUnitBytes = kUnitBlocks * kBits * kWordVectorBytes;
    static constexpr PrefetchAhead kAhead = {.near_tokens = 3, .near_bytes = 512, .far_bytes = 2 * kUnitBytes};
    const MatmulArgs& args_;
    const BlockCodes<kBits> decoder_;
    const uint8_t* panels_[kPanels];
    const uint8_t* codes_[kPanels];
    BlockScales scales_[kPanels];
    StreamPrefetch<kPanels, kAhead> prefetch_;
  };
};

// Up to Tile::kDirectTokens rows use the codes where they lie; the bytes of unpacked ones are alike for all widths.
template <int kBits, int kSubBlocks, bool kMins>
inline void multiply_blocks_of(const MatmulArgs& args) {
  if (args.num_rows <= Int8Tile::kDirectTokens) {
    multiply_packed<PackedBlockKernel<kBits, kSubBlocks, kMins>, 1, Int8Tile::kDirectTokens>(args);
  } else {
    multiply_unpacked<BlockKernel<kSubBlocks, kMins>, Int8Tile::kPanels, Int8Tile::kTokens>(args);
  }
}

inline void multiply_blocks(const MatmulArgs& args) {
  const BlockFormat& format = *args.blocks;
  switch (format.bits) {
    case 2:
      return multiply_blocks_of<2, 2, true>(args);
    case 3:
      return multiply_blocks_of<3, 2, false>(args);
    case 4:
      return format.has_mins ? multiply_blocks_of<4, 1, true>(args) : multiply_blocks_of<4, 1, false>(args);
    default:
      return format.has_mins ? multiply_blocks_of<5, 1, true>(args) : multiply_blocks_of<5, 1, false>(args);
  }
}
