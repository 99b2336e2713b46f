// Integer products on AVX-512 without VNNI; see dot_vnni.inl. maddubs adds two products of an unsigned and a signed
// byte and saturates at 16 bits; the comments say why that cannot happen.

// 4-bit weights, 32 columns (8 words): 16 products of at most 15 * 127 in each 16-bit lane stay below 2^15.
using BlockSum = Int;
inline BlockSum start_q4() { return zero(); }
inline BlockSum dot_q4(BlockSum sum, Int weights, Int x) {
  return _mm512_add_epi16(sum, _mm512_maddubs_epi16(weights, x));
}
inline Int total_q4(BlockSum sum) { return _mm512_madd_epi16(sum, _mm512_set1_epi16(1)); }

// 6-bit weights 0..63, two words: 4 products of at most 63 * 127.
inline Int dot_q6(Int sum, Int weights0, Int x0, Int weights1, Int x1) {
  const Int both = _mm512_add_epi16(_mm512_maddubs_epi16(weights0, x0), _mm512_maddubs_epi16(weights1, x1));
  return _mm512_add_epi32(sum, _mm512_madd_epi16(both, _mm512_set1_epi16(1)));
}

// 8-bit weights as |q| with the sign moved to the activation: 2 products of at most 128 * 127. Activations are never
// -128, so their negation is exact.
struct Q8Weights {
  Int magnitude;
  __mmask64 negative;
};
inline Q8Weights prepare_q8(Int stored) {
  const Int q = bit_xor(stored, broadcast_byte(0x80));
  return {_mm512_abs_epi8(q), _mm512_movepi8_mask(q)};
}
inline Int start_q8(int32_t /*offset*/) { return zero(); }
inline Int dot_q8(Int sum, const Q8Weights& weights, Int x) {
  const Int signed_x = _mm512_mask_sub_epi8(x, weights.negative, zero(), x);
  const Int products = _mm512_maddubs_epi16(weights.magnitude, signed_x);
  return _mm512_add_epi32(sum, _mm512_madd_epi16(products, _mm512_set1_epi16(1)));
}

// sum + 16-bit products, pairs added.
inline Int dot_pairs(Int sum, Int a, Int b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }
