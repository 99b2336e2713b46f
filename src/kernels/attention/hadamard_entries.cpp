#include "kernels/attention/hadamard_entries.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"
#include "kernels/attention/hadamard.h"
#include "tensor/half.h"

namespace witan {
namespace {

constexpr int kLanes = 16;  // words of values that follow each other

// One entry within the keys or the values of a block.
struct EntryPart {
  uint8_t* data;  // the first byte of the entry
  float* scale;
  int32_t dim;
  int bits;
  bool is_key;

  int fields() const { return 8 / bits; }

  // Bytes of an entry are in groups: of keys the four of a word, of values one each of 16 words. Fields of a group come
  // one after the other.
  int64_t bytes_per_group() const { return is_key ? 4 : kLanes; }
  int64_t num_groups() const {
    return is_key ? (int64_t{dim} + 31) / 32 * 8 / fields() : (dim + kLanes * fields() - 1) / (kLanes * fields());
  }
  uint8_t& byte(int64_t group, int64_t index) const {
    return is_key ? data[group * kKvBlockSize * 4 + index] : data[(group * (kKvBlockSize / 4) * kLanes + index) * 4];
  }
};

EntryPart key_part(const KvBlockFormat& format, std::byte* block, int slot) {
  return {.data = reinterpret_cast<uint8_t*>(block) + slot * 4,
          .scale = reinterpret_cast<float*>(block + format.key_scales_offset()) + slot,
          .dim = format.key_dim,
          .bits = kv_hadamard_bits(format.codec).key,
          .is_key = true};
}

EntryPart value_part(const KvBlockFormat& format, std::byte* block, int slot) {
  return {.data = reinterpret_cast<uint8_t*>(block) + format.key_bytes() + slot / 4 * (4 * kLanes) + slot % 4,
          .scale = reinterpret_cast<float*>(block + format.value_scales_offset()) + slot,
          .dim = format.value_dim,
          .bits = kv_hadamard_bits(format.codec).value,
          .is_key = false};
}

int32_t num_latent_groups(const KvBlockFormat& format) {
  return (format.value_dim + kKvLatentGroup - 1) / kKvLatentGroup;
}

// Of a latent, the components that share the scale `group`.
EntryPart latent_part(const KvBlockFormat& format, std::byte* block, int slot, int32_t group) {
  const int bits = kv_latent_bits(format.codec);
  return {.data = reinterpret_cast<uint8_t*>(block) + group * kKvLatentGroup * bits / 8 * kKvBlockSize + slot * 4,
          .scale = reinterpret_cast<float*>(block + format.key_scales_offset()) + group * kKvBlockSize + slot,
          .dim = std::min(kKvLatentGroup, format.value_dim - group * kKvLatentGroup),
          .bits = bits,
          .is_key = true};
}

int32_t rope_dim(const KvBlockFormat& format) { return format.key_dim - format.value_dim; }

// bf16 component d of the RoPE part of a latent's entry.
uint16_t& rope_component(const KvBlockFormat& format, std::byte* block, int slot, int32_t d) {
  return reinterpret_cast<uint16_t*>(block + format.rope_offset())[(d / 2 * kKvBlockSize + slot) * 2 + d % 2];
}

// 0 when all components are next to nothing; NaN when one is not finite, so that the whole entry reads as NaN instead
// of as plausible numbers.
float scale_for(const float* x, int32_t dim, int bits) {
  uint32_t max_bits = 0;  // magnitudes order like their bits, infinity and NaN above all
  for (int32_t i = 0; i < dim; ++i) max_bits = std::max(max_bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  const float max = std::bit_cast<float>(max_bits);
  if (!std::isfinite(max)) return std::numeric_limits<float>::quiet_NaN();
  float scale = bits == 8 ? max / 127.0f : max / 120.0f;
  if (bits == 2) {
    double squares = 0.0;
    for (int32_t i = 0; i < dim; ++i) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    scale = static_cast<float>(std::sqrt(squares / dim) * (0.9957 / 64.0));
  }
  return scale < std::numeric_limits<float>::min() ? 0.0f : scale;
}

// fields[i] = the quant of x[i] * inverse as it is stored.
template <int kBits>
void round_to_fields(const float* x, int64_t count, float inverse, bool is_key, uint8_t* fields) {
  constexpr float kNoFraction = 0x1.8p23f;  // what is added to it is rounded to an integer, ties to even
  constexpr float kMost = (1 << (kBits - 1)) - 1;
  constexpr float kLeast = kBits == 8 ? -kMost : -kMost - 1.0f;
  constexpr float kBelowMiddle = kBits == 8 ? 0.0f : 0.5f;
  const uint32_t sign = is_key ? 1u << (kBits - 1) : 0u;
  const float factor = inverse / static_cast<float>(1 << (8 - kBits));
  for (int64_t i = 0; i < count; ++i) {
    const float level = std::min(std::max(x[i] * factor - kBelowMiddle, kLeast), kMost);
    const uint32_t quant = std::bit_cast<uint32_t>(level + kNoFraction) - std::bit_cast<uint32_t>(kNoFraction);
    fields[i] = static_cast<uint8_t>((quant ^ sign) & ((1u << kBits) - 1u));
  }
}

struct Buffers {
  std::vector<float> turned;
  std::vector<uint8_t> fields;
};

// Stores the turned components [part.dim] in `buffers`, which grow to whole groups.
void store_turned(const EntryPart& part, Buffers& buffers) {
  auto& [turned, fields] = buffers;
  const float scale = scale_for(turned.data(), part.dim, part.bits);
  *part.scale = scale;
  // Behind the last component, and where nothing can be said, quants are those of 0.
  const int64_t bytes = part.bytes_per_group();
  const bool known = scale != 0.0f && !std::isnan(scale);
  if (!known) std::ranges::fill(turned, 0.0f);
  turned.resize(static_cast<size_t>(part.num_groups() * bytes * part.fields()));
  fields.resize(turned.size());
  const auto round = part.bits == 8 ? round_to_fields<8> : part.bits == 4 ? round_to_fields<4> : round_to_fields<2>;
  round(turned.data(), std::ssize(turned), known ? 1.0f / scale : 0.0f, part.is_key, fields.data());
  const uint8_t* next = fields.data();
  for (int64_t group = 0; group < part.num_groups(); ++group, next += bytes * part.fields()) {
    for (int64_t index = 0; index < bytes; ++index) {
      int packed = 0;
      for (int field = 0; field < part.fields(); ++field) packed |= next[field * bytes + index] << (field * part.bits);
      part.byte(group, index) = static_cast<uint8_t>(packed);
    }
  }
}

void store_part(const EntryPart& part, const float* x, Buffers& buffers) {
  buffers.turned.assign(x, x + part.dim);
  hadamard_rotate(buffers.turned.data(), part.dim);
  store_turned(part, buffers);
}

void load_part(const EntryPart& part, float* x) {
  const int sign = part.is_key ? 1 << (part.bits - 1) : 0;
  const int64_t bytes = part.bytes_per_group();
  for (int32_t i = 0; i < part.dim; ++i) {
    const int64_t group = i / (bytes * part.fields());
    const auto field = static_cast<int>(i / bytes % part.fields());
    const int packed = part.byte(group, i % bytes) >> (field * part.bits);
    const int top = ((packed ^ sign) << (8 - part.bits)) & 0xff;
    const int middle = part.bits == 8 ? 0 : 1 << (7 - part.bits);
    x[i] = static_cast<float>(static_cast<int8_t>(top) + middle) * *part.scale;
  }
}

void copy_part(const EntryPart& from, const EntryPart& to) {
  for (int64_t group = 0; group < from.num_groups(); ++group) {
    for (int64_t index = 0; index < from.bytes_per_group(); ++index) to.byte(group, index) = from.byte(group, index);
  }
  *to.scale = *from.scale;
}

void load_turned_latent(const KvBlockFormat& format, std::byte* block, int slot, float* key, float* value) {
  for (int32_t group = 0; group < num_latent_groups(format); ++group) {
    load_part(latent_part(format, block, slot, group), key + group * kKvLatentGroup);
  }
  for (int32_t d = 0; d < rope_dim(format); ++d) {
    key[format.value_dim + d] = bf16_to_f32(rope_component(format, block, slot, d));
  }
  if (value != nullptr) std::copy_n(key, format.value_dim, value);
}

}  // namespace

int64_t hadamard_key_bytes(const KvBlockFormat& format) {
  const int bits = format.is_latent() ? kv_latent_bits(format.codec) : kv_hadamard_bits(format.codec).key;
  return (int64_t{format.turned_key_dim()} + 31) / 32 * 32 * kKvBlockSize * bits / 8;
}

int64_t hadamard_value_bytes(const KvBlockFormat& format) {
  const int64_t components = kLanes * 8 / kv_hadamard_bits(format.codec).value;  // of a group of bytes
  return (format.value_dim + components - 1) / components * kLanes * kKvBlockSize;
}

void store_hadamard(const KvBlockFormat& format, std::byte* block, int slot, const float* key, const float* value) {
  WITAN_CHECK(!format.value_in_key, "values in keys of {}", kv_codec_name(format.codec));
  thread_local Buffers buffers;
  store_part(key_part(format, block, slot), key, buffers);
  store_part(value_part(format, block, slot), value, buffers);
}

void store_hadamard_value(const KvBlockFormat& format, std::byte* block, int slot, const float* value) {
  thread_local Buffers buffers;
  store_part(value_part(format, block, slot), value, buffers);
}

void store_latent(const KvBlockFormat& format, std::byte* block, int slot, const float* key) {
  WITAN_CHECK(format.value_in_key, "{} of keys without values", kv_codec_name(format.codec));
  thread_local std::vector<float> latent;
  thread_local Buffers buffers;
  latent.assign(key, key + format.value_dim);
  hadamard_rotate(latent.data(), format.value_dim);
  for (int32_t group = 0; group < num_latent_groups(format); ++group) {
    const EntryPart part = latent_part(format, block, slot, group);
    const float* x = latent.data() + group * kKvLatentGroup;
    buffers.turned.assign(x, x + part.dim);
    store_turned(part, buffers);
  }
  const int32_t dim = rope_dim(format);
  for (int32_t d = 0; d < dim; ++d) {
    rope_component(format, block, slot, d) = f32_to_bf16(key[format.value_dim + d]);
  }
  if (dim % 2 != 0) rope_component(format, block, slot, dim) = 0;
}

void load_turned(const KvBlockFormat& format, const std::byte* block, int slot, float* key, float* value) {
  auto* bytes = const_cast<std::byte*>(block);  // EntryPart serves both directions; nothing is written here
  if (format.is_latent()) return load_turned_latent(format, bytes, slot, key, value);
  if (key != nullptr) load_part(key_part(format, bytes, slot), key);
  if (value != nullptr) load_part(value_part(format, bytes, slot), value);
}

void copy_turned(const KvBlockFormat& format, const std::byte* from, int from_slot, std::byte* to, int to_slot) {
  auto* bytes = const_cast<std::byte*>(from);
  if (!format.is_latent()) {
    copy_part(key_part(format, bytes, from_slot), key_part(format, to, to_slot));
    copy_part(value_part(format, bytes, from_slot), value_part(format, to, to_slot));
    return;
  }
  for (int32_t group = 0; group < num_latent_groups(format); ++group) {
    copy_part(latent_part(format, bytes, from_slot, group), latent_part(format, to, to_slot, group));
  }
  const int32_t padded_dim = (rope_dim(format) + 1) / 2 * 2;
  for (int32_t d = 0; d < padded_dim; ++d) {
    rope_component(format, to, to_slot, d) = rope_component(format, bytes, from_slot, d);
  }
}

}  // namespace witan
