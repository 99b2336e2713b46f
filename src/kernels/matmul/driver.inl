// How products are cut into tiles, for all instruction sets and weight types. Included inside an anonymous namespace
// after a vector_*.inl.
//
// A tile is kPanels panels x kTokens activation rows, its sums held in registers. Each sum is one chain of operations
// over ascending K that does not depend on the tile's shape, so neither does the result. Between stretches of K the
// sums rest, unchanged, in a small buffer: [token][panel of the tile][16].

constexpr int kSlices = kPanelRows / kLanes;  // vectors that make up the 16 rows of a panel
constexpr int64_t kLineBytes = 64;            // of the cache

inline int32_t load_word(const void* from) {
  int32_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  return word;
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline const uint8_t* panel_address(const MatmulArgs& args, int64_t panel) {
  return args.panels + panel * args.panel_stride_bytes;
}

// Asks for a line of weights, for the L2 cache: far ahead, asking for the L1 cache holds back the core (Zen 4 has few
// buffers for L1 misses), and the way from L2 is short. An address past the end of the weights is harmless.
// (Volatile assembly stays where it is put: the compiler's scheduler gathers builtin prefetches into one burst, which
// the core answers by dropping them.)
[[gnu::always_inline]] inline void prefetch_line(const uint8_t* from) { asm volatile("prefetcht1 %0" : : "m"(*from)); }
[[gnu::always_inline]] inline void prefetch_line_to_l1(const uint8_t* from) {
  asm volatile("prefetcht0 %0" : : "m"(*from));
}
// Loads it, which waits for it where a prefetch may be dropped: `from` must be part of the weights.
[[gnu::always_inline]] inline void touch_line(const uint8_t* from) {
  int32_t word;
  asm volatile("movl %1, %0" : "=r"(word) : "m"(*from));
}

// The sums of a tile, [slice of the tile][token].
template <int kPanels, int kTokens>
struct Sums {
  static constexpr int kTileSlices = kPanels * kSlices;
  Float v[kTileSlices][kTokens];

  [[gnu::always_inline]] inline void clear() {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
      for (int s = 0; s < kTileSlices; ++s) v[s][t] = zero_floats();
    }
  }
  [[gnu::always_inline]] inline void load(const float* from) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
      for (int s = 0; s < kTileSlices; ++s) v[s][t] = load_floats(from + t * kPanels * kPanelRows + s * kLanes);
    }
  }
  [[gnu::always_inline]] inline void save(float* to) const {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
      for (int s = 0; s < kTileSlices; ++s) store_floats(to + t * kPanels * kPanelRows + s * kLanes, v[s][t]);
    }
  }
};

template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

// f(Count<count>{}) for a count in [1, kMax].
template <int kMax, typename F>
inline void with_count(int64_t count, const F& f) {
  if constexpr (kMax > 1) {
    if (count < kMax) return with_count<kMax - 1>(count, f);
  }
  f(Count<kMax>{});
}

// Cuts [0, num_tokens) into tiles of at most kMaxTokens, as even as possible, and calls f(first, Count<tokens>{}).
template <int kMaxTokens, typename F>
inline void for_each_tile(int64_t num_tokens, const F& f) {
  for (int64_t first = 0; first < num_tokens;) {
    const int64_t left = num_tokens - first;
    const int64_t num_tiles = (left + kMaxTokens - 1) / kMaxTokens;
    const int64_t tokens = (left + num_tiles - 1) / num_tiles;
    with_count<kMaxTokens>(tokens, [&](auto count) { f(first, count); });
    first += tokens;
  }
}

// Writes sums [token][panel][16] of the panels from `panel` on to the output, leaving out rows past the matrix.
template <int kPanels>
inline void write_out(const MatmulArgs& args, int64_t panel, int64_t first_token, int64_t num_tokens,
                      const float* sums) {
  const int64_t first_row = panel * kPanelRows;
  const int64_t num_rows = smaller(kPanels * kPanelRows, args.rows - first_row);
  for (int64_t t = 0; t < num_tokens; ++t) {
    const float* from = sums + t * kPanels * kPanelRows;
    float* to = args.out[first_token + t] + first_row;
    int64_t row = 0;
    for (; row + kLanes <= num_rows; row += kLanes) store_floats(to + row, load_floats(from + row));
    if (row < num_rows) store_floats(to + row, load_floats(from + row), num_rows - row);
  }
}

