// A step of the Hadamard transform between lanes. Included after vector_avx2.inl.

// Lane i becomes v[i] + v[i + kDistance] where i lacks the bit kDistance, and v[i - kDistance] - v[i] where it has it.
template <int kDistance>
inline Float hadamard_step(Float v) {
  const Float other = kDistance == 1   ? _mm256_permute_ps(v, 0xb1)
                      : kDistance == 2 ? _mm256_permute_ps(v, 0x4e)
                                       : _mm256_permute2f128_ps(v, v, 1);
  constexpr int kUpper = kDistance == 1 ? 0xaa : kDistance == 2 ? 0xcc : 0xf0;
  return _mm256_blend_ps(_mm256_add_ps(v, other), _mm256_sub_ps(other, v), kUpper);
}

inline Float hadamard_lanes(Float v) { return hadamard_step<4>(hadamard_step<2>(hadamard_step<1>(v))); }
