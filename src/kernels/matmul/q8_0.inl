// Q8_0 weights with int8 activations of one scale per 32 columns. Included inside an anonymous namespace after a
// vector_*.inl, a dot_*.inl and driver.inl.
//
// Per block of 32 columns, with the exact integer sum in brackets:
//   y = fma([sum of q x], d * scale of x, y)

struct Q8Kernel {
  static constexpr int64_t kUnpackedUnits = 3;  // groups of 256 columns

  static int64_t num_blocks(const MatmulArgs& args) { return args.cols / kQ8BlockColumns; }
  static int64_t num_units(const MatmulArgs& args) { return (num_blocks(args) + kQ8GroupBlocks - 1) / kQ8GroupBlocks; }

  // The weights lie as the products want them, so there is nothing to unpack: the two classes differ in what they
  // prefetch.
  template <int kPanels>
  class Groups {
   public:
    void set(const MatmulArgs& args, int64_t panel) {
      num_blocks_ = num_blocks(args);
      for (int p = 0; p < kPanels; ++p) panels_[p] = panel_address(args, panel + p);
    }
    int64_t blocks(int64_t group) const { return smaller(kQ8GroupBlocks, num_blocks_ - group * kQ8GroupBlocks); }
    const uint8_t* scale(int panel, int64_t group, int64_t block) const {
      return panels_[panel] + group * kQ8GroupBytes + block * 32;
    }
    const uint8_t* quants(int panel, int64_t group, int64_t block) const {
      const int64_t scales_bytes = (blocks(group) * 32 + 63) / 64 * 64;
      return panels_[panel] + group * kQ8GroupBytes + scales_bytes + block * kQ8BlockBytes;
    }

   private:
    const uint8_t* panels_[kPanels];
    int64_t num_blocks_;
  };

  template <int kPanels>
  class Packed : public Groups<kPanels> {
   public:
    Packed(const MatmulArgs& args, int64_t panel) : prefetch_(args) { this->set(args, panel); }
    [[gnu::always_inline]] inline void enter(int64_t group) {
      for (int p = 0; p < kPanels; ++p) prefetch_.enter(p, this->scale(p, group, 0));
    }
    template <int kTokens>
    [[gnu::always_inline]] inline void prefetch() {
      prefetch_.template step<kTokens, kQ8GroupBytes / kQ8GroupBlocks>();
    }

   private:
    static constexpr PrefetchAhead kAhead = {.near_tokens = 4, .near_bytes = 512, .far_bytes = kQ8GroupBytes};
    StreamPrefetch<kPanels, kAhead> prefetch_;
  };

  template <int kPanels>
  class Unpacked : public Groups<kPanels> {
   public:
    void unpack(const MatmulArgs& args, int64_t panel, int64_t begin, int64_t end, int64_t num_tiles) {
      this->set(args, panel);
      prefetch_.start_after(args, panel, end, num_units(args), kUnpackedUnits, 0, kQ8GroupBytes,
                            num_tiles * (end - begin) * kQ8GroupBlocks);
    }
    void enter(int64_t /*group*/) {}
    template <int kTokens>
    [[gnu::always_inline]] inline void prefetch() {
      prefetch_.step();
    }

   private:
    SpreadPrefetch<kPanels> prefetch_;
  };

  template <int kPanels, int kTokens, typename Weights>
  [[gnu::always_inline]] static inline void block(const Weights& weights, int64_t group, int64_t b,
                                                  const Int8Per32Group* const* x, Sums<kPanels, kTokens>& sums) {
    constexpr int kTileSlices = kPanels * kSlices;
    Int dots[kTileSlices][kTokens];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const Int start = start_q8(x[t][group].offset[b]);
#pragma GCC unroll 16
      for (int s = 0; s < kTileSlices; ++s) dots[s][t] = start;
    }
#pragma GCC unroll 8
    for (int word = 0; word < 8; ++word) {
      Q8Weights w[kTileSlices];
#pragma GCC unroll 16
      for (int s = 0; s < kTileSlices; ++s) {
        w[s] = prepare_q8(
            load(weights.quants(s / kSlices, group, b) + word * kWordVectorBytes + s % kSlices * 4 * kLanes));
      }
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const Int v = broadcast(load_word(x[t][group].q + 32 * b + 4 * word));
#pragma GCC unroll 16
        for (int s = 0; s < kTileSlices; ++s) dots[s][t] = dot_q8(dots[s][t], w[s], v);
      }
    }
#pragma GCC unroll 16
    for (int s = 0; s < kTileSlices; ++s) {
      const Float d = load_halves(weights.scale(s / kSlices, group, b) + s % kSlices * 2 * kLanes);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const Float scale = multiply(d, broadcast(x[t][group].scale[b]));
        sums.v[s][t] = multiply_add(to_floats(dots[s][t]), scale, sums.v[s][t]);
      }
    }
  }

  template <int kPanels, int kTokens, typename Weights>
  static void tile(Weights& weights, int64_t begin, int64_t end, const std::byte* const* rows, float* sums) {
    const Int8Per32Group* x[kTokens];
    for (int t = 0; t < kTokens; ++t) x[t] = reinterpret_cast<const Int8Per32Group*>(rows[t]);
    Sums<kPanels, kTokens> totals;
    totals.load(sums);
    for (int64_t group = begin; group < end; ++group) {
      weights.enter(group);
      const int64_t num_blocks = weights.blocks(group);
#pragma GCC unroll 1
      for (int64_t b = 0; b < num_blocks; ++b) {
        block(weights, group, b, x, totals);
        weights.template prefetch<kTokens>();
      }
    }
    totals.save(sums);
  }
};

inline void multiply_q8_0(const MatmulArgs& args) { multiply_by_rows<Q8Kernel, Int8Tile>(args); }