// Calls f(panel, Count<panels>{}) for groups of kMaxPanels panels, then for the panels left over one by one.
template <int kMaxPanels, typename F>
inline void for_each_panel_group(const MatmulArgs& args, const F& f) {
  int64_t panel = args.panel_begin;
  for (; panel + kMaxPanels <= args.panel_end; panel += kMaxPanels) f(panel, Count<kMaxPanels>{});
  if constexpr (kMaxPanels > 1) {
    for (; panel < args.panel_end; ++panel) f(panel, Count<1>{});
  }
}

// Few activation rows: one tile takes them all over the whole of K, one group of panels after the other, and uses the
// packed weights where they lie. Kernel::Packed<kPanels>(args, panel) are the weights.
template <typename Kernel, int kMaxPanels, int kMaxTokens>
inline void multiply_packed(const MatmulArgs& args) {
  for_each_panel_group<kMaxPanels>(args, [&](int64_t panel, auto panels) {
    constexpr int kPanels = decltype(panels)::value;
    typename Kernel::template Packed<kPanels> weights(args, panel);
    for_each_tile<kMaxTokens>(args.num_rows, [&](int64_t first, auto tokens) {
      constexpr int kTokens = decltype(tokens)::value;
      alignas(64) float sums[kTokens * kPanels * kPanelRows] = {};
      Kernel::template tile<kPanels, kTokens>(weights, 0, Kernel::num_units(args), args.activations + first, sums);
      write_out<kPanels>(args, panel, first, kTokens, sums);
    });
  });
}

// Many activation rows: a stretch of K of one panel group is unpacked to a buffer that stays in the L1 or L2 cache, and
// all tiles of up to kTokenBlock rows use it. While they do, they ask for the next stretch's packed weights.
constexpr int64_t kTokenBlock = 128;

template <typename Kernel, int kMaxPanels, int kMaxTokens>
inline void multiply_unpacked(const MatmulArgs& args) {
  const int64_t num_units = Kernel::num_units(args);
  for (int64_t block = 0; block < args.num_rows; block += kTokenBlock) {
    const int64_t num_tokens = smaller(kTokenBlock, args.num_rows - block);
    const int64_t num_tiles = (num_tokens + kMaxTokens - 1) / kMaxTokens;
    for_each_panel_group<kMaxPanels>(args, [&](int64_t panel, auto panels) {
      constexpr int kPanels = decltype(panels)::value;
      constexpr int64_t kSumsPerToken = kPanels * kPanelRows;
      alignas(64) float sums[kTokenBlock * kSumsPerToken];
      typename Kernel::template Unpacked<kPanels> weights;
      __builtin_memset(sums, 0, static_cast<size_t>(num_tokens * kSumsPerToken) * sizeof(float));
      for (int64_t begin = 0; begin < num_units; begin += Kernel::kUnpackedUnits) {
        const int64_t end = smaller(num_units, begin + Kernel::kUnpackedUnits);
        weights.unpack(args, panel, begin, end, num_tiles);
        for_each_tile<kMaxTokens>(num_tokens, [&](int64_t first, auto tokens) {
          Kernel::template tile<kPanels, decltype(tokens)::value>(weights, begin, end, args.activations + block + first,
                                                                  sums + first * kSumsPerToken);
        });
      }
      write_out<kPanels>(args, panel, block, num_tokens, sums);
    });
  }
}

