#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul_variants.h"
#include "tensor/half.h"

namespace witan {
namespace {

// Stores x [n] as int8 and returns the scale max|x| / 127. A block whose scale is below the normal floats (1 / scale
// could overflow) counts as zeros; one with an infinity or NaN gets the scale NaN, so that the fault stays visible.
float quantize(const float* x, int64_t n, int8_t* q) {
  uint32_t max_bits = 0;  // of |x|, which order like integers, NaN above all
  for (int64_t i = 0; i < n; ++i) max_bits = std::max(max_bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  std::fill(q, q + n, int8_t{0});
  if (max_bits >= 0x7f800000u) return std::numeric_limits<float>::quiet_NaN();
  const float scale = std::bit_cast<float>(max_bits) / 127.0f;
  if (scale < std::numeric_limits<float>::min()) return 0.0f;
  const float inverse = 1.0f / scale;
  for (int64_t i = 0; i < n; ++i) q[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
  return scale;
}

int32_t sum(const int8_t* q, int64_t n) {
  int32_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += q[i];
  return total;
}

}  // namespace

void store_bf16_reference(const float* x, int64_t cols, std::byte* out) {
  auto* stored = reinterpret_cast<uint16_t*>(out);
  for (int64_t i = 0; i < cols; ++i) stored[i] = f32_to_bf16(x[i]);
  std::fill(stored + cols, stored + (cols + 31) / 32 * 32, uint16_t{0});
}

void store_int8_per_32_reference(const float* x, int64_t cols, std::byte* out) {
  auto* groups = reinterpret_cast<Int8Per32Group*>(out);
  for (int64_t block = 0; block < (cols + 255) / 256 * kQ8GroupBlocks; ++block) {
    Int8Per32Group& group = groups[block / kQ8GroupBlocks];
    const int64_t b = block % kQ8GroupBlocks;
    int8_t* q = group.q + b * kQ8BlockColumns;
    if (block * kQ8BlockColumns < cols) {
      group.scale[b] = quantize(x + block * kQ8BlockColumns, kQ8BlockColumns, q);
    } else {
      group.scale[b] = 0.0f;
      std::fill(q, q + kQ8BlockColumns, int8_t{0});
    }
    group.half_offset[2 * b] = -128 * sum(q, 16);
    group.half_offset[2 * b + 1] = -128 * sum(q + 16, 16);
    group.offset[b] = group.half_offset[2 * b] + group.half_offset[2 * b + 1];
  }
}

void store_int8_per_256_reference(const float* x, int64_t cols, std::byte* out) {
  auto* blocks = reinterpret_cast<Int8Per256Block*>(out);
  for (int64_t b = 0; b < cols / kKQuantColumns; ++b) {
    Int8Per256Block& block = blocks[b];
    block = {};
    block.scale = quantize(x + b * kKQuantColumns, kKQuantColumns, block.q);
    for (int64_t i = 0; i < 16; ++i) block.offset[i] = -32 * sum(block.q + 16 * i, 16);
    for (int64_t j = 0; j < 8; ++j) block.sum[j] = static_cast<int16_t>(sum(block.q + 32 * j, 32));
  }
}

}  // namespace witan
