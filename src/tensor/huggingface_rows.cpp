#include "tensor/huggingface_rows.h"

#include <algorithm>
#include <cstring>

#include "tensor/quant_type.h"

namespace witan {

void make_mxfp4_row(const std::byte* blocks, const std::byte* scales, int64_t cols, std::byte* row) {
  const QuantType& type = quant_type(DType::kMXFP4);
  const int half_block = type.block_size / 2;
  for (int64_t i = 0; i < cols / type.block_size; ++i, blocks += half_block, row += type.block_bytes) {
    row[0] = scales[i];
    const auto element = [&](int k) { return blocks[k / 2] >> (k % 2 * 4) & std::byte{15}; };
    for (int j = 0; j < half_block; ++j) row[1 + j] = element(j) | element(j + half_block) << 4;
  }
}

void make_f8_e4m3_row(const std::byte* codes, const std::byte* scales, int64_t cols, std::byte* row) {
  constexpr size_t kScaleBytes = sizeof(float);
  const QuantType& type = quant_type(DType::kF8_E4M3);
  for (int64_t begin = 0; begin < cols; begin += type.block_size) {
    const auto count = static_cast<size_t>(std::min<int64_t>(type.block_size, cols - begin));
    std::memcpy(row, scales + begin / type.block_size * static_cast<int64_t>(kScaleBytes), kScaleBytes);
    std::memcpy(row + kScaleBytes, codes + begin, count);
    row += kScaleBytes + count;
  }
}

}  // namespace witan
