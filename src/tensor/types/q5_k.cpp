#include "tensor/random_bits.h"
#include "tensor/types/block.h"
#include "tensor/types/k_line_fit.h"
#include "tensor/types/types.h"

namespace witan {
namespace {

// A block of lines (k_line_fit.h): [0, 16) header, [16, 48) fifth bits of q, [48, 176) low four bits of q. Byte 32 * p
// + i of the low bits holds value i of sub-block 2p in its low four bits and of sub-block 2p + 1 in its high four; bit
// j of byte i of the fifth bits belongs to value i of sub-block j.
constexpr int kBlockBytes = 176;
constexpr int kHigh = kLineHeaderBytes;
constexpr int kQuants = kHigh + kLineSubBlockSize;
constexpr LineSearch kSearch = {.max_quant = 31, .first_step = -0.5f, .num_attempts = 16};

void decode(const std::byte* row, float* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; i += kLineBlockSize, row += kBlockBytes) {
    const LineHeader header = read_line_header(row);
    for (int j = 0; j < kLineSubBlocks; ++j, out += kLineSubBlockSize) {
      const std::byte* quants = row + kQuants + j / 2 * kLineSubBlockSize;
      for (int k = 0; k < kLineSubBlockSize; ++k) {
        const int high = std::to_integer<int>(row[kHigh + k]) >> j & 1;
        const int quant = (std::to_integer<int>(quants[k]) >> (j % 2 * 4) & 15) | high << 4;
        out[k] = header.scale[j] * static_cast<float>(quant) - header.minimum[j];
      }
    }
  }
}

void encode(const float* row, std::byte* out, int64_t num_elements) {
  std::array<uint8_t, kLineBlockSize> quants;
  for (int64_t i = 0; i < num_elements; i += kLineBlockSize, row += kLineBlockSize, out += kBlockBytes) {
    std::memset(out, 0, kBlockBytes);
    fit_lines(kSearch, row, out, quants.data());
    for (int k = 0; k < kLineBlockSize; ++k) {
      const int j = k / kLineSubBlockSize;
      const int in_sub_block = k % kLineSubBlockSize;
      out[kQuants + j / 2 * kLineSubBlockSize + in_sub_block] |=
          static_cast<std::byte>((quants[k] & 15) << (j % 2 * 4));
      out[kHigh + in_sub_block] |= static_cast<std::byte>(quants[k] >> 4 << j);
    }
  }
}

double dot(const std::byte* row, const float* x, int64_t num_elements) {
  return dot_decoded<kLineBlockSize, kBlockBytes>(decode, row, x, num_elements);
}

void random(uint64_t seed, float stddev, std::byte* out, int64_t num_elements) {
  const RandomLines lines(kSearch.max_quant, stddev);
  RandomBits bits(seed);
  for (int64_t i = 0; i < num_elements; i += kLineBlockSize, out += kBlockBytes) {
    const uint64_t scale_bits = bits.next();
    const uint64_t shift_bits = bits.next();
    lines.write_header(scale_bits, shift_bits, out);
    bits.fill(out + kLineHeaderBytes, kBlockBytes - kLineHeaderBytes);
  }
}

}  // namespace

QuantType q5_k_type() {
  return {.dtype = DType::kQ5_K,
          .name = "Q5_K",
          .safetensors = "",
          .ggml_id = 13,
          .block_size = kLineBlockSize,
          .block_bytes = kBlockBytes,
          .decode = decode,
          .encode = encode,
          .dot = dot,
          .random = random};
}

}  // namespace witan
