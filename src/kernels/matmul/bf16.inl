// BF16 weights with BF16 activations. Included inside an anonymous namespace after a vector_*.inl, a dot_bf16*.inl and
// driver.inl.
//
// Per pair of columns (k, k + 1), k even: y = fma(w[k + 1], x[k + 1], y); y = fma(w[k], x[k], y): the order in which
// the vdpbf16ps instruction adds.

struct Bf16Kernel {
  static constexpr int64_t kUnitPairs = 32;
  static constexpr int64_t kStepPairs = 8;  // between prefetches
  static constexpr int64_t kUnitBytes = kUnitPairs * kWordVectorBytes;

  static int64_t num_pairs(const MatmulArgs& args) { return (args.cols + 1) / 2; }
  static int64_t num_units(const MatmulArgs& args) { return (num_pairs(args) + kUnitPairs - 1) / kUnitPairs; }

  template <int kPanels>
  class Packed {
   public:
    Packed(const MatmulArgs& args, int64_t panel) : num_pairs_(num_pairs(args)), prefetch_(args) {
      for (int p = 0; p < kPanels; ++p) panels_[p] = panel_address(args, panel + p);
    }
    [[gnu::always_inline]] inline void enter(int64_t unit) {
      for (int p = 0; p < kPanels; ++p) prefetch_.enter(p, panels_[p] + unit * kUnitBytes);
    }
    template <int kTokens>
    [[gnu::always_inline]] inline void prefetch() {
      prefetch_.template step<kTokens, kStepPairs * kWordVectorBytes>();
    }
    int64_t end_pair(int64_t unit) const { return smaller(num_pairs_, (unit + 1) * kUnitPairs); }
    [[gnu::always_inline]] inline Int pair(int panel, int64_t pair, int slice) const {
      return load(panels_[panel] + pair * kWordVectorBytes + slice * 4 * kLanes);
    }

   private:
    static constexpr PrefetchAhead kAhead = {.near_tokens = 4, .near_bytes = 1024, .far_bytes = 0, .near_to_l1 = false};
    const uint8_t* panels_[kPanels];
    int64_t num_pairs_;
    StreamPrefetch<kPanels, kAhead> prefetch_;
  };

  template <int kPanels, int kTokens, typename Weights>
  [[gnu::always_inline]] static inline void pair(const Weights& weights, int64_t pair, const std::byte* const* x,
                                                 Sums<kPanels, kTokens>& sums) {
    constexpr int kTileSlices = kPanels * kSlices;
    Bf16Pair w[kTileSlices];
#pragma GCC unroll 16
    for (int s = 0; s < kTileSlices; ++s) w[s] = prepare_bf16(weights.pair(s / kSlices, pair, s % kSlices));
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const Bf16Pair v = prepare_bf16(broadcast(load_word(x[t] + 4 * pair)));
#pragma GCC unroll 16
      for (int s = 0; s < kTileSlices; ++s) sums.v[s][t] = dot_bf16(sums.v[s][t], w[s], v);
    }
  }

  template <int kPanels, int kTokens, typename Weights>
  static void tile(Weights& weights, int64_t begin, int64_t end, const std::byte* const* rows, float* sums) {
    const std::byte* x[kTokens];
    for (int t = 0; t < kTokens; ++t) x[t] = rows[t];
    Sums<kPanels, kTokens> totals;
    totals.load(sums);
    for (int64_t unit = begin; unit < end; ++unit) {
      weights.enter(unit);
      int64_t k = unit * kUnitPairs;
      const int64_t end_pair = weights.end_pair(unit);
      for (; k + kStepPairs <= end_pair; k += kStepPairs) {
#pragma GCC unroll 2
        for (int64_t i = 0; i < kStepPairs; ++i) pair(weights, k + i, x, totals);
        weights.template prefetch<kTokens>();
      }
      for (; k < end_pair; ++k) pair(weights, k, x, totals);
    }
    totals.save(sums);
  }
};

inline void multiply_bf16(const MatmulArgs& args) {
  multiply_packed<Bf16Kernel, FloatTile::kPanels, FloatTile::kTokens>(args);
}
