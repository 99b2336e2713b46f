// hadamard_rotate() for queries and weighted sums. Included after hadamard_*.inl and before tiles.inl.

// out [dim] = x [dim], turned in blocks of `size` components, a power of two; out may be x.
inline void turn(const float* x, int64_t dim, int64_t size, float* out) {
  const float factor = 1.0f / __builtin_sqrtf(static_cast<float>(size));
  int64_t distance = 1;
  if (size >= kLanes) {
    for (int64_t i = 0; i < dim; i += kLanes) store(out + i, hadamard_lanes(multiply(load(x + i), broadcast(factor))));
    distance = kLanes;
  } else {
    for (int64_t i = 0; i < dim; ++i) out[i] = x[i] * factor;
  }
  for (; distance < size; distance *= 2) {
    for (int64_t begin = 0; begin < dim; begin += 2 * distance) {
      float* const low = out + begin;
      float* const high = low + distance;
      if (distance >= kLanes) {
        for (int64_t i = 0; i < distance; i += kLanes) {
          const Float a = load(low + i);
          const Float b = load(high + i);
          store(low + i, add(a, b));
          store(high + i, subtract(a, b));
        }
        continue;
      }
      for (int64_t i = 0; i < distance; ++i) {
        const float sum = low[i] + high[i];
        high[i] = low[i] - high[i];
        low[i] = sum;
      }
    }
  }
}
