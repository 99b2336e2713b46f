#include "kernels/attention/kv_block.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"
#include "kernels/attention/attention_variants.h"
#include "kernels/attention/hadamard.h"
#include "kernels/attention/hadamard_entries.h"
#include "kernels/attention/kivi_entries.h"
#include "kernels/isa_table.h"
#include "tensor/half.h"

namespace witan {
namespace {

// The reference has kv_load.
constexpr IsaTable<LoadKeysFunction> kLoadKeys{{nullptr, kv_load_keys_avx2, kv_load_keys_avx512}};

int64_t num_groups(int32_t dim) { return (dim + kKvQ8Group - 1) / kKvQ8Group; }

int64_t round_up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

// Components of keys that lie together in a word, and entries of values.
int32_t per_word(KvCodec codec) { return codec == KvCodec::kBF16 ? 2 : codec == KvCodec::kQ8 ? 4 : 1; }
// Words of components that follow each other in values, if these have several entries.
constexpr int32_t kValueRun = 16;

// Of the keys or the values of one block, their scales and the padding to whole lines left out; components come in
// multiples of `run`.
int64_t element_bytes(KvCodec codec, int64_t dim, int32_t run) {
  const int64_t num_elements = kKvBlockSize * round_up(dim, run);
  switch (codec) {
    case KvCodec::kF32:
      return num_elements * 4;
    case KvCodec::kF16:
    case KvCodec::kBF16:
      return num_elements * 2;
    case KvCodec::kQ8:
      return num_elements;
    default:
      break;
  }
  WITAN_CHECK(false, "KV codec {}", static_cast<int>(codec));
}

int64_t key_element_bytes(const KvBlockFormat& format) {
  if (format.is_hadamard() || format.is_latent()) return hadamard_key_bytes(format);
  if (format.is_kivi()) return kivi_key_bytes(format);
  return element_bytes(format.codec, format.key_dim, per_word(format.codec));
}

int64_t value_element_bytes(const KvBlockFormat& format) {
  if (format.is_hadamard()) return hadamard_value_bytes(format);
  if (format.is_kivi()) return kivi_value_bytes(format);
  if (format.is_latent()) return 0;
  return element_bytes(format.codec, format.value_dim, per_word(format.codec) == 1 ? 1 : kValueRun);
}

// Of `dim` components of a block's entries. The ranges of kKivi values are as large as scales.
int64_t scale_bytes(const KvBlockFormat& format, int64_t dim) {
  const int64_t group = format.codec == KvCodec::kQ8 ? kKvQ8Group
                        : format.is_hadamard()       ? dim
                        : format.is_latent()         ? kKvLatentGroup
                        : format.is_kivi()           ? kKvKiviValueGroup
                                                     : 0;
  const int64_t num_scales = group == 0 ? 0 : (dim + group - 1) / group;
  return kKvBlockSize * num_scales * static_cast<int64_t>(sizeof(float));
}

int64_t key_scale_bytes(const KvBlockFormat& format) {
  if (format.is_kivi()) return format.key_dim * static_cast<int64_t>(sizeof(uint32_t));
  return scale_bytes(format, format.is_latent() ? format.value_dim : format.key_dim);
}

int64_t rope_bytes(const KvBlockFormat& format) {
  if (!format.is_latent()) return 0;
  return (format.key_dim - format.value_dim + 1) / 2 * kKvBlockSize * static_cast<int64_t>(sizeof(uint32_t));
}

// One entry within the keys or the values of a block: where its components, and its scales if any, lie.
struct EntryPart {
  std::byte* data;
  int32_t dim;
  int64_t first;   // element of component 0
  int64_t stride;  // elements from one component to the next, within a run of 2^run_bits components
  float* scales;   // kQ8: of the first group
  uint8_t flip;    // kQ8: bits of a quant that are stored the other way round
  int run_bits = 0;
  int64_t run_stride = stride;  // elements from one run to the next

