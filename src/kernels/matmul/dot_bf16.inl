// BF16 products by vdpbf16ps. Included inside an anonymous namespace after vector_avx512.inl; dot_bf16_emulated.inl has
// the same names.

struct Bf16Pair {
  __m512bh pairs;
};
inline Bf16Pair prepare_bf16(Int pairs) { return {reinterpret_cast<__m512bh>(pairs)}; }
inline Float dot_bf16(Float sum, const Bf16Pair& a, const Bf16Pair& b) {
  return _mm512_dpbf16_ps(sum, a.pairs, b.pairs);
}
