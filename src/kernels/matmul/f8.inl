// F8_E4M3 weights with BF16 activations. Included inside an anonymous namespace after a vector_*.inl, a dot_bf16*.inl
// and driver.inl.
//
// Every code is a bfloat16, so a unit of 128 columns, which have one scale, is unpacked to bfloat16 pairs in a buffer
// in the L1 cache, 2^8 times smaller as the bits of a half are. Then per unit:
//   s = 0; per pair of columns (k, k + 1), k even: s = fma(w[k + 1], x[k + 1], s); s = fma(w[k], x[k], s)
//   y = fma(s, 2^8 * scale, y)

struct F8Kernel {
  static constexpr int64_t kUnpackedUnits = 1;
  static constexpr int64_t kUnitPairs = kF8ScaleColumns / 2;
  static constexpr int64_t kStepPairs = 8;  // between prefetches
  static constexpr int64_t kScaleBytes = kPanelRows * 4;
  static constexpr int64_t kUnitBytes = kF8ScaleColumns * kPanelRows;

  static int64_t num_units(const MatmulArgs& args) { return (args.cols + kF8ScaleColumns - 1) / kF8ScaleColumns; }

  template <int kPanels>
  class Unpacked {
   public:
    void unpack(const MatmulArgs& args, int64_t panel, int64_t unit, int64_t /*end*/, int64_t num_tiles) {
      const int64_t scales_bytes = num_units(args) * kScaleBytes;
      const int64_t cols = smaller(kF8ScaleColumns, args.cols - unit * kF8ScaleColumns);
      num_pairs_ = (cols + 1) / 2;
      for (int p = 0; p < kPanels; ++p) {
        const uint8_t* bytes = panel_address(args, panel + p);
        const auto* scales = reinterpret_cast<const float*>(bytes + unit * kScaleBytes);
        for (int lane = 0; lane < kPanelRows; lane += kLanes) {
          store_floats(scales_[p] + lane, multiply(load_floats(scales + lane), broadcast(256.0f)));
        }
        unpack_pairs(bytes + scales_bytes + unit * kUnitBytes, cols, pairs_[p]);
      }
      prefetch_.start_after(args, panel, unit + 1, num_units(args), 1, scales_bytes, kUnitBytes,
                            num_tiles * (kUnitPairs / kStepPairs));
    }
    int64_t num_pairs() const { return num_pairs_; }
    [[gnu::always_inline]] inline Int pair(int panel, int64_t pair, int slice) const {
      return load(pairs_[panel][pair] + slice * 4 * kLanes);
    }
    const float* scales(int panel) const { return scales_[panel]; }
    [[gnu::always_inline]] inline void prefetch() { prefetch_.step(); }

   private:
    static void unpack_pairs(const uint8_t* codes, int64_t cols, uint8_t (*out)[kWordVectorBytes]) {
      const Int upper = broadcast(static_cast<int32_t>(0xffff0000u));
      for (int64_t k = 0; k < cols; k += 2) {
        for (int slice = 0; slice < kSlices; ++slice) {
          const uint8_t* at = codes + k * kPanelRows + slice * kLanes;
          const Int even = as_ints(load_bytes_as_halves(at));
          const Int odd = k + 1 < cols ? as_ints(load_bytes_as_halves(at + kPanelRows)) : zero();
          store(out[k / 2] + slice * 4 * kLanes, select_bits(upper, odd, shift_right<16>(even)));
        }
      }
    }

    alignas(64) uint8_t pairs_[kPanels][kUnitPairs][kWordVectorBytes];
    alignas(64) float scales_[kPanels][kPanelRows];
    int64_t num_pairs_;
    SpreadPrefetch<kPanels> prefetch_;
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

  // One unit.
  template <int kPanels, int kTokens, typename Weights>
  static void tile(Weights& weights, int64_t unit, int64_t /*end*/, const std::byte* const* rows, float* sums) {
    const std::byte* x[kTokens];
    for (int t = 0; t < kTokens; ++t) x[t] = rows[t] + unit * kUnitPairs * 4;
    Sums<kPanels, kTokens> unit_sums;
    unit_sums.clear();
    int64_t k = 0;
    for (; k + kStepPairs <= weights.num_pairs(); k += kStepPairs) {
#pragma GCC unroll 2
      for (int64_t i = 0; i < kStepPairs; ++i) pair(weights, k + i, x, unit_sums);
      weights.prefetch();
    }
    for (; k < weights.num_pairs(); ++k) pair(weights, k, x, unit_sums);
#pragma GCC unroll 16
    for (int s = 0; s < kPanels * kSlices; ++s) {
      const Float scale = load_floats(weights.scales(s / kSlices) + s % kSlices * kLanes);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        float* total = sums + t * kPanels * kPanelRows + s * kLanes;
        store_floats(total, multiply_add(unit_sums.v[s][t], scale, load_floats(total)));
      }
    }
  }
};

inline void multiply_f8(const MatmulArgs& args) {
  multiply_unpacked<F8Kernel, FloatTile::kPanels, FloatTile::kTokens>(args);
}
