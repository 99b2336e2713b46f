// Q4_K weights with int8 activations of one scale per 256 columns. Included inside an anonymous namespace after a
// vector_*.inl, a dot_*.inl and driver.inl.
//
// Per cell of 256 columns, with exact integer sums in brackets:
//   s = 0; for j in 0..7: s = fma([sum of q x over block j], d * scale[j], s)
//   s = s - dmin * [sum over j of min[j] * (sum of x over block j)];  y = fma(s, scale of x, y)

// The scales of one panel's cell, ready for use.
struct Q4KScales {
  alignas(64) float scales[8][16];  // d * scale[j]: 11 by 6 bits, exact
  alignas(64) uint8_t mins[4][64];  // [i][row]: the 16-bit pair mins 2i, 2i + 1
  alignas(64) float dmin[16];
};

inline void unpack_q4_k_scales(const Q4KCell& cell, Q4KScales& out) {
  const Int low6 = broadcast_byte(63);
  const Int bits0 = broadcast_byte(3);
  const Int bits2 = broadcast_byte(3 << 2);
  for (int slice = 0; slice < kSlices; ++slice) {
    const int lane = slice * kLanes;
    const Int a = load(cell.six_bit[0] + 4 * lane);
    const Int b = load(cell.six_bit[1] + 4 * lane);
    const Int c = load(cell.six_bit[2] + 4 * lane);
    const Int fourth =
        bit_or(bit_and(shift_right<6>(a), bits0),
               bit_or(bit_and(shift_right<4>(b), bits2), bit_and(shift_right<2>(c), broadcast_byte(48))));
    const Float d = load_halves(cell.d + lane);
    const Int scales[2] = {bit_and(a, low6), bit_and(b, low6)};
    const Int byte = broadcast(255);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Int v = scales[half];
      store_floats(out.scales[4 * half] + lane, multiply(d, to_floats(bit_and(v, byte))));
      store_floats(out.scales[4 * half + 1] + lane, multiply(d, to_floats(bit_and(shift_right<8>(v), byte))));
      store_floats(out.scales[4 * half + 2] + lane, multiply(d, to_floats(bit_and(shift_right<16>(v), byte))));
      store_floats(out.scales[4 * half + 3] + lane, multiply(d, to_floats(shift_right<24>(v))));
    }
    const Int mins[2] = {bit_and(c, low6), fourth};
    const Int even_bytes = broadcast(0x00ff00ff);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      store(out.mins[2 * half] + 4 * lane, bit_and(mins[half], even_bytes));
      store(out.mins[2 * half + 1] + 4 * lane, bit_and(shift_right<8>(mins[half]), even_bytes));
    }
    store_floats(out.dmin + lane, load_halves(cell.dmin + lane));
  }
}

struct Q4KKernel {
  static constexpr int64_t kUnpackedUnits = 3;  // of 256 columns: two panels' fit the L1 cache

  static int64_t num_units(const MatmulArgs& args) { return args.cols / kKQuantColumns; }

  template <int kPanels>
  class Packed {
   public:
    Packed(const MatmulArgs& args, int64_t panel) : prefetch_(args) {
      for (int p = 0; p < kPanels; ++p) cells_[p] = reinterpret_cast<const Q4KCell*>(panel_address(args, panel + p));
    }
    [[gnu::always_inline]] inline void enter(int64_t cell) {
      for (int p = 0; p < kPanels; ++p) {
        quants_[p] = cells_[p][cell].quants[0][0];
        unpack_q4_k_scales(cells_[p][cell], scales_[p]);
        prefetch_.enter(p, reinterpret_cast<const uint8_t*>(&cells_[p][cell]));
      }
    }
    template <int kHigh>
    [[gnu::always_inline]] inline Int quants(int panel, int pair, int word, int slice) const {
      const Int v = load(quants_[panel] + (8 * pair + word) * kWordVectorBytes + slice * 4 * kLanes);
      return bit_and(kHigh == 0 ? v : shift_right<4>(v), broadcast_byte(15));
    }
    const Q4KScales& scales(int panel) const { return scales_[panel]; }
    template <int kTokens>
    [[gnu::always_inline]] inline void prefetch() {
      prefetch_.template step<kTokens, sizeof(Q4KCell) / 8>();
    }

   private:
    static constexpr PrefetchAhead kAhead = {.near_tokens = 2, .near_bytes = 512, .far_bytes = 2 * sizeof(Q4KCell)};
    const Q4KCell* cells_[kPanels];
    const uint8_t* quants_[kPanels];
    Q4KScales scales_[kPanels];
    StreamPrefetch<kPanels, kAhead> prefetch_;
  };

