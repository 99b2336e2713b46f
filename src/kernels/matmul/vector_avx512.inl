// Vectors of 16 lanes. Included inside the anonymous namespace of a file compiled for AVX-512; vector_avx2.inl has the
// same names, so that the kernels are written once.

using Int = __m512i;
using Float = __m512;
constexpr int kLanes = 16;

inline Int load(const void* from) { return _mm512_loadu_si512(from); }
inline void store(void* to, Int v) { _mm512_storeu_si512(to, v); }
inline Float load_floats(const float* from) { return _mm512_loadu_ps(from); }
inline void store_floats(float* to, Float v) { _mm512_storeu_ps(to, v); }
// The first `count` lanes only.
inline void store_floats(float* to, Float v, int64_t count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1u), v);
}
inline Float load_halves(const void* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
}
// Bytes s eeee mmm as halves with the same sign, exponent bits and leading mantissa bits.
inline Float load_bytes_as_halves(const void* from) {
  const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  const __m256i sign = _mm256_and_si256(_mm256_slli_epi16(v, 8), _mm256_set1_epi16(static_cast<int16_t>(0x8000)));
  const __m256i rest = _mm256_and_si256(_mm256_slli_epi16(v, 7), _mm256_set1_epi16(0x3f80));
  return _mm512_cvtph_ps(_mm256_or_si256(sign, rest));
}
// Unsigned and signed bytes, one to each lane.
inline Int load_bytes(const void* from) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}
inline Int load_signed_bytes(const void* from) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}
inline Int load_halves_as_words(const void* from) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
}

inline Int broadcast(int32_t value) { return _mm512_set1_epi32(value); }
inline Float broadcast(float value) { return _mm512_set1_ps(value); }
inline Int broadcast_byte(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
inline Int zero() { return _mm512_setzero_si512(); }
inline Float zero_floats() { return _mm512_setzero_ps(); }

inline Int bit_and(Int a, Int b) { return _mm512_and_si512(a, b); }
inline Int bit_or(Int a, Int b) { return _mm512_or_si512(a, b); }
inline Int bit_xor(Int a, Int b) { return _mm512_xor_si512(a, b); }
// Bits of a where mask is 1, of b where it is 0.
inline Int select_bits(Int mask, Int a, Int b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xca); }
template <int kCount>
inline Int shift_left(Int v) {
  return _mm512_slli_epi32(v, kCount);
}
template <int kCount>
inline Int shift_right(Int v) {
  return _mm512_srli_epi32(v, kCount);
}
template <int kCount>
inline Int shift_right_signed(Int v) {
  return _mm512_srai_epi32(v, kCount);
}

// Byte i of the result is byte index[i] (0..15) of `table`, 16 bytes.
inline Int look_up(Int table, Int index) { return _mm512_shuffle_epi8(table, index); }
inline Int broadcast_table(const void* table) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(table)));
}
inline Int add_bytes(Int a, Int b) { return _mm512_add_epi8(a, b); }
inline Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
inline Int subtract(Int a, Int b) { return _mm512_sub_epi32(a, b); }

inline Float to_floats(Int v) { return _mm512_cvtepi32_ps(v); }
inline Int as_ints(Float v) { return _mm512_castps_si512(v); }
inline Float as_floats(Int v) { return _mm512_castsi512_ps(v); }
inline Float subtract(Float a, Float b) { return _mm512_sub_ps(a, b); }
inline Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
inline Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }            // a * b + c
inline Float multiply_subtract(Float a, Float b, Float c) { return _mm512_fmsub_ps(a, b, c); }       // a * b - c
inline Float negative_multiply_add(Float a, Float b, Float c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
