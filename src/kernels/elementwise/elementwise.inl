// Included after simd/exp.inl.

// silu(z) = z e / (1 + e) with e = exp(z) where z < 0, z / (1 + e) with e = exp(-z) elsewhere: e never overflows.
inline Float silu(Float z) {
  const Float e = exp_of_nonpositive(negative_magnitude(z));
  const Float numerator = select(less_than(z, zero()), multiply(z, e), z);
  return divide(numerator, add(broadcast(1.0f), e));
}

inline void swiglu_vectors(const float* gate, const float* up, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, multiply(silu(load(gate + i)), load(up + i)));
  if (i < n) {
    const Mask tail = first_lanes(n - i);
    store(tail, out + i, multiply(silu(load(tail, gate + i)), load(tail, up + i)));
  }
}

// v in [-limit, limit]; NaN stays NaN.
inline Float clamped(Float limit, Float v) { return larger(subtract(zero(), limit), smaller(limit, v)); }

// g sigmoid(a g) = silu(a g) / a
inline Float clamped_glu(Float gate, Float up, Float limit) {
  const Float g = smaller(limit, gate);
  const Float glu = divide(silu(multiply(g, broadcast(1.702f))), broadcast(1.702f));
  return multiply(add(clamped(limit, up), broadcast(1.0f)), glu);
}

inline void clamped_swiglu_vectors(const float* gate, const float* up, int64_t n, float limit, float* out) {
  const Float bound = broadcast(limit);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, clamped_glu(load(gate + i), load(up + i), bound));
  if (i < n) {
    const Mask tail = first_lanes(n - i);
    store(tail, out + i, clamped_glu(load(tail, gate + i), load(tail, up + i), bound));
  }
}

inline void relu_vectors(int64_t n, float* x) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, larger(zero(), load(x + i)));
  if (i < n) {
    const Mask tail = first_lanes(n - i);
    store(tail, x + i, larger(zero(), load(tail, x + i)));
  }
}

inline void clamp_vectors(float limit, int64_t n, float* x) {
  const Float bound = broadcast(limit);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, clamped(bound, load(x + i)));
  if (i < n) {
    const Mask tail = first_lanes(n - i);
    store(tail, x + i, clamped(bound, load(tail, x + i)));
  }
}

inline void add_vectors(const float* x, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, add(load(y + i), load(x + i)));
  if (i < n) {
    const Mask tail = first_lanes(n - i);
    store(tail, y + i, add(load(tail, y + i), load(tail, x + i)));
  }
}

inline void axpy_vectors(float a, const float* x, int64_t n, float* y) {
  const Float factor = broadcast(a);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, multiply_add(factor, load(x + i), load(y + i)));
  if (i < n) {
    const Mask tail = first_lanes(n - i);
    store(tail, y + i, multiply_add(factor, load(tail, x + i), load(tail, y + i)));
  }
}

// Of x [n]; NaNs are passed over, -inf where there is nothing else.
inline float max_of(int64_t n, const float* x) {
  const Float lowest = broadcast(-__builtin_inff());
  Float max = lowest;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) max = larger(load(x + i), max);
  if (i < n) {
    const Mask tail = first_lanes(n - i);
    max = larger(select(tail, load(tail, x + i), lowest), max);
  }
  return max_of_lanes(max);
}

inline void softmax_vectors(int64_t n, float* x) {
  const float max = max_of(n, x);
  const Float shift = broadcast(max == -__builtin_inff() ? 0.0f : max);  // exp(-inf - -inf) would be NaN
  Float lane_sums = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Float e = exp_of_nonpositive(subtract(load(x + i), shift));
    store(x + i, e);
    lane_sums = add(lane_sums, e);
  }
  const Mask tail = first_lanes(n - i);
  if (i < n) {
    const Float e = keep(tail, exp_of_nonpositive(subtract(load(tail, x + i), shift)));
    store(tail, x + i, e);
    lane_sums = add(lane_sums, e);
  }
  const float total = sum_of_lanes(lane_sums);
  const Float denominator = broadcast(total == 0.0f ? 1.0f : total);
  for (i = 0; i + kLanes <= n; i += kLanes) store(x + i, divide(load(x + i), denominator));
  if (i < n) store(tail, x + i, divide(load(tail, x + i), denominator));
}
