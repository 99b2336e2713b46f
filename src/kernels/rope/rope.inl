// Included after a vector_*.inl and the file's functions on pairs:
//   Float spread_pairs(const float* from)          (f0, f0, f1, f1, ...) of kLanes / 2 floats
//   Float spread_pairs(int64_t count, from)        the same of the first `count` only, zeros after them
//   Float swap_pairs(Float v)                      (v1, v0, v3, v2, ...)
//   Float multiply_subtract_add(Float a, Float b, Float c)   a * b - c in even lanes, a * b + c in odd ones

struct RotatedHalves {
  Float a;
  Float b;
};

inline RotatedHalves rotate(Float cos, Float sin, Float a, Float b) {
  return {negative_multiply_add(b, sin, multiply(a, cos)), multiply_add(b, cos, multiply(a, sin))};
}

inline void rope_halves_vectors(const float* cos, const float* sin, int64_t dim, float* x) {
  const int64_t half = dim / 2;
  float* y = x + half;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const RotatedHalves rotated = rotate(load(cos + i), load(sin + i), load(x + i), load(y + i));
    store(x + i, rotated.a);
    store(y + i, rotated.b);
  }
  if (i < half) {
    const Mask tail = first_lanes(half - i);
    const RotatedHalves rotated =
        rotate(load(tail, cos + i), load(tail, sin + i), load(tail, x + i), load(tail, y + i));
    store(tail, x + i, rotated.a);
    store(tail, y + i, rotated.b);
  }
}

inline Float rotate_pairs(Float cos, Float sin, Float v) {
  return multiply_subtract_add(v, cos, multiply(swap_pairs(v), sin));
}

inline void rope_pairs_vectors(const float* cos, const float* sin, int64_t dim, float* x) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    store(x + i, rotate_pairs(spread_pairs(cos + i / 2), spread_pairs(sin + i / 2), load(x + i)));
  }
  if (i < dim) {
    const Mask tail = first_lanes(dim - i);
    const int64_t count = (dim - i) / 2;
    store(tail, x + i,
          rotate_pairs(spread_pairs(count, cos + i / 2), spread_pairs(count, sin + i / 2), load(tail, x + i)));
  }
}