  template <int kPanels>
  class Unpacked {
   public:
    void unpack(const MatmulArgs& args, int64_t panel, int64_t begin, int64_t end, int64_t num_tiles) {
      first_ = begin;
      for (int p = 0; p < kPanels; ++p) {
        const auto* cells = reinterpret_cast<const Q4KCell*>(panel_address(args, panel + p));
        for (int64_t c = begin; c < end; ++c) unpack_cell(cells[c], buffer_[p][c - begin]);
      }
      prefetch_.start_after(args, panel, end, num_units(args), kUnpackedUnits, 0, sizeof(Q4KCell),
                            num_tiles * (end - begin) * 8);
    }
    [[gnu::always_inline]] inline void enter(int64_t cell) {
      for (int p = 0; p < kPanels; ++p) current_[p] = &buffer_[p][cell - first_];
    }
    template <int kHigh>
    [[gnu::always_inline]] inline Int quants(int panel, int pair, int word, int slice) const {
      return load(current_[panel]->quants[2 * pair + kHigh][word] + slice * 4 * kLanes);
    }
    const Q4KScales& scales(int panel) const { return current_[panel]->scales; }
    template <int kTokens>
    [[gnu::always_inline]] inline void prefetch() {
      prefetch_.step();
    }

   private:
    struct Cell {
      Q4KScales scales;
      alignas(64) uint8_t quants[8][8][64];
    };
    static void unpack_cell(const Q4KCell& from, Cell& to) {
      unpack_q4_k_scales(from, to.scales);
      const Int nibble = broadcast_byte(15);
      for (int pair = 0; pair < 4; ++pair) {
        for (int at = 0; at < 8 * kWordVectorBytes; at += 4 * kLanes) {
          const Int v = load(from.quants[pair][0] + at);
          store(to.quants[2 * pair][0] + at, bit_and(v, nibble));
          store(to.quants[2 * pair + 1][0] + at, bit_and(shift_right<4>(v), nibble));
        }
      }
    }
    Cell buffer_[kPanels][kUnpackedUnits];
    const Cell* current_[kPanels];
    int64_t first_;
    SpreadPrefetch<kPanels> prefetch_;
  };

  // One block of 32 columns, 2 * pair + kHigh of the cell.
  template <int kHigh, int kPanels, int kTokens, typename Weights>
  [[gnu::always_inline]] static inline void block(Weights& weights, int pair, int64_t cell,
                                                  const Int8Per256Block* const* x, Sums<kPanels, kTokens>& sums) {
    constexpr int kTileSlices = kPanels * kSlices;
    BlockSum dots[kTileSlices][kTokens];
#pragma GCC unroll 16
    for (int s = 0; s < kTileSlices; ++s) {
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) dots[s][t] = start_q4();
    }
#pragma GCC unroll 8
    for (int word = 0; word < 8; ++word) {
      Int w[kTileSlices];
#pragma GCC unroll 16
      for (int s = 0; s < kTileSlices; ++s) {
        w[s] = weights.template quants<kHigh>(s / kSlices, pair, word, s % kSlices);
      }
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const Int v = broadcast(load_word(x[t][cell].q + 64 * pair + 32 * kHigh + 4 * word));
#pragma GCC unroll 16
        for (int s = 0; s < kTileSlices; ++s) dots[s][t] = dot_q4(dots[s][t], w[s], v);
      }
    }
#pragma GCC unroll 16
    for (int s = 0; s < kTileSlices; ++s) {
      const Float scale = load_floats(weights.scales(s / kSlices).scales[2 * pair + kHigh] + s % kSlices * kLanes);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        sums.v[s][t] = multiply_add(to_floats(total_q4(dots[s][t])), scale, sums.v[s][t]);
      }
    }
    weights.template prefetch<kTokens>();
  }

  // Subtracts the mins and adds the cell's sums to the tile's.
  template <int kPanels, int kTokens, typename Weights>
  [[gnu::always_inline]] static inline void finish_cell(const Weights& weights, int64_t cell,
                                                        const Int8Per256Block* const* x,
                                                        const Sums<kPanels, kTokens>& cell_sums, float* sums) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const Int8Per256Block& block = x[t][cell];
#pragma GCC unroll 16
      for (int s = 0; s < kPanels * kSlices; ++s) {
        const Q4KScales& scales = weights.scales(s / kSlices);
        const int lane = s % kSlices * kLanes;
        Int mins = zero();
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          mins = dot_pairs(mins, load(scales.mins[i] + 4 * lane), broadcast(load_word(block.sum + 2 * i)));
        }
        const Float sum = negative_multiply_add(to_floats(mins), load_floats(scales.dmin + lane), cell_sums.v[s][t]);
        float* total = sums + t * kPanels * kPanelRows + s * kLanes;
        store_floats(total, multiply_add(sum, broadcast(block.scale), load_floats(total)));
      }
    }
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
      for (int pair = 0; pair < 4; ++pair) {
        block<0>(weights, pair, cell, x, cell_sums);
        block<1>(weights, pair, cell, x, cell_sums);
      }
      finish_cell(weights, cell, x, cell_sums, sums);
    }
  }
};

inline void multiply_q4_k(const MatmulArgs& args) { multiply_by_rows<Q4KKernel, Int8Tile>(args); }