// Prefetches the packed weights that follow those in use, a few lines of each panel at a time.
template <int kPanels>
class SpreadPrefetch {
 public:
  // For work on units [.., end) of the group at `panel`, in which step() will be called num_steps times: the next units
  // are the following max_units of the group or, at its end, the first of the next group. Units have unit_bytes and
  // start at `offset` in a panel.
  void start_after(const MatmulArgs& args, int64_t panel, int64_t end, int64_t num_units, int64_t max_units,
                   int64_t offset, int64_t unit_bytes, int64_t num_steps) {
    at_ = end_ = 0;
    if (end == num_units) {
      end = 0;
      panel += kPanels;
      if (panel + kPanels > args.panel_end) return;
    }
    for (int p = 0; p < kPanels; ++p) panels_[p] = panel_address(args, panel + p);
    at_ = end == 0 ? 0 : offset + end * unit_bytes;
    end_ = offset + smaller(num_units, end + max_units) * unit_bytes;
    lines_per_step_ = ((end_ - at_) / kLineBytes + num_steps - 1) / num_steps;
  }

  [[gnu::always_inline]] inline void step() {
    for (int64_t line = 0; line < lines_per_step_ && at_ < end_; ++line, at_ += kLineBytes) {
      for (int p = 0; p < kPanels; ++p) prefetch_line(panels_[p] + at_);
    }
  }

 private:
  const uint8_t* panels_[kPanels] = {};
  int64_t at_ = 0;
  int64_t end_ = 0;
  int64_t lines_per_step_ = 0;
};

// Where a walk over packed weights is asked for ahead of it; found by measuring on Zen 4 and on Intel's model 207.
// Few rows use a line as soon as it comes, and a hardware prefetcher that keeps up with that if the walk is one
// ascending stream needs no more than lines asked for a little ahead, which lead it over the edges of pages. With more
// rows it looks too few lines ahead, and those asked for early wait in the L2 cache. Others (always_far_ahead) look too
// few lines ahead with few rows, too.
struct PrefetchAhead {
  int near_tokens;         // most rows that count as few
  int64_t near_bytes;      // ahead, for few rows
  int64_t far_bytes;       // for more; 0: not at all, and few rows are so everywhere
  bool near_to_l1 = true;  // or to L2: better for several streams
};

template <int kPanels, const PrefetchAhead& kAhead>
class StreamPrefetch {
 public:
  explicit StreamPrefetch(const MatmulArgs& args) : always_far_(args.always_far_ahead) {}
  // The walk in panel `panel` of the group goes on at `at`.
  [[gnu::always_inline]] inline void enter(int panel, const uint8_t* at) { at_[panel] = at; }

  // The next kBytes of each panel are about to be used.
  template <int kTokens, int64_t kBytes>
  [[gnu::always_inline]] inline void step() {
    constexpr bool kNear = kTokens <= kAhead.near_tokens;
    if constexpr (!kNear) {
      ask<kBytes, kAhead.far_bytes, false>();
    } else if (kAhead.far_bytes > 0 && always_far_) {
      ask<kBytes, kAhead.far_bytes, false>();
    } else {
      ask<kBytes, kAhead.near_bytes, kAhead.near_to_l1>();
    }
  }

 private:
  template <int64_t kBytes, int64_t kDistance, bool kToL1>
  [[gnu::always_inline]] inline void ask() {
    if constexpr (kDistance == 0) return;
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
      for (int64_t line = 0; line < kBytes; line += kLineBytes) {
        const uint8_t* from = at_[p] + kDistance + line;
        if constexpr (kToL1) {
          prefetch_line_to_l1(from);
        } else {
          prefetch_line(from);
        }
      }
      at_[p] += kBytes;
    }
  }

  const uint8_t* at_[kPanels];
  bool always_far_;
};

// The choice by the number of activation rows.
template <typename Kernel, typename Tile>
inline void multiply_by_rows(const MatmulArgs& args) {
  if (args.num_rows <= Tile::kDirectTokens) {
    multiply_packed<Kernel, 1, Tile::kDirectTokens>(args);
  } else {
    multiply_unpacked<Kernel, Tile::kPanels, Tile::kTokens>(args);
  }
}
