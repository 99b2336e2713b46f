#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
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
// The kHadamard codecs store keys and values turned by a Hadamard matrix (hadamard.h), which spreads outliers over all
// components, with a scale per entry of the keys and one of the values. Queries are turned likewise, and weighted sums
// back, so that nobody else sees it. A quant of 4 or 2 bits is the upper ones of an 8-bit quant q whose other bits are
// 10..0: 4 bits are 16 levels of q from -120 to 120, 2 bits are -96, -32, 32 and 96, and a byte is `fields` quants,
// the first in its lowest bits. A component is q * scale; scale = max|x| / 127 for 8 bits, max|x| / 120 for 4, and
// for 2 what is best for normally distributed x, 0.9957 * rms(x) / 64 (Max, Quantizing for minimum distortion, 1960).
//   keys    [ceil(key_dim/32) * 8 / fields][32 entries] words i; byte j has components 4 * fields * i + 4f + j,
//           as q + 128
//   scales  [32 entries] float32
//   values  [ceil(value_dim/(16 * fields))][8][16 lanes] words i; byte j of the n-th is of entry 4n + j, and has its
//           components 16 * fields * i + 16f + lane, as signed q
//   scales  [32 entries] float32
//
// With value_in_key (MLA) the value of an entry is the first value_dim components of its key, its latent; behind it
// comes what RoPE turned. Not for kHadamard and kKivi codecs.
//
// The kLatent codecs are for value_in_key alone. The latent is turned by a Hadamard matrix and stored as the kHadamard
// codecs store keys, but with a scale per 128 components: of 512 in 4 bits, normally distributed, that takes a quarter
// from the squared error of one scale per entry (18.0 dB below the latent, then 19.2), for 3 % more bytes. The
// components behind it are few, and their magnitudes have nothing to do with those of the latent: they stay as they are
// in kBF16. Values are read turned too, so that weighted sums are turned back.
//   keys    [ceil(value_dim/32) * 8 / fields][32 entries] words of the latent, as in the kHadamard codecs
//   scales  [ceil(value_dim/128)][32 entries] float32
//   RoPE    [ceil((key_dim - value_dim)/2)][32 entries] words of two bf16 components; behind an odd number comes a 0
//
// The kKivi codecs (Liu et al., KIVI, arXiv 2402.02750, section 3) round a group of components to `levels` = 2^bits - 1
// steps above its least one: x = least + quant * step, quant = round((x - least) / step), 0..levels, step = (max - min)
// / levels, where least is min, and both are rounded to float16 first. A group is one component of all 32 keys of a
// block, and 32 consecutive components of one value. Hence a block is written as a whole, by kv_store_block alone. A
// word has 32 / bits quants, the first in its lowest bits.
//   keys    [ceil(key_dim * bits / 32)][32 entries] words of consecutive components
//   ranges  [key_dim] words: step in the lower half, least in the upper
//   values  [ceil(value_dim/16)][bits][16 components] words of consecutive entries
//   ranges  [ceil(value_dim/32)][32 entries] words, as of the keys
inline constexpr int kKvBlockSize = 32;
inline constexpr int32_t kKvQ8Group = 32;         // components that share a scale in kQ8
inline constexpr int32_t kKvLatentGroup = 128;    // in kLatent codecs
inline constexpr int32_t kKvKiviValueGroup = 32;  // components of a value that share a range in kKivi codecs

enum class KvCodec : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8,
  kHadamard8,
  kHadamard8Value4,  // keys of 8 bits, values of 4
  kHadamard8Value2,
  kHadamard4Value8,
  kHadamard4,
  kHadamard4Value2,
  kHadamard2Value8,
  kHadamard2Value4,
  kHadamard2,
  kLatent8,
  kLatent4,
  kKivi4,
  kKivi2
};
inline constexpr KvCodec kKvCodecs[] = {KvCodec::kF32,
                                        KvCodec::kF16,
                                        KvCodec::kBF16,
                                        KvCodec::kQ8,
                                        KvCodec::kHadamard8,
                                        KvCodec::kHadamard8Value4,
                                        KvCodec::kHadamard8Value2,
                                        KvCodec::kHadamard4Value8,
                                        KvCodec::kHadamard4,
                                        KvCodec::kHadamard4Value2,
                                        KvCodec::kHadamard2Value8,
                                        KvCodec::kHadamard2Value4,
                                        KvCodec::kHadamard2,
                                        KvCodec::kLatent8,
                                        KvCodec::kLatent4,
                                        KvCodec::kKivi4,
                                        KvCodec::kKivi2};

