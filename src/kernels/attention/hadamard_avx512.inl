// A step of the Hadamard transform between lanes. Included after vector_avx512.inl.

// Lane i becomes v[i] + v[i + kDistance] where i lacks the bit kDistance, and v[i - kDistance] - v[i] where it has it.
template <int kDistance>
inline Float hadamard_step(Float v) {
  const Float other = kDistance == 1   ? _mm512_permute_ps(v, 0xb1)
                      : kDistance == 2 ? _mm512_permute_ps(v, 0x4e)
                      : kDistance == 4 ? _mm512_shuffle_f32x4(v, v, 0xb1)
                                       : _mm512_shuffle_f32x4(v, v, 0x4e);
  constexpr Mask kUpper = kDistance == 1 ? 0xaaaa : kDistance == 2 ? 0xcccc : kDistance == 4 ? 0xf0f0 : 0xff00;
  const Float signs = _mm512_mask_blend_ps(kUpper, broadcast(1.0f), broadcast(-1.0f));
  return multiply_add(v, signs, other);  // of products that are exact
}

inline Float hadamard_lanes(Float v) {
  return hadamard_step<8>(hadamard_step<4>(hadamard_step<2>(hadamard_step<1>(v))));
}
