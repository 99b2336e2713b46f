#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/isa.h"

namespace witan {

// A KV block: kKvBlockSize entries of one kv head of one layer, keys then values, in one codec.
//   keys    [key_dim][32] elements   (lanes = entries: a query component meets 32 keys at once)
//   values  [32][value_dim] elements (absent when value_in_key)
//
// kBF16 interleaves the two elements that an instruction multiplies and adds at once, as 32-bit words:
//   keys    [ceil(key_dim/2)][32] words of components 2i, 2i + 1; behind an odd key_dim comes a component of 0
//   values  [ceil(value_dim/16)][16 pairs of entries][16] words of entries 2i, 2i + 1
// kQ8 stores 8-bit quants, four to a word, as the integer instructions take them: keys as unsigned quant + 128, values
// as signed quants.
//   keys    [ceil(key_dim/4)][32] words of components 4i .. 4i + 3
//   values  [ceil(value_dim/16)][8 quads of entries][16] words of entries 4i .. 4i + 3
// After the quants of each part come float32 scales [ceil(dim/32)][32 entries]; a scale covers 32 consecutive
// components of one entry: scale = max|x| / 127, x = quant * scale. Components behind key_dim (kQ8) and value_dim are
// never read as such and may be anything.
//
// With value_in_key (MLA) the value of an entry is the first value_dim components of its key.
inline constexpr int kKvBlockSize = 32;
inline constexpr int32_t kKvQ8Group = 32;  // components that share a scale in kQ8

enum class KvCodec : uint8_t { kF32, kF16, kBF16, kQ8 };

std::string_view kv_codec_name(KvCodec codec);  // "f32", "f16", "bf16", "q8_0"

struct KvBlockFormat {
  KvCodec codec = KvCodec::kF32;
  int32_t key_dim = 0;
  int32_t value_dim = 0;
  bool value_in_key = false;

  int64_t key_bytes() const;  // of the keys of one block, a multiple of 64
  // kQ8: where in a block the scales lie.
  int64_t key_scales_offset() const;
  int64_t value_scales_offset() const;
  int64_t block_bytes() const;  // keys and values, a multiple of 64
};

// Writes entry `slot` (0..31) of `block`: key [key_dim], value [value_dim] (ignored when value_in_key), float32.
void kv_store(const KvBlockFormat& format, std::byte* block, int slot, const float* key, const float* value);

// Entries side by side: key [key_dim] i at keys + i * key_stride, value [value_dim] at values + i * value_stride.
struct KvRows {
  const float* keys;
  int64_t key_stride;
  const float* values;  // ignored when value_in_key
  int64_t value_stride;
};

// As kv_store of rows [0, count) to slots [0, count), for a whole block: the other entries become zeros. But for kBF16
// `isa` may take subnormal numbers for 0, as its products do.
void kv_store_block(Isa isa, const KvBlockFormat& format, std::byte* block, int count, const KvRows& rows);

// Reads it back, as the attention kernels see it; value may be nullptr where only the key is wanted.
void kv_load(const KvBlockFormat& format, const std::byte* block, int slot, float* key, float* value);

// Copies an entry, bit for bit, to a slot of the same or another block.
void kv_copy(const KvBlockFormat& format, const std::byte* from, int from_slot, std::byte* to, int to_slot);

}  // namespace witan