// "f32", "f16", "bf16", "q8_0", "int8-hadamard", "k8v4-hadamard" and the like where keys and values differ,
// "int4-hadamard", "int2-hadamard", "int8-latent", "int4-latent", "int4-kivi", "int2-kivi".
std::string_view kv_codec_name(KvCodec codec);

// The codec whose keys and values are of these types: "bf16" and "bf16", "int8-hadamard" and "int4-hadamard" (also said
// "int4" of values). None where there is none.
std::optional<KvCodec> kv_codec_of(std::string_view key_type, std::string_view value_type);

// Bits of the quants of the kHadamard codecs; 0 for all others.
struct KvHadamardBits {
  int key = 0;
  int value = 0;
};
KvHadamardBits kv_hadamard_bits(KvCodec codec);
// Likewise of the kLatent and of the kKivi codecs.
int kv_latent_bits(KvCodec codec);
int kv_kivi_bits(KvCodec codec);

// Blocks are written by kv_store_block of 32 entries alone: entries can neither be stored nor copied one by one.
bool kv_codec_is_blockwise(KvCodec codec);

// Whether a codec is for latents (value_in_key), or else for entries with values of their own.
bool kv_codec_fits(KvCodec codec, bool value_in_key);

// Components of keys that share a word or a scale, and are turned together: a key of a multiple of them wastes none.
int32_t kv_key_unit(KvCodec codec);

struct KvBlockFormat {
  KvCodec codec = KvCodec::kF32;
  int32_t key_dim = 0;
  int32_t value_dim = 0;
  bool value_in_key = false;

  bool is_hadamard() const { return kv_hadamard_bits(codec).key != 0; }
  bool is_latent() const { return kv_latent_bits(codec) != 0; }
  bool is_kivi() const { return kv_kivi_bits(codec) != 0; }
  // The first components of a key that are stored turned by a Hadamard matrix; then values are turned as well.
  int32_t turned_key_dim() const { return is_hadamard() ? key_dim : is_latent() ? value_dim : 0; }
  int64_t key_bytes() const;  // of the keys of one block, a multiple of 64
  // Where in a block the scales or ranges lie, of codecs that have them, and the RoPE components of kLatent codecs.
  int64_t key_scales_offset() const;
  int64_t rope_offset() const;
  int64_t value_scales_offset() const;
  int64_t block_bytes() const;  // keys and values, a multiple of 64

  bool operator==(const KvBlockFormat&) const = default;
};

// Writes entry `slot` (0..31) of `block`: key [key_dim], value [value_dim] (ignored when value_in_key), float32.
// Blockwise codecs have neither this nor kv_store_value nor kv_copy.
void kv_store(const KvBlockFormat& format, std::byte* block, int slot, const float* key, const float* value);

// Entries side by side: key [key_dim] i at keys + i * key_stride, value [value_dim] at values + i * value_stride.
struct KvRows {
  const float* keys;
  int64_t key_stride;
  const float* values;  // ignored when value_in_key
  int64_t value_stride;
};

// As kv_store of rows [0, count) to slots [0, count), for a whole block: the other entries become zeros. But for kBF16
// `isa` may take subnormal numbers for 0, as its products do. `count` is 32 for codecs that are blockwise.
void kv_store_block(Isa isa, const KvBlockFormat& format, std::byte* block, int count, const KvRows& rows);

// Reads it back, as the attention kernels see it; value may be nullptr where only the key is wanted.
void kv_load(const KvBlockFormat& format, const std::byte* block, int slot, float* key, float* value);

// The keys of the first `count` entries at once, in the same bits: that of entry i goes to keys + i * stride.
void kv_load_keys(Isa isa, const KvBlockFormat& format, const std::byte* block, int count, float* keys, int64_t stride);

// Writes or reads the value alone, where entries have one beside their key (!value_in_key): the key stays as it is.
void kv_store_value(const KvBlockFormat& format, std::byte* block, int slot, const float* value);
void kv_load_value(const KvBlockFormat& format, const std::byte* block, int slot, float* value);

// Copies an entry, bit for bit, to a slot of the same or another block.
void kv_copy(const KvBlockFormat& format, const std::byte* from, int from_slot, std::byte* to, int to_slot);

}  // namespace witan
