// Q6_K weights with int8 activations of one scale per 256 columns. Included inside an anonymous namespace after a
// vector_*.inl, a dot_*.inl and driver.inl.
//
// Per cell of 256 columns, with exact integer sums in brackets:
//   s = 0; for j in 0..15: s = fma([sum of (q - 32) x over sub-block j of 16], d * scale[j], s)
//   y = fma(s, scale of x, y)

inline int64_t q6_k_cells_offset(const MatmulArgs& args) { return (args.cols / kKQuantColumns * 32 + 63) / 64 * 64; }

inline const Q6KCell* q6_k_cells(const MatmulArgs& args, int64_t panel) {
  return reinterpret_cast<const Q6KCell*>(panel_address(args, panel) + q6_k_cells_offset(args));
}

// d * scale[j] of the rows from `lane` on: 11 by 7 bits, exact. `d` is the panel's for this cell.
inline void unpack_q6_k_scales(const Q6KCell& cell, const uint8_t* d, float (*out)[16]) {
  for (int slice = 0; slice < kSlices; ++slice) {
    const int lane = slice * kLanes;
    const Float factor = load_halves(d + 2 * lane);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Int v = load(cell.scales[i] + 4 * lane);
      const Int scales[4] = {shift_right_signed<24>(shift_left<24>(v)), shift_right_signed<24>(shift_left<16>(v)),
                             shift_right_signed<24>(shift_left<8>(v)), shift_right_signed<24>(v)};
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store_floats(out[4 * i + j] + lane, multiply(factor, to_floats(scales[j])));
    }
  }
}

// The words of block kBlock (0..3) of a half, as bytes 0..63.
template <int kBlock>
inline Int q6_k_quants(const Q6KCell::Half& half, int word, int slice) {
  const Int low = load(half.low[kBlock % 2][word] + slice * 4 * kLanes);
  const Int high = load(half.high[word] + slice * 4 * kLanes);
  const Int nibble = kBlock < 2 ? low : shift_right<4>(low);
  const Int above = kBlock == 0   ? shift_left<4>(high)
                    : kBlock == 1 ? shift_left<2>(high)
                    : kBlock == 2 ? high
                                  : shift_right<2>(high);
  return bit_and(select_bits(broadcast_byte(15), nibble, above), broadcast_byte(63));
}

struct Q6KKernel {
  static constexpr int64_t kUnpackedUnits = 3;  // of 256 columns: two panels' about fill the L1 cache

  static int64_t num_units(const MatmulArgs& args) { return args.cols / kKQuantColumns; }

  template <int kPanels>
  class Packed {
   public:
    Packed(const MatmulArgs& args, int64_t panel) : prefetch_(args) {
      for (int p = 0; p < kPanels; ++p) {
        d_[p] = panel_address(args, panel + p);
        cells_[p] = q6_k_cells(args, panel + p);
      }
    }
    [[gnu::always_inline]] inline void enter(int64_t cell) {
      for (int p = 0; p < kPanels; ++p) {
        current_[p] = &cells_[p][cell];
        unpack_q6_k_scales(*current_[p], d_[p] + 32 * cell, scales_[p]);
        prefetch_.enter(p, reinterpret_cast<const uint8_t*>(current_[p]));
      }
    }
    template <int kBlock>
    [[gnu::always_inline]] inline Int quants(int panel, int half, int word, int slice) const {
      return q6_k_quants<kBlock>(current_[panel]->halves[half], word, slice);
    }
    const float* scale(int panel, int sub_block) const { return scales_[panel][sub_block]; }
    template <int kTokens>
    [[gnu::always_inline]] inline void prefetch() {
      prefetch_.template step<kTokens, sizeof(Q6KCell) / 8>();
    }

   private:
    static constexpr PrefetchAhead kAhead = {.near_tokens = 4, .near_bytes = 1024, .far_bytes = sizeof(Q6KCell)};
    const uint8_t* d_[kPanels];
    const Q6KCell* cells_[kPanels];
    const Q6KCell* current_[kPanels];
    alignas(64) float scales_[kPanels][16][16];
    StreamPrefetch<kPanels, kAhead> prefetch_;
  };

  template <int kPanels>
  class Unpacked {
   public:
    void unpack(const MatmulArgs& args, int64_t panel, int64_t begin, int64_t end, int64_t num_tiles) {
      first_ = begin;
      for (int p = 0; p < kPanels; ++p) {
        const Q6KCell* cells = q6_k_cells(args, panel + p);
        for (int64_t c = begin; c < end; ++c) {
          unpack_q6_k_scales(cells[c], panel_address(args, panel + p) + 32 * c, buffer_[p][c - begin].scales);
          unpack_quants(cells[c], buffer_[p][c - begin]);
        }
      }
      prefetch_.start_after(args, panel, end, num_units(args), kUnpackedUnits, q6_k_cells_offset(args), sizeof(Q6KCell),
                            num_tiles * (end - begin) * 8);
    }
    [[gnu::always_inline]] inline void enter(int64_t cell) {
      for (int p = 0; p < kPanels; ++p) current_[p] = &buffer_[p][cell - first_];
    }
    template <int kBlock>
    [[gnu::always_inline]] inline Int quants(int panel, int half, int word, int slice) const {
      return load(current_[panel]->quants[4 * half + kBlock][word] + slice * 4 * kLanes);
    }
    const float* scale(int panel, int sub_block) const { return current_[panel]->scales[sub_block]; }
    template <int kTokens>
    [[gnu::always_inline]] inline void prefetch() {
      prefetch_.step();
    }

