// Vectors of 8 lanes, half a panel. Included inside the anonymous namespace of a file compiled for AVX2;
// vector_avx512.inl has the same names, so that the kernels are written once.

using Int = __m256i;
using Float = __m256;
constexpr int kLanes = 8;

inline Int load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store(void* to, Int v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
inline Float load_floats(const float* from) { return _mm256_loadu_ps(from); }
inline void store_floats(float* to, Float v) { _mm256_storeu_ps(to, v); }
// The first `count` lanes only.
inline void store_floats(float* to, Float v, int64_t count) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  _mm256_maskstore_ps(to, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes), v);
}
inline Float load_halves(const void* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}
// Bytes s eeee mmm as halves with the same sign, exponent bits and leading mantissa bits.
inline Float load_bytes_as_halves(const void* from) {
  const __m128i v = _mm_cvtepu8_epi16(_mm_loadl_epi64(static_cast<const __m128i*>(from)));
  const __m128i sign = _mm_and_si128(_mm_slli_epi16(v, 8), _mm_set1_epi16(static_cast<int16_t>(0x8000)));
  const __m128i rest = _mm_and_si128(_mm_slli_epi16(v, 7), _mm_set1_epi16(0x3f80));
  return _mm256_cvtph_ps(_mm_or_si128(sign, rest));
}
// Unsigned and signed bytes, one to each lane.
inline Int load_bytes(const void* from) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from)));
}
inline Int load_signed_bytes(const void* from) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from)));
}
inline Int load_halves_as_words(const void* from) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}

inline Int broadcast(int32_t value) { return _mm256_set1_epi32(value); }
inline Float broadcast(float value) { return _mm256_set1_ps(value); }
inline Int broadcast_byte(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
inline Int zero() { return _mm256_setzero_si256(); }
inline Float zero_floats() { return _mm256_setzero_ps(); }

inline Int bit_and(Int a, Int b) { return _mm256_and_si256(a, b); }
inline Int bit_or(Int a, Int b) { return _mm256_or_si256(a, b); }
inline Int bit_xor(Int a, Int b) { return _mm256_xor_si256(a, b); }
// Bits of a where mask is 1, of b where it is 0.
inline Int select_bits(Int mask, Int a, Int b) {
  return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b));
}
template <int kCount>
inline Int shift_left(Int v) {
  return _mm256_slli_epi32(v, kCount);
}
template <int kCount>
inline Int shift_right(Int v) {
  return _mm256_srli_epi32(v, kCount);
}
template <int kCount>
inline Int shift_right_signed(Int v) {
  return _mm256_srai_epi32(v, kCount);
}

// Byte i of the result is byte index[i] (0..15) of `table`, 16 bytes.
inline Int look_up(Int table, Int index) { return _mm256_shuffle_epi8(table, index); }
inline Int broadcast_table(const void* table) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(table)));
}
inline Int add_bytes(Int a, Int b) { return _mm256_add_epi8(a, b); }
inline Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
inline Int subtract(Int a, Int b) { return _mm256_sub_epi32(a, b); }

inline Float to_floats(Int v) { return _mm256_cvtepi32_ps(v); }
inline Int as_ints(Float v) { return _mm256_castps_si256(v); }
inline Float as_floats(Int v) { return _mm256_castsi256_ps(v); }
inline Float subtract(Float a, Float b) { return _mm256_sub_ps(a, b); }
inline Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
inline Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }            // a * b + c
inline Float multiply_subtract(Float a, Float b, Float c) { return _mm256_fmsub_ps(a, b, c); }       // a * b - c
inline Float negative_multiply_add(Float a, Float b, Float c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
