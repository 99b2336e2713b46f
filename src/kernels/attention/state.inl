// Merging and finishing attention states. Included after simd/exp.inl. A state is [reference, denominator,
// sum[value_dim]]; it is empty when its denominator is 0, since the reference itself was a score and added exp(0) = 1.

// x[i] = x[i] * x_factor + y[i] * y_factor
inline void combine(float* x, float x_factor, const float* y, float y_factor, int64_t n) {
  const Float fx = broadcast(x_factor);
  const Float fy = broadcast(y_factor);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, multiply_add(load(y + i), fy, multiply(load(x + i), fx)));
  if (i < n) {
    const Mask tail = first_lanes(n - i);
    store(tail, x + i, multiply_add(load(tail, y + i), fy, multiply(load(tail, x + i), fx)));
  }
}

inline void merge_states(float* into, const float* next, int64_t value_dim) {
  if (next[1] == 0.0f) return;
  if (into[1] == 0.0f) {
    __builtin_memcpy(into, next, static_cast<size_t>(2 + value_dim) * sizeof(float));
    return;
  }
  const float max = into[0] > next[0] ? into[0] : next[0];
  const float into_factor = exp_of_nonpositive(into[0] - max);
  const float next_factor = exp_of_nonpositive(next[0] - max);
  combine(into + 1, into_factor, next + 1, next_factor, 1 + value_dim);
  into[0] = max;
}

inline void finish_state(float* state, const float* sink, int64_t value_dim, float* out) {
  if (sink != nullptr && *sink > -__builtin_inff()) {
    const float max = state[0] > *sink ? state[0] : *sink;
    const float factor = exp_of_nonpositive(state[0] - max);
    for (int64_t i = 1; i < 2 + value_dim; ++i) state[i] *= factor;
    state[1] += exp_of_nonpositive(*sink - max);
    state[0] = max;
  }
  const Float denominator = broadcast(state[1] == 0.0f ? 1.0f : state[1]);  // an empty state has a sum of zeros
  int64_t i = 0;
  for (; i + kLanes <= value_dim; i += kLanes) store(out + i, divide(load(state + 2 + i), denominator));
  if (i < value_dim) {
    const Mask tail = first_lanes(value_dim - i);
    store(tail, out + i, divide(load(tail, state + 2 + i), denominator));
  }
}
