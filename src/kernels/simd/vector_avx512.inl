// Vectors of 16 floats. Included inside the anonymous namespace of a file compiled for AVX-512; vector_avx2.inl has
// the same names, so that a kernel is written once for both.

using Float = __m512;
using Mask = __mmask16;
constexpr int kLanes = 16;

inline Float load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Float v) { _mm512_storeu_ps(to, v); }
inline Float broadcast(float value) { return _mm512_set1_ps(value); }
inline Float zero() { return _mm512_setzero_ps(); }
inline float first_lane(Float v) { return _mm512_cvtss_f32(v); }

inline Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
inline Float subtract(Float a, Float b) { return _mm512_sub_ps(a, b); }
inline Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
inline Float divide(Float a, Float b) { return _mm512_div_ps(a, b); }
inline Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }            // a * b + c
inline Float negative_multiply_add(Float a, Float b, Float c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
inline Float larger(Float a, Float b) { return _mm512_max_ps(a, b); }                        // b where either is NaN
inline Float smaller(Float a, Float b) { return _mm512_min_ps(a, b); }                       // b where either is NaN
inline Float negative_magnitude(Float v) { return _mm512_or_ps(v, _mm512_set1_ps(-0.0f)); }  // -|v|

inline Mask first_lanes(int64_t count) { return static_cast<Mask>((1u << count) - 1u); }
inline Mask lanes_of_bits(uint32_t bits) { return static_cast<Mask>(bits); }
inline Mask less_than(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }       // false where NaN
inline Float select(Mask mask, Float a, Float b) { return _mm512_mask_blend_ps(mask, b, a); }  // mask ? a : b
inline Float keep(Mask mask, Float v) { return _mm512_maskz_mov_ps(mask, v); }                 // mask ? v : 0

// The lanes of `mask` only; the others are loaded as zeros and not stored, and their memory is not touched.
inline Float load(Mask mask, const float* from) { return _mm512_maskz_loadu_ps(mask, from); }
inline void store(Mask mask, float* to, Float v) { _mm512_mask_storeu_ps(to, mask, v); }

// v * 2^n, given the bits of 1.5 * 2^23 + n; all normal numbers.
inline Float scale_by_power(Float v, Float shifted_n) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted_n), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), exponent));
}

inline Float load_f16(const void* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
}
// The bf16 numbers in the low and in the high halves of 32-bit words.
inline Float load_low_bf16(const void* words) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(words), 16));
}
inline Float load_high_bf16(const void* words) {
  const __m512i high_halves = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(words), high_halves));
}
// A signed number of every 32-bit word: what is left of it after shifts to the left and then to the right. The bits
// `flip` of its bytes are stored the other way round.
inline Float load_field_of_words(const void* words, int left, int right, int flip) {
  const __m512i bytes = _mm512_xor_si512(_mm512_loadu_si512(words), _mm512_set1_epi8(static_cast<char>(flip)));
  const __m512i top = _mm512_sll_epi32(bytes, _mm_cvtsi32_si128(left));
  return _mm512_cvtepi32_ps(_mm512_sra_epi32(top, _mm_cvtsi32_si128(right)));
}
// The same of a number without a sign.
inline Float load_unsigned_field_of_words(const void* words, int left, int right) {
  const __m512i top = _mm512_sll_epi32(_mm512_loadu_si512(words), _mm_cvtsi32_si128(left));
  return _mm512_cvtepi32_ps(_mm512_srl_epi32(top, _mm_cvtsi32_si128(right)));
}
// Byte `byte` of every 32-bit word, as a signed number; less 128 if the bytes are unsigned and `flip` is 128.
inline Float load_byte_of_words(const void* words, int byte, int flip) {
  return load_field_of_words(words, 24 - 8 * byte, 24, flip);
}

// Over all lanes, always in the same tree.
inline float sum_of_lanes(Float v) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float max_of_lanes(Float v) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

// Vectors of 8 doubles, for sums.
using Double = __m512d;

inline Double zero_doubles() { return _mm512_setzero_pd(); }
inline Double low_doubles(Float v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
inline Double high_doubles(Float v) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }
inline Double add(Double a, Double b) { return _mm512_add_pd(a, b); }
inline Double multiply_add(Double a, Double b, Double c) { return _mm512_fmadd_pd(a, b, c); }
inline double sum_of_lanes(Double v) {
  const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
