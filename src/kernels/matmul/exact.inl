// Weights of any type with float activations. Included inside an anonymous namespace after a vector_*.inl and
// driver.inl.
//
// Stretches of 64 columns of a panel are decoded to floats [column][16 rows], bit for bit as QuantType::decode does, in
// a buffer in the L1 cache; then for each column k: y = fma(w[k], x[k], y).

constexpr int64_t kExactColumns = 64;

using ExactBuffer = float[kExactColumns][kPanelRows];

// Stores f(byte i of each word as float) to rows i = 0..3 of `out`.
template <typename F>
inline void decode_words(Int words, float (*out)[kPanelRows], int slice, const F& f) {
  const Int byte = broadcast(255);
  store_floats(out[0] + slice * kLanes, f(to_floats(bit_and(words, byte))));
  store_floats(out[1] + slice * kLanes, f(to_floats(bit_and(shift_right<8>(words), byte))));
  store_floats(out[2] + slice * kLanes, f(to_floats(bit_and(shift_right<16>(words), byte))));
  store_floats(out[3] + slice * kLanes, f(to_floats(shift_right<24>(words))));
}

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

// Decoder::decode(args, panel, begin, end, buffer) gives the weights of columns [begin, end) of a panel, in place or
// decoded to `buffer`. begin is a multiple of 64.
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
