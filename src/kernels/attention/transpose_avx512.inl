// Rows become columns of a square of kLanes vectors.
inline void transpose(Float (&v)[kLanes]) {
  Float pairs[kLanes];  // interleaved by 1, then by 2 within 128 bits
#pragma GCC unroll 8
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  // fours[4 i + j], 128-bit part k: column 4 k + j of rows 4 i .. 4 i + 4.
  Float fours[kLanes];
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
    const __m512d a = _mm512_castps_pd(pairs[i]);
    const __m512d b = _mm512_castps_pd(pairs[i + 1]);
    const __m512d c = _mm512_castps_pd(pairs[i + 2]);
    const __m512d d = _mm512_castps_pd(pairs[i + 3]);
    fours[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    fours[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    fours[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    fours[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  // A 4 x 4 transpose of the 128-bit parts for every j; 0x88 takes the even parts of two vectors, 0xdd the odd ones.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Float even_low = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0x88);
    const Float even_high = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0x88);
    const Float odd_low = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0xdd);
    const Float odd_high = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0xdd);
    v[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    v[4 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    v[8 + j] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    v[12 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}
