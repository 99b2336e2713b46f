#include <immintrin.h>

#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul_variants.h"

namespace witan {
namespace {

// Four vectors are 32 elements.
struct Floats32 {
  __m256 v[4];
};

inline Floats32 load32(const float* x) {
  return {{_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8), _mm256_loadu_ps(x + 16), _mm256_loadu_ps(x + 24)}};
}

// Elementwise max of the bits of |x|; they order like integers, NaN above all.
inline __m256i max_magnitude(const Floats32& x, __m256i so_far) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  for (const __m256 v : x.v) so_far = _mm256_max_epi32(so_far, _mm256_and_si256(_mm256_castps_si256(v), mask));
  return so_far;
}

inline int32_t horizontal_max(__m256i v) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return _mm_cvtsi128_si32(m);
}

// The scale of a block and what its elements are multiplied by; as the reference's quantize().
struct Scale {
  float scale;
  float inverse;  // 0 where all quants are 0
};

inline Scale scale_of(__m256i max_bits) {
  constexpr float kSmallestNormal = 0x1p-126f;
  const int32_t bits = horizontal_max(max_bits);
  if (bits >= 0x7f800000) return {__builtin_nanf(""), 0.0f};
  const float scale = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits))) / 127.0f;
  if (scale < kSmallestNormal) return {0.0f, 0.0f};
  return {scale, 1.0f / scale};
}

// Rounds 32 elements to int8. An inverse of 0 gives zeros even for infinities, whose product would be NaN.
inline __m256i quantize32(const Floats32& x, float inverse) {
  if (inverse == 0.0f) return _mm256_setzero_si256();
  const __m256 factor = _mm256_set1_ps(inverse);
  const __m256i i0 = _mm256_cvtps_epi32(_mm256_mul_ps(x.v[0], factor));
  const __m256i i1 = _mm256_cvtps_epi32(_mm256_mul_ps(x.v[1], factor));
  const __m256i i2 = _mm256_cvtps_epi32(_mm256_mul_ps(x.v[2], factor));
  const __m256i i3 = _mm256_cvtps_epi32(_mm256_mul_ps(x.v[3], factor));
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(i0, i1), _mm256_packs_epi32(i2, i3));
  // The packs work within 128-bit halves; put the 4-byte words back in order.
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// Sums of 16 signed bytes: elements 0..15 and 16..31.
struct PairOfSums {
  int32_t first;
  int32_t second;
};

inline PairOfSums sums_of_16(__m256i q) {
  // sad adds unsigned bytes in groups of 8: shift by 128 and take 16 * 128 off again.
  const __m256i sad = _mm256_sad_epu8(_mm256_xor_si256(q, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
  const __m256i both = _mm256_add_epi64(sad, _mm256_shuffle_epi32(sad, 0x4e));
  return {_mm_cvtsi128_si32(_mm256_castsi256_si128(both)) - 16 * 128,
          _mm_cvtsi128_si32(_mm256_extracti128_si256(both, 1)) - 16 * 128};
}

// Round to nearest even as f32_to_bf16 does; the result in the low 16 bits of each lane.
inline __m256i round_to_bf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i top = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet_nan = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, quiet_nan, is_nan);
}

inline void store16_bf16(const float* x, uint16_t* out) {
  const __m256i packed = _mm256_packus_epi32(round_to_bf16(_mm256_loadu_ps(x)), round_to_bf16(_mm256_loadu_ps(x + 8)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute4x64_epi64(packed, 0xd8));
}

}  // namespace

void store_bf16_avx2(const float* x, int64_t cols, std::byte* out) {
  auto* stored = reinterpret_cast<uint16_t*>(out);
  int64_t i = 0;
  for (; i + 16 <= cols; i += 16) store16_bf16(x + i, stored + i);
  const int64_t padded = (cols + 31) / 32 * 32;
  for (; i < padded; i += 16) {
    alignas(32) float tail[16] = {};
    for (int64_t j = i; j < cols; ++j) tail[j - i] = x[j];
    store16_bf16(tail, stored + i);
  }
}

void store_int8_per_32_avx2(const float* x, int64_t cols, std::byte* out) {
  auto* groups = reinterpret_cast<Int8Per32Group*>(out);
  for (int64_t block = 0; block < (cols + 255) / 256 * kQ8GroupBlocks; ++block) {
    Int8Per32Group& group = groups[block / kQ8GroupBlocks];
    const int64_t b = block % kQ8GroupBlocks;
    Scale scale = {0.0f, 0.0f};
    __m256i q = _mm256_setzero_si256();
    if (block * kQ8BlockColumns < cols) {
      const Floats32 v = load32(x + block * kQ8BlockColumns);
      scale = scale_of(max_magnitude(v, _mm256_setzero_si256()));
      q = quantize32(v, scale.inverse);
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(group.q + b * kQ8BlockColumns), q);
    const PairOfSums sums = sums_of_16(q);
    group.half_offset[2 * b] = -128 * sums.first;
    group.half_offset[2 * b + 1] = -128 * sums.second;
    group.offset[b] = -128 * (sums.first + sums.second);
    group.scale[b] = scale.scale;
  }
}

void store_int8_per_256_avx2(const float* x, int64_t cols, std::byte* out) {
  auto* blocks = reinterpret_cast<Int8Per256Block*>(out);
  for (int64_t c = 0; c < cols / kKQuantColumns; ++c) {
    Int8Per256Block& block = blocks[c];
    const float* from = x + c * kKQuantColumns;
    __m256i max_bits = _mm256_setzero_si256();
    for (int64_t j = 0; j < 8; ++j) max_bits = max_magnitude(load32(from + 32 * j), max_bits);
    const Scale scale = scale_of(max_bits);
    for (int64_t j = 0; j < 8; ++j) {
      const __m256i q = quantize32(load32(from + 32 * j), scale.inverse);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(block.q + 32 * j), q);
      const PairOfSums sums = sums_of_16(q);
      block.offset[2 * j] = -32 * sums.first;
      block.offset[2 * j + 1] = -32 * sums.second;
      block.sum[j] = static_cast<int16_t>(sums.first + sums.second);
    }
    block.scale = scale.scale;
    __builtin_memset(block.unused, 0, sizeof(block.unused));
  }
}

}  // namespace witan
