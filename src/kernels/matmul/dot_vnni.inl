// Integer products on AVX-512 VNNI. Included inside an anonymous namespace after vector_avx512.inl; dot_maddubs.inl and
// dot_maddubs_avx512.inl have the same names. All are exact, so the choice does not show in the results.
//
// A block's products are summed in a BlockSum: start_x(), one dot_x() per word, then block_total().

using BlockSum = Int;

// 4-bit weights, 32 columns (8 words).
inline BlockSum start_q4() { return zero(); }
inline BlockSum dot_q4(BlockSum sum, Int weights, Int x) { return _mm512_dpbusd_epi32(sum, weights, x); }
inline Int total_q4(BlockSum sum) { return sum; }

// 6-bit weights 0..63, two words.
inline Int dot_q6(Int sum, Int weights0, Int x0, Int weights1, Int x1) {
  return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, weights0, x0), weights1, x1);
}

// 8-bit weights as stored, q ^ 0x80.
struct Q8Weights {
  Int bytes;
};
inline Q8Weights prepare_q8(Int stored) { return {stored}; }
inline Int start_q8(int32_t offset) { return broadcast(offset); }
inline Int dot_q8(Int sum, const Q8Weights& weights, Int x) { return _mm512_dpbusd_epi32(sum, weights.bytes, x); }

// sum + 16-bit products, pairs added.
inline Int dot_pairs(Int sum, Int a, Int b) { return _mm512_dpwssd_epi32(sum, a, b); }
