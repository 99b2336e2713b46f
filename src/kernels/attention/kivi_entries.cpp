#include "kernels/attention/kivi_entries.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "tensor/half.h"

namespace witan {
namespace {

constexpr int kLanes = 16;  // components of values whose words follow each other

int quants_per_word(const KvBlockFormat& format) { return 32 / kv_kivi_bits(format.codec); }

// Where a quant lies: in a word, so many bits up. Those of other entries of the same component of a key, and of the
// next components of a value, up to a multiple of kLanes, lie in the next words.
struct Place {
  int64_t word;
  int shift;
};

Place key_place(const KvBlockFormat& format, int32_t d, int slot) {
  const int per_word = quants_per_word(format);
  return {d / per_word * kKvBlockSize + slot, d % per_word * kv_kivi_bits(format.codec)};
}

Place value_place(const KvBlockFormat& format, int32_t c, int slot) {
  const int per_word = quants_per_word(format);
  return {(c / kLanes * kv_kivi_bits(format.codec) + slot / per_word) * kLanes + c % kLanes,
          slot % per_word * kv_kivi_bits(format.codec)};
}

// What a group of components is rounded to, as it is stored: steps above the least one.
struct Range {
  uint16_t step = 0;
  uint16_t least = 0;

  static Range of_word(uint32_t word) { return {static_cast<uint16_t>(word), static_cast<uint16_t>(word >> 16)}; }
  uint32_t word() const { return static_cast<uint32_t>(least) << 16 | step; }
  float value(uint32_t quant) const { return std::fma(static_cast<float>(quant), f16_to_f32(step), f16_to_f32(least)); }
};

// A group of up to 32 components, rounded.
struct Group {
  Range range;
  uint32_t quants[kKvBlockSize] = {};

  // A group that has anything but finite numbers, or more than float16 holds, reads as NaN instead of as plausible
  // numbers.
  Group(const float* x, int count, float levels) {
    float min = x[0];
    float max = x[0];
    uint32_t largest = 0;  // magnitudes order like their bits, infinity and NaN above all
    for (int i = 0; i < count; ++i) {
      min = std::min(min, x[i]);
      max = std::max(max, x[i]);
      largest = std::max(largest, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
    }
    range = {f32_to_f16((max - min) / levels), f32_to_f16(min)};
    const float step = f16_to_f32(range.step);
    const float least = f16_to_f32(range.least);
    if (largest >= 0x7f800000u || !std::isfinite(step) || !std::isfinite(least)) {
      range = {0, f32_to_f16(std::numeric_limits<float>::quiet_NaN())};
      return;
    }
    if (step == 0.0f) return;
    constexpr float kNoFraction = 0x1.8p23f;  // what is added to it is rounded to an integer, ties to even
    for (int i = 0; i < count; ++i) {
      const float quant = std::min(std::max((x[i] - least) / step, 0.0f), levels);
      quants[i] = std::bit_cast<uint32_t>(quant + kNoFraction) - std::bit_cast<uint32_t>(kNoFraction);
    }
  }
};

// Adds quants to neighbouring words.
void add_quants(const uint32_t* quants, int count, int shift, uint32_t* words) {
  for (int i = 0; i < count; ++i) words[i] |= quants[i] << shift;
}

}  // namespace

int64_t kivi_key_bytes(const KvBlockFormat& format) {
  const int per_word = quants_per_word(format);
  return (format.key_dim + per_word - 1) / per_word * kKvBlockSize * static_cast<int64_t>(sizeof(uint32_t));
}

int64_t kivi_value_bytes(const KvBlockFormat& format) {
  return (format.value_dim + kLanes - 1) / kLanes * kv_kivi_bits(format.codec) * kLanes *
         static_cast<int64_t>(sizeof(uint32_t));
}

void store_kivi_block(const KvBlockFormat& format, std::byte* block, const KvRows& rows) {
  WITAN_CHECK(!format.value_in_key, "values in keys of {}", kv_codec_name(format.codec));
  const auto levels = static_cast<float>((1 << kv_kivi_bits(format.codec)) - 1);
  std::fill_n(block, format.block_bytes(), std::byte{0});
  auto* words = reinterpret_cast<uint32_t*>(block);
  auto* ranges = reinterpret_cast<uint32_t*>(block + format.key_scales_offset());
  for (int32_t d = 0; d < format.key_dim; ++d) {
    float components[kKvBlockSize];
    for (int slot = 0; slot < kKvBlockSize; ++slot) components[slot] = rows.keys[slot * rows.key_stride + d];
    const Group group(components, kKvBlockSize, levels);
    const Place place = key_place(format, d, 0);
    add_quants(group.quants, kKvBlockSize, place.shift, words + place.word);
    ranges[d] = group.range.word();
  }
  words = reinterpret_cast<uint32_t*>(block + format.key_bytes());
  ranges = reinterpret_cast<uint32_t*>(block + format.value_scales_offset());
  for (int slot = 0; slot < kKvBlockSize; ++slot) {
    const float* value = rows.values + slot * rows.value_stride;
    for (int32_t begin = 0; begin < format.value_dim; begin += kKvKiviValueGroup) {
      const int count = std::min(kKvKiviValueGroup, format.value_dim - begin);
      const Group group(value + begin, count, levels);
      for (int i = 0; i < count; i += kLanes) {
        const Place place = value_place(format, begin + i, slot);
        add_quants(group.quants + i, std::min(kLanes, count - i), place.shift, words + place.word);
      }
      ranges[begin / kKvKiviValueGroup * kKvBlockSize + slot] = group.range.word();
    }
  }
}

void load_kivi(const KvBlockFormat& format, const std::byte* block, int slot, float* key, float* value) {
  const uint32_t levels = (1u << kv_kivi_bits(format.codec)) - 1u;
  const auto* words = reinterpret_cast<const uint32_t*>(block);
  const auto* ranges = reinterpret_cast<const uint32_t*>(block + format.key_scales_offset());
  for (int32_t d = 0; key != nullptr && d < format.key_dim; ++d) {
    const Place place = key_place(format, d, slot);
    key[d] = Range::of_word(ranges[d]).value(words[place.word] >> place.shift & levels);
  }
  words = reinterpret_cast<const uint32_t*>(block + format.key_bytes());
  ranges = reinterpret_cast<const uint32_t*>(block + format.value_scales_offset());
  for (int32_t c = 0; value != nullptr && c < format.value_dim; ++c) {
    const Place place = value_place(format, c, slot);
    const Range range = Range::of_word(ranges[c / kKvKiviValueGroup * kKvBlockSize + slot]);
    value[c] = range.value(words[place.word] >> place.shift & levels);
  }
}

}  // namespace witan
