// BF16 products without the bf16 instructions. Included inside an anonymous namespace after a vector_*.inl;
// matmul_avx512_bf16.cpp has the same names. Equal to vdpbf16ps except for subnormals, which that flushes to zero.

struct Bf16Pair {
  Float even;
  Float odd;
};
inline Bf16Pair prepare_bf16(Int pairs) {
  return {as_floats(shift_left<16>(pairs)), as_floats(bit_and(pairs, broadcast(static_cast<int32_t>(0xffff0000u))))};
}
inline Float dot_bf16(Float sum, const Bf16Pair& a, const Bf16Pair& b) {
  return multiply_add(a.even, b.even, multiply_add(a.odd, b.odd, sum));
}
