// Rows become columns of a square of kLanes vectors.
inline void transpose(Float (&v)[kLanes]) {
  Float pairs[kLanes];  // interleaved by 1, then by 2 within 128 bits
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  // fours[4 i + j], 128-bit part k: column 4 k + j of rows 4 i .. 4 i + 4.
  Float fours[kLanes];
#pragma GCC unroll 2
  for (int i = 0; i < kLanes; i += 4) {
    const __m256d a = _mm256_castps_pd(pairs[i]);
    const __m256d b = _mm256_castps_pd(pairs[i + 1]);
    const __m256d c = _mm256_castps_pd(pairs[i + 2]);
    const __m256d d = _mm256_castps_pd(pairs[i + 3]);
    fours[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
    fours[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    fours[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
    fours[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    v[j] = _mm256_permute2f128_ps(fours[j], fours[4 + j], 0x20);
    v[4 + j] = _mm256_permute2f128_ps(fours[j], fours[4 + j], 0x31);
  }
}
