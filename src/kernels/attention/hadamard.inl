// hadamard_rotate() for queries and weighted sums. Included after hadamard_*.inl and before tiles.inl.

// out [dim] = factor * x [dim], turned in blocks of kVectors vectors, which stay in registers.
template <int kVectors>
void turn_vectors(const float* x, int64_t dim, float factor, float* out) {
  for (int64_t begin = 0; begin < dim; begin += kVectors * kLanes) {
    Float v[kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) v[i] = hadamard_lanes(multiply(load(x + begin + i * kLanes), broadcast(factor)));
#pragma GCC unroll 3
    for (int distance = 1; distance < kVectors; distance *= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) {
        if ((i & distance) != 0) continue;
        const Float low = v[i];
        v[i] = add(low, v[i + distance]);
        v[i + distance] = subtract(low, v[i + distance]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) store(out + begin + i * kLanes, v[i]);
  }
}

// out [dim] = x [dim], turned in blocks of `size` components, a power of two; out may be x.
inline void turn(const float* x, int64_t dim, int64_t size, float* out) {
  const float factor = 1.0f / __builtin_sqrtf(static_cast<float>(size));
  int64_t distance = 1;
  if (size >= 8 * kLanes) {
    turn_vectors<8>(x, dim, factor, out);
    distance = 8 * kLanes;
  } else if (size >= kLanes) {
    turn_vectors<1>(x, dim, factor, out);
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
