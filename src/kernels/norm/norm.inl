// Included after a vector_*.inl.

// The sum of squares in double: four sums, by vector index modulo 2 and half, then one tree. The order depends on n
// only, not on how x is aligned.
inline double sum_of_squares(const float* x, int64_t n) {
  Double sums[4] = {zero_doubles(), zero_doubles(), zero_doubles(), zero_doubles()};
  const auto accumulate = [&sums](int parity, Float v) {
    const Double low = low_doubles(v);
    const Double high = high_doubles(v);
    sums[2 * parity] = multiply_add(low, low, sums[2 * parity]);
    sums[2 * parity + 1] = multiply_add(high, high, sums[2 * parity + 1]);
  };
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    accumulate(0, load(x + i));
    accumulate(1, load(x + i + kLanes));
  }
  if (i + kLanes <= n) {
    accumulate(0, load(x + i));
    i += kLanes;
  }
  if (i < n) accumulate(1, load(first_lanes(n - i), x + i));
  return sum_of_lanes(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

inline void rms_norm_vectors(const float* x, const float* weight, float epsilon, int64_t n, float* out) {
  const double mean = sum_of_squares(x, n) / static_cast<double>(n);
  const __m128d root = _mm_sqrt_pd(_mm_set1_pd(mean + static_cast<double>(epsilon)));
  const Float scale = broadcast(static_cast<float>(1.0 / _mm_cvtsd_f64(root)));
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, multiply(multiply(load(x + i), scale), load(weight + i)));
  if (i < n) {
    const Mask tail = first_lanes(n - i);
    store(tail, out + i, multiply(multiply(load(tail, x + i), scale), load(tail, weight + i)));
  }
}