  int64_t index(int64_t component) const {
    const int64_t run = component >> run_bits;
    return first + run * run_stride + (component - (run << run_bits)) * stride;
  }
  template <typename Element>
  Element& element(int64_t component) const {
    return reinterpret_cast<Element*>(data)[index(component)];
  }
  float& scale(int64_t group) const { return scales[group * kKvBlockSize]; }
};

EntryPart key_part(const KvBlockFormat& format, std::byte* block, int slot) {
  EntryPart part{.data = block,
                 .dim = format.key_dim,
                 .first = slot,
                 .stride = kKvBlockSize,
                 .scales = reinterpret_cast<float*>(block + format.key_scales_offset()) + slot,
                 .flip = 0x80};
  if (const int32_t run = per_word(format.codec); run > 1) {
    part.first = int64_t{run} * slot;
    part.stride = 1;
    part.run_bits = std::countr_zero(static_cast<uint32_t>(run));
    part.run_stride = int64_t{run} * kKvBlockSize;
  }
  return part;
}

EntryPart value_part(const KvBlockFormat& format, std::byte* block, int slot) {
  EntryPart part{.data = block + format.key_bytes(),
                 .dim = format.value_dim,
                 .first = int64_t{slot} * format.value_dim,
                 .stride = 1,
                 .scales = reinterpret_cast<float*>(block + format.value_scales_offset()) + slot,
                 .flip = 0};
  if (const int32_t entries = per_word(format.codec); entries > 1) {
    part.first = slot / entries * (entries * kValueRun) + slot % entries;
    part.stride = entries;
    part.run_bits = std::countr_zero(static_cast<uint32_t>(kValueRun));
    part.run_stride = int64_t{kValueRun} * kKvBlockSize;
  }
  return part;
}

// Rounds to the nearest integer, ties to even; |x| < 2^22.
int8_t round_to_int8(float x) {
  constexpr float kNoFraction = 0x1.8p23f;
  return static_cast<int8_t>(std::bit_cast<int32_t>(x + kNoFraction) - std::bit_cast<int32_t>(kNoFraction));
}

// The scale of a group of components: 0 when all its quants are 0; NaN when a component is not finite, so that the
// whole group reads as NaN instead of as plausible numbers.
float q8_scale(const float* x, int32_t count) {
  uint32_t max_bits = 0;  // magnitudes order like their bits, infinity and NaN above all
  for (int32_t i = 0; i < count; ++i) max_bits = std::max(max_bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  if (max_bits >= 0x7f800000u) return std::numeric_limits<float>::quiet_NaN();
  const float scale = std::bit_cast<float>(max_bits) / 127.0f;
  return scale < std::numeric_limits<float>::min() ? 0.0f : scale;
}

void store_q8(const EntryPart& part, const float* x) {
  for (int32_t begin = 0; begin < part.dim; begin += kKvQ8Group) {
    const int32_t end = std::min(begin + kKvQ8Group, part.dim);
    const float scale = q8_scale(x + begin, end - begin);
    part.scale(begin / kKvQ8Group) = scale;
    const bool all_zero = scale == 0.0f || std::isnan(scale);
    const float inverse = all_zero ? 0.0f : 1.0f / scale;
    for (int32_t i = begin; i < end; ++i) {
      const int8_t quant = all_zero ? int8_t{0} : round_to_int8(x[i] * inverse);
      part.element<uint8_t>(i) = static_cast<uint8_t>(quant) ^ part.flip;
    }
  }
}

void store_part(KvCodec codec, const EntryPart& part, const float* x) {
  switch (codec) {
    case KvCodec::kF32:
      for (int32_t i = 0; i < part.dim; ++i) part.element<float>(i) = x[i];
      return;
    case KvCodec::kF16:
      for (int32_t i = 0; i < part.dim; ++i) part.element<uint16_t>(i) = f32_to_f16(x[i]);
      return;
    case KvCodec::kBF16:
      for (int32_t i = 0; i < part.dim; ++i) part.element<uint16_t>(i) = f32_to_bf16(x[i]);
      return;
    case KvCodec::kQ8:
      store_q8(part, x);
      return;
    default:
      WITAN_CHECK(false, "KV codec {}", static_cast<int>(codec));
  }
}

void load_part(KvCodec codec, const EntryPart& part, float* x) {
  for (int32_t i = 0; i < part.dim; ++i) {
    switch (codec) {
      case KvCodec::kF32:
        x[i] = part.element<float>(i);
        break;
      case KvCodec::kF16:
        x[i] = f16_to_f32(part.element<uint16_t>(i));
        break;
      case KvCodec::kBF16:
        x[i] = bf16_to_f32(part.element<uint16_t>(i));
        break;
      case KvCodec::kQ8:
        x[i] =
            static_cast<float>(static_cast<int8_t>(part.element<uint8_t>(i) ^ part.flip)) * part.scale(i / kKvQ8Group);
        break;
      default:
        WITAN_CHECK(false, "KV codec {}", static_cast<int>(codec));
    }
  }
}

// Behind an odd number of components comes one that meets a 0 in queries too.
void complete_pair(KvCodec codec, const EntryPart& keys) {
  if (codec == KvCodec::kBF16 && keys.dim % 2 != 0) keys.element<uint16_t>(keys.dim) = 0;
}

template <typename Element>
void copy_elements(const EntryPart& from, const EntryPart& to) {
  for (int32_t i = 0; i < from.dim; ++i) to.element<Element>(i) = from.element<Element>(i);
}

void copy_part(KvCodec codec, const EntryPart& from, const EntryPart& to) {
  switch (codec) {
    case KvCodec::kF32:
      copy_elements<float>(from, to);
      return;
    case KvCodec::kF16:
    case KvCodec::kBF16:
      copy_elements<uint16_t>(from, to);
      return;
    case KvCodec::kQ8:
      copy_elements<uint8_t>(from, to);
      for (int64_t group = 0; group < num_groups(from.dim); ++group) to.scale(group) = from.scale(group);
      return;
    default:
      WITAN_CHECK(false, "KV codec {}", static_cast<int>(codec));
  }
}

void check_single_entries(const KvBlockFormat& format) {
  WITAN_CHECK(!kv_codec_is_blockwise(format.codec), "a single entry of a block of {}", kv_codec_name(format.codec));
}

void store_f32_block(const KvBlockFormat& format, std::byte* block, int count, const KvRows& rows) {
  auto* keys = reinterpret_cast<float*>(block);
  for (int32_t d = 0; d < format.key_dim; ++d, keys += kKvBlockSize) {
    for (int slot = 0; slot < count; ++slot) keys[slot] = rows.keys[slot * rows.key_stride + d];
    std::fill(keys + count, keys + kKvBlockSize, 0.0f);
  }
  auto* values = reinterpret_cast<float*>(block + format.key_bytes());
  for (int slot = 0; slot < count; ++slot, values += format.value_dim) {
    std::copy_n(rows.values + slot * rows.value_stride, format.value_dim, values);
  }
  std::fill_n(values, (kKvBlockSize - count) * format.value_dim, 0.0f);
}

}  // namespace

std::string_view kv_codec_name(KvCodec codec) {
  switch (codec) {
    case KvCodec::kF32:
      return "f32";
    case KvCodec::kF16:
      return "f16";
    case KvCodec::kBF16:
      return "bf16";
    case KvCodec::kQ8:
      return "q8_0";
    case KvCodec::kHadamard8:
      return "int8-hadamard";
    case KvCodec::kHadamard8Value4:
      return "k8v4-hadamard";
    case KvCodec::kHadamard8Value2:
      return "k8v2-hadamard";
    case KvCodec::kHadamard4Value8:
      return "k4v8-hadamard";
    case KvCodec::kHadamard4:
      return "int4-hadamard";
    case KvCodec::kHadamard4Value2:
      return "k4v2-hadamard";
    case KvCodec::kHadamard2Value8:
      return "k2v8-hadamard";
    case KvCodec::kHadamard2Value4:
      return "k2v4-hadamard";
    case KvCodec::kHadamard2:
      return "int2-hadamard";
    case KvCodec::kLatent8:
      return "int8-latent";
    case KvCodec::kLatent4:
      return "int4-latent";
    case KvCodec::kKivi4:
      return "int4-kivi";
    case KvCodec::kKivi2:
      return "int2-kivi";
  }
  return "unknown";
}

std::optional<KvCodec> kv_codec_of(std::string_view key_type, std::string_view value_type) {
  for (const KvCodec codec : kKvCodecs) {
    const auto [key_bits, value_bits] = kv_hadamard_bits(codec);
    std::string key(kv_codec_name(codec));
    std::string value = key;
    if (key_bits > 0) {
      key = "int" + std::to_string(key_bits) + "-hadamard";
      value = "int" + std::to_string(value_bits) + "-hadamard";
    }
    const bool same_value = value == value_type || (value_bits > 0 && value == std::string(value_type) + "-hadamard");
    if (key == key_type && same_value) return codec;
  }
  return std::nullopt;
}

KvHadamardBits kv_hadamard_bits(KvCodec codec) {
  switch (codec) {
    case KvCodec::kHadamard8:
      return {8, 8};
    case KvCodec::kHadamard8Value4:
      return {8, 4};
    case KvCodec::kHadamard8Value2:
      return {8, 2};
    case KvCodec::kHadamard4Value8:
      return {4, 8};
    case KvCodec::kHadamard4:
      return {4, 4};
    case KvCodec::kHadamard4Value2:
      return {4, 2};
    case KvCodec::kHadamard2Value8:
      return {2, 8};
    case KvCodec::kHadamard2Value4:
      return {2, 4};
    case KvCodec::kHadamard2:
      return {2, 2};
    default:
      return {};
  }
}

int kv_latent_bits(KvCodec codec) { return codec == KvCodec::kLatent8 ? 8 : codec == KvCodec::kLatent4 ? 4 : 0; }

int kv_kivi_bits(KvCodec codec) { return codec == KvCodec::kKivi4 ? 4 : codec == KvCodec::kKivi2 ? 2 : 0; }

bool kv_codec_is_blockwise(KvCodec codec) { return kv_kivi_bits(codec) != 0; }

bool kv_codec_fits(KvCodec codec, bool value_in_key) {
  if (value_in_key) return kv_hadamard_bits(codec).key == 0 && kv_kivi_bits(codec) == 0;
  return kv_latent_bits(codec) == 0;
}

int32_t kv_key_unit(KvCodec codec) {
  switch (codec) {
    case KvCodec::kF32:
    case KvCodec::kF16:
    case KvCodec::kBF16:
      return 2;
    case KvCodec::kKivi4:
    case KvCodec::kKivi2:
      return 32 / kv_kivi_bits(codec);
    default:
      return 32;
  }
}

int64_t KvBlockFormat::key_bytes() const { return round_up(rope_offset() + rope_bytes(*this), 64); }

int64_t KvBlockFormat::key_scales_offset() const { return key_element_bytes(*this); }

int64_t KvBlockFormat::rope_offset() const { return key_scales_offset() + key_scale_bytes(*this); }

int64_t KvBlockFormat::value_scales_offset() const { return key_bytes() + value_element_bytes(*this); }

int64_t KvBlockFormat::block_bytes() const {
  if (value_in_key) return key_bytes();
  return round_up(value_scales_offset() + scale_bytes(*this, value_dim), 64);
}

void kv_store(const KvBlockFormat& format, std::byte* block, int slot, const float* key, const float* value) {
  WITAN_CHECK(0 <= slot && slot < kKvBlockSize, "slot {}", slot);
  if (format.is_hadamard()) return store_hadamard(format, block, slot, key, value);
  if (format.is_latent()) return store_latent(format, block, slot, key);
  check_single_entries(format);
  const EntryPart keys = key_part(format, block, slot);
  store_part(format.codec, keys, key);
  complete_pair(format.codec, keys);
  if (!format.value_in_key) store_part(format.codec, value_part(format, block, slot), value);
}

void kv_store_block(Isa isa, const KvBlockFormat& format, std::byte* block, int count, const KvRows& rows) {
  WITAN_CHECK(0 <= count && count <= kKvBlockSize, "{} entries", count);
  if (format.codec == KvCodec::kBF16 && !format.value_in_key && isa >= Isa::kAvx512Bf16) {
    return kv_store_block_avx512_bf16(format, block, count, rows);
  }
  if (format.is_kivi()) {
    WITAN_CHECK(count == kKvBlockSize, "{} entries of {}", count, kv_codec_name(format.codec));
    return store_kivi_block(format, block, rows);
  }
  if (format.codec == KvCodec::kF32 && !format.value_in_key) return store_f32_block(format, block, count, rows);
  for (int slot = 0; slot < count; ++slot) {
    kv_store(format, block, slot, rows.keys + slot * rows.key_stride, rows.values + slot * rows.value_stride);
  }
  const std::vector<float> zeros(
      count == kKvBlockSize ? 0 : static_cast<size_t>(std::max(format.key_dim, format.value_dim)));
  for (int slot = count; slot < kKvBlockSize; ++slot) kv_store(format, block, slot, zeros.data(), zeros.data());
}

void kv_load(const KvBlockFormat& format, const std::byte* block, int slot, float* key, float* value) {
  WITAN_CHECK(0 <= slot && slot < kKvBlockSize, "slot {}", slot);
  if (format.turned_key_dim() != 0) {
    load_turned(format, block, slot, key, value);
    hadamard_rotate(key, format.turned_key_dim());
    if (value != nullptr) hadamard_rotate(value, format.value_dim);
    return;
  }
  if (format.is_kivi()) return load_kivi(format, block, slot, key, value);
  auto* bytes = const_cast<std::byte*>(block);  // EntryPart serves both directions; nothing is written here
  load_part(format.codec, key_part(format, bytes, slot), key);
  if (value == nullptr) return;
  if (format.value_in_key) {
    std::copy_n(key, format.value_dim, value);
  } else {
    load_part(format.codec, value_part(format, bytes, slot), value);
  }
}

void kv_load_keys(Isa isa, const KvBlockFormat& format, const std::byte* block, int count, float* keys,
                  int64_t stride) {
  WITAN_CHECK(0 <= count && count <= kKvBlockSize, "{} entries", count);
  if (isa == Isa::kReference) {
    for (int slot = 0; slot < count; ++slot) kv_load(format, block, slot, keys + slot * stride, nullptr);
    return;
  }
  const SplitTask task{.format = format,
                       .key_scales = format.key_scales_offset(),
                       .rope = format.rope_offset(),
                       .turned_key_dim = format.turned_key_dim(),
                       .key_rotation = hadamard_size(format.turned_key_dim()),
                       .key_bits = kv_hadamard_bits(format.codec).key};
  kLoadKeys[isa](task, block, count, keys, stride);
}

void kv_store_value(const KvBlockFormat& format, std::byte* block, int slot, const float* value) {
  WITAN_CHECK(0 <= slot && slot < kKvBlockSize && !format.value_in_key, "the value of slot {}", slot);
  if (format.is_hadamard()) return store_hadamard_value(format, block, slot, value);
  check_single_entries(format);
  store_part(format.codec, value_part(format, block, slot), value);
}

void kv_load_value(const KvBlockFormat& format, const std::byte* block, int slot, float* value) {
  WITAN_CHECK(0 <= slot && slot < kKvBlockSize && !format.value_in_key, "the value of slot {}", slot);
  if (format.is_hadamard()) {
    load_turned(format, block, slot, nullptr, value);
    return hadamard_rotate(value, format.value_dim);
  }
  if (format.is_kivi()) return load_kivi(format, block, slot, nullptr, value);
  load_part(format.codec, value_part(format, const_cast<std::byte*>(block), slot), value);  // as in kv_load
}

void kv_copy(const KvBlockFormat& format, const std::byte* from, int from_slot, std::byte* to, int to_slot) {
  WITAN_CHECK(0 <= from_slot && from_slot < kKvBlockSize && 0 <= to_slot && to_slot < kKvBlockSize, "slots {} and {}",
              from_slot, to_slot);
  if (format.turned_key_dim() != 0) return copy_turned(format, from, from_slot, to, to_slot);
  check_single_entries(format);
  auto* bytes = const_cast<std::byte*>(from);  // as in kv_load
  const EntryPart keys = key_part(format, to, to_slot);
  copy_part(format.codec, key_part(format, bytes, from_slot), keys);
  complete_pair(format.codec, keys);
  if (!format.value_in_key) {
    copy_part(format.codec, value_part(format, bytes, from_slot), value_part(format, to, to_slot));
  }
}

}  // namespace witan