   private:
    struct Cell {
      alignas(64) float scales[16][16];
      alignas(64) uint8_t quants[8][8][64];
    };
    static void unpack_quants(const Q6KCell& from, Cell& to) {
      for (int half = 0; half < 2; ++half) {
        for (int word = 0; word < 8; ++word) {
          for (int slice = 0; slice < kSlices; ++slice) {
            const int at = slice * 4 * kLanes;
            store(to.quants[4 * half][word] + at, q6_k_quants<0>(from.halves[half], word, slice));
            store(to.quants[4 * half + 1][word] + at, q6_k_quants<1>(from.halves[half], word, slice));
            store(to.quants[4 * half + 2][word] + at, q6_k_quants<2>(from.halves[half], word, slice));
            store(to.quants[4 * half + 3][word] + at, q6_k_quants<3>(from.halves[half], word, slice));
          }
        }
      }
    }
    Cell buffer_[kPanels][kUnpackedUnits];
    const Cell* current_[kPanels];
    int64_t first_;
    SpreadPrefetch<kPanels> prefetch_;
  };

  // Sub-block kSub (0 or 1) of 16 columns of block kBlock.
  template <int kBlock, int kSub, int kPanels, int kTokens, typename Weights>
  [[gnu::always_inline]] static inline void sub_block(const Weights& weights, int half, int64_t cell,
                                                      const Int8Per256Block* const* x, Sums<kPanels, kTokens>& sums) {
    constexpr int kTileSlices = kPanels * kSlices;
    const int index = 8 * half + 2 * kBlock + kSub;
    Int dots[kTileSlices][kTokens];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const Int offset = broadcast(x[t][cell].offset[index]);
#pragma GCC unroll 16
      for (int s = 0; s < kTileSlices; ++s) dots[s][t] = offset;
    }
#pragma GCC unroll 2
    for (int word = 4 * kSub; word < 4 * kSub + 4; word += 2) {
      Int w[2][kTileSlices];
#pragma GCC unroll 16
      for (int s = 0; s < kTileSlices; ++s) {
        w[0][s] = weights.template quants<kBlock>(s / kSlices, half, word, s % kSlices);
        w[1][s] = weights.template quants<kBlock>(s / kSlices, half, word + 1, s % kSlices);
      }
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const int8_t* q = x[t][cell].q + 128 * half + 32 * kBlock + 4 * word;
        const Int v0 = broadcast(load_word(q));
        const Int v1 = broadcast(load_word(q + 4));
#pragma GCC unroll 16
        for (int s = 0; s < kTileSlices; ++s) dots[s][t] = dot_q6(dots[s][t], w[0][s], v0, w[1][s], v1);
      }
    }
#pragma GCC unroll 16
    for (int s = 0; s < kTileSlices; ++s) {
      const Float scale = load_floats(weights.scale(s / kSlices, index) + s % kSlices * kLanes);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) sums.v[s][t] = multiply_add(to_floats(dots[s][t]), scale, sums.v[s][t]);
    }
  }

  template <int kBlock, int kPanels, int kTokens, typename Weights>
  [[gnu::always_inline]] static inline void block(Weights& weights, int half, int64_t cell,
                                                  const Int8Per256Block* const* x, Sums<kPanels, kTokens>& sums) {
    sub_block<kBlock, 0>(weights, half, cell, x, sums);
    sub_block<kBlock, 1>(weights, half, cell, x, sums);
    weights.template prefetch<kTokens>();
  }

  template <int kPanels, int kTokens, typename Weights>
  static void tile(Weights& weights, int64_t begin, int64_t end, const std::byte* const* rows, float* sums) {
    const Int8Per256Block* x[kTokens];
    for (int t = 0; t < kTokens; ++t) x[t] = reinterpret_cast<const Int8Per256Block*>(rows[t]);
    for (int64_t cell = begin; cell < end; ++cell) {
      weights.enter(cell);
      Sums<kPanels, kTokens> cell_sums;
      cell_sums.clear();
#pragma GCC unroll 1
      for (int half = 0; half < 2; ++half) {
        block<0>(weights, half, cell, x, cell_sums);
        block<1>(weights, half, cell, x, cell_sums);
        block<2>(weights, half, cell, x, cell_sums);
        block<3>(weights, half, cell, x, cell_sums);
      }
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const Float scale = broadcast(x[t][cell].scale);
#pragma GCC unroll 16
        for (int s = 0; s < kPanels * kSlices; ++s) {
          float* total = sums + t * kPanels * kPanelRows + s * kLanes;
          store_floats(total, multiply_add(cell_sums.v[s][t], scale, load_floats(total)));
        }
      }
    }
  }
};

inline void multiply_q6_k(const MatmulArgs& args) { multiply_by_rows<Q6KKernel, Int8Tile>(args); }
