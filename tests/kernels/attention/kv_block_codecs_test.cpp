// Blocks of the kLatent and kKivi codecs against what the header and the papers say of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "kernels/attention/attention_fixture.h"
#include "kernels/attention/hadamard.h"
#include "kernels/attention/kv_block.h"
#include "support/special_floats.h"
#include "tensor/half.h"
#include "tensor/random_bits.h"

namespace witan {
namespace {

constexpr KvCodec kLatentCodecs[] = {KvCodec::kLatent8, KvCodec::kLatent4};
constexpr KvCodec kKiviCodecs[] = {KvCodec::kKivi4, KvCodec::kKivi2};
using test::kInfinity;
using test::kNaN;

using Vectors = std::vector<std::vector<float>>;

Vectors random_vectors(size_t count, int32_t dim, uint64_t seed, float magnitude = 1.0f) {
  RandomBits random(seed);
  Vectors vectors(count, std::vector<float>(static_cast<size_t>(dim)));
  for (auto& vector : vectors) {
    for (float& x : vector) x = magnitude * random.next_signed_unit();
  }
  return vectors;
}

// A block of 32 entries, stored and read back.
struct Block {
  KvBlockFormat format;
  test::AlignedBytes bytes;
  Vectors keys;
  Vectors values;

  explicit Block(const KvBlockFormat& block_format)
      : format(block_format), bytes(test::poisoned_bytes(format.block_bytes())) {}
  Block(const KvBlockFormat& block_format, const Vectors& stored_keys, const Vectors& stored_values)
      : Block(block_format) {
    std::vector<float> all_keys;
    std::vector<float> all_values;
    for (size_t e = 0; e < 32; ++e) {
      all_keys.insert(all_keys.end(), stored_keys[e].begin(), stored_keys[e].end());
      all_values.insert(all_values.end(), stored_values[e].begin(), stored_values[e].end());
    }
    kv_store_block(Isa::kReference, format, bytes.get(), 32,
                   {all_keys.data(), format.key_dim, all_values.data(), format.value_dim});
    for (int slot = 0; slot < 32; ++slot) {
      keys.emplace_back(static_cast<size_t>(format.key_dim));
      values.emplace_back(static_cast<size_t>(format.value_dim));
      kv_load(format, bytes.get(), slot, keys.back().data(), values.back().data());
    }
  }

  uint32_t word(int64_t offset, int64_t index) const {
    return reinterpret_cast<const uint32_t*>(bytes.get() + offset)[index];
  }
};

KvBlockFormat latent_format(KvCodec codec, int32_t key_dim, int32_t value_dim) {
  return {.codec = codec, .key_dim = key_dim, .value_dim = value_dim, .value_in_key = true};
}

TEST(KvBlockLatent, QuantsOfTheTurnedLatentAreOffByHalfAStepOfTheirGroupAndRopeIsBf16) {
  for (const KvCodec codec : kLatentCodecs) {
    for (const auto& [key_dim, value_dim] : {std::pair(576, 512), std::pair(45, 37), std::pair(192, 160)}) {
      const Vectors keys = random_vectors(32, key_dim, 1);
      const Block block(latent_format(codec, key_dim, value_dim), keys, random_vectors(32, value_dim, 2));
      for (size_t e = 0; e < 32; ++e) {
        std::vector<float> stored(keys[e].begin(), keys[e].begin() + value_dim);
        std::vector<float> loaded = block.values[e];
        EXPECT_TRUE(std::equal(loaded.begin(), loaded.end(), block.keys[e].begin()));
        hadamard_rotate(stored.data(), value_dim);
        hadamard_rotate(loaded.data(), value_dim);
        for (size_t begin = 0; begin < stored.size(); begin += 128) {
          const size_t end = std::min(stored.size(), begin + 128);
          float max = 0.0f;
          for (size_t c = begin; c < end; ++c) max = std::max(max, std::fabs(stored[c]));
          const double half_step = codec == KvCodec::kLatent8 ? max / 254.0 : max / 15.0;
          for (size_t c = begin; c < end; ++c) ASSERT_NEAR(loaded[c], stored[c], 1.0001 * half_step + 2e-6) << c;
        }
        for (size_t d = static_cast<size_t>(value_dim); d < keys[e].size(); ++d) {
          ASSERT_EQ(block.keys[e][d], bf16_to_f32(f32_to_bf16(keys[e][d]))) << d;
        }
      }
    }
  }
}

TEST(KvBlockLatent, LiesAsTheHeaderSays) {
  // Turned, the latent of entry 6 has one component that is not 0.
  const KvBlockFormat format = latent_format(KvCodec::kLatent4, 256 + 3, 256);
  for (const size_t component : {size_t{0}, size_t{5}, size_t{45}, size_t{128}, size_t{255}}) {
    Vectors keys(32, std::vector<float>(259, 0.0f));
    keys[6][component] = 120.0f;
    hadamard_rotate(keys[6].data(), 256);
    keys[6][256] = 1.0f;
    keys[6][258] = -2.0f;
    const Block block(format, keys, random_vectors(32, 256, 1));
    const auto c = static_cast<int64_t>(component);
    const int shift = static_cast<int>(c % 4 * 8 + c / 4 % 2 * 4);
    EXPECT_EQ(block.word(0, c / 8 * 32 + 6) >> shift & 15u, 15u) << "the highest level, 7.5 + 8";
    EXPECT_NEAR(std::bit_cast<float>(block.word(format.key_scales_offset(), c / 128 * 32 + 6)), 1.0f, 1e-5);
    EXPECT_EQ(block.word(format.key_scales_offset(), (1 - c / 128) * 32 + 6), 0u) << "of a group of zeros";
    EXPECT_EQ(block.word(format.rope_offset(), 6), 0x00003f80u);
    EXPECT_EQ(block.word(format.rope_offset(), 32 + 6), 0x0000c000u) << "behind an odd number comes a 0";
  }
  EXPECT_EQ(format.rope_offset(), 32 * (128 + 2 * 4));
}

TEST(KvBlockLatent, ComponentsThatAreNotFiniteAreNeverReadAsPlausibleNumbers) {
  for (const KvCodec codec : kLatentCodecs) {
    Vectors keys = random_vectors(32, 40, 1);
    keys[3][20] = kInfinity;
    keys[4][35] = kNaN;
    const Block block(latent_format(codec, 40, 32), keys, random_vectors(32, 32, 2));
    for (const float x : block.values[3]) EXPECT_TRUE(std::isnan(x)) << "the latent shares a scale";
    for (size_t d = 32; d < 40; ++d) EXPECT_TRUE(std::isfinite(block.keys[3][d]));
    for (const float x : block.values[4]) EXPECT_TRUE(std::isfinite(x));
    EXPECT_TRUE(std::isnan(block.keys[4][35]));
  }
}

// Why the part that RoPE turned has its own place: rounded with the latent it would be off by a step of that.
TEST(KvBlockLatent, LargeRopePartsDoNotCostTheLatentAnything) {
  Vectors keys = random_vectors(32, 40, 1);
  const Block small(latent_format(KvCodec::kLatent4, 40, 32), keys, random_vectors(32, 32, 2));
  for (auto& key : keys) {
    for (size_t d = 32; d < 40; ++d) key[d] *= 1000.0f;
  }
  const Block large(latent_format(KvCodec::kLatent4, 40, 32), keys, random_vectors(32, 32, 2));
  EXPECT_EQ(large.values, small.values);
}

// The paper's formula (section 3) in double, but for the range, which float16 has.
std::vector<double> kivi(const std::vector<float>& group, int bits) {
  const auto [min, max] = std::ranges::minmax(group);
  const double levels = (1 << bits) - 1;
  const auto least = static_cast<double>(f16_to_f32(f32_to_f16(min)));
  const auto step = static_cast<double>(f16_to_f32(f32_to_f16(static_cast<float>((max - min) / levels))));
  std::vector<double> rounded;
  for (const float x : group) {
    const double quant = step == 0.0 ? 0.0 : std::round((static_cast<double>(x) - least) / step);
    rounded.push_back(least + std::min(std::max(quant, 0.0), levels) * step);
  }
  return rounded;
}

TEST(KvBlockKivi, FollowsTheFormulaByChannelOfKeysAndByGroupOfAValue) {
  for (const KvCodec codec : kKiviCodecs) {
    const int bits = kv_kivi_bits(codec);
    for (const auto& [key_dim, value_dim] :
         {std::pair(128, 128), std::pair(45, 37), std::pair(192, 96), std::pair(7, 3)}) {
      Vectors keys = random_vectors(32, key_dim, 1);
      for (auto& key : keys) {
        key[1] = 20.0f + key[1];  // a channel far from 0
        key[2] *= 100.0f;
        key[3] = -0.25f;  // and one that never changes
      }
      const Vectors values = random_vectors(32, value_dim, 2, 0.5f);
      const Block block({.codec = codec, .key_dim = key_dim, .value_dim = value_dim}, keys, values);
      for (size_t d = 0; d < keys[0].size(); ++d) {
        std::vector<float> channel;
        for (const auto& key : keys) channel.push_back(key[d]);
        const std::vector<double> expected = kivi(channel, bits);
        for (size_t e = 0; e < 32; ++e) {
          ASSERT_NEAR(block.keys[e][d], expected[e], 1e-6 * std::fabs(expected[e])) << e << " " << d;
        }
      }
      for (size_t e = 0; e < 32; ++e) {
        for (size_t begin = 0; begin < values[e].size(); begin += 32) {
          const auto end = static_cast<std::ptrdiff_t>(std::min(values[e].size(), begin + 32));
          const auto first = static_cast<std::ptrdiff_t>(begin);
          const std::vector<double> expected = kivi({values[e].begin() + first, values[e].begin() + end}, bits);
          for (size_t i = 0; i < expected.size(); ++i) {
            ASSERT_NEAR(block.values[e][begin + i], expected[i], 1e-6) << e << " " << begin + i;
          }
        }
      }
    }
  }
}

TEST(KvBlockKivi, ComponentsAreOffByHalfAStepOfTheirGroup) {
  for (const KvCodec codec : kKiviCodecs) {
    const double levels = (1 << kv_kivi_bits(codec)) - 1;
    const Vectors keys = random_vectors(32, 64, 1);
    const Vectors values = random_vectors(32, 64, 2);
    const Block block({.codec = codec, .key_dim = 64, .value_dim = 64}, keys, values);
    // A range is at most 2 here, and float16 has it to 2^-11.
    const double half_step = 1.0 / levels + 2.0 * 0x1p-11;
    for (size_t e = 0; e < 32; ++e) {
      for (size_t d = 0; d < 64; ++d) {
        ASSERT_NEAR(block.keys[e][d], keys[e][d], half_step);
        ASSERT_NEAR(block.values[e][d], values[e][d], half_step);
      }
    }
  }
}

// What channels of keys are grouped for: one of large magnitude leaves the others as they are.
TEST(KvBlockKivi, AnOutlierChannelOfKeysCostsTheOthersNothing) {
  Vectors keys = random_vectors(32, 64, 1);
  const Vectors values = random_vectors(32, 64, 2);
  const KvBlockFormat format{.codec = KvCodec::kKivi2, .key_dim = 64, .value_dim = 64};
  const Block without(format, keys, values);
  for (auto& key : keys) key[40] = 100.0f * key[40];
  const Block with(format, keys, values);
  for (size_t e = 0; e < 32; ++e) {
    for (size_t d = 0; d < 64; ++d) {
      if (d == 40) continue;
      ASSERT_EQ(with.keys[e][d], without.keys[e][d]);
    }
  }
}

TEST(KvBlockKivi, LiesAsTheHeaderSays) {
  for (const KvCodec codec : kKiviCodecs) {
    const auto bits = int64_t{kv_kivi_bits(codec)};
    const int64_t per_word = 32 / bits;
    const KvBlockFormat format{.codec = codec, .key_dim = 40, .value_dim = 40};
    for (const int64_t slot : {0, 5, 17, 31}) {
      for (const int64_t c : {0, 9, 16, 39}) {
        Vectors keys(32, std::vector<float>(40, 1.0f));
        Vectors values = keys;
        keys[static_cast<size_t>(slot)][static_cast<size_t>(c)] = 4.0f;
        values[static_cast<size_t>(slot)][static_cast<size_t>(c)] = 4.0f;
        const Block block(format, keys, values);
        const auto highest = static_cast<uint32_t>((1 << bits) - 1);
        const uint32_t range = uint32_t{f32_to_f16(1.0f)} << 16 | f32_to_f16(3.0f / static_cast<float>(highest));
        EXPECT_EQ(block.word(0, c / per_word * 32 + slot), highest << (c % per_word * bits));
        EXPECT_EQ(block.word(format.key_scales_offset(), c), range);
        const int64_t value_word = (c / 16 * bits + slot / per_word) * 16 + c % 16;
        EXPECT_EQ(block.word(format.key_bytes(), value_word), highest << (slot % per_word * bits));
        EXPECT_EQ(block.word(format.value_scales_offset(), c / 32 * 32 + slot), range);
      }
    }
  }
}

TEST(KvBlockKivi, WhatFloat16DoesNotHoldIsNeverReadAsPlausibleNumbers) {
  for (const KvCodec codec : kKiviCodecs) {
    for (const float bad : {kNaN, kInfinity, -kInfinity, 1e6f, -1e6f}) {
      Vectors keys = random_vectors(32, 40, 1);
      Vectors values = random_vectors(32, 40, 2);
      keys[3][20] = bad;
      values[4][35] = bad;
      const Block block({.codec = codec, .key_dim = 40, .value_dim = 40}, keys, values);
      for (size_t e = 0; e < 32; ++e) {
        for (size_t d = 0; d < 40; ++d) {
          EXPECT_EQ(std::isnan(block.keys[e][d]), d == 20) << "a channel of a block shares a range";
          EXPECT_EQ(std::isnan(block.values[e][d]), e == 4 && d >= 32) << "a group of a value shares a range";
        }
      }
    }
  }
}

TEST(KvBlockKivi, AValueCanBeReadAlone) {
  const Block block({.codec = KvCodec::kKivi4, .key_dim = 40, .value_dim = 33}, random_vectors(32, 40, 1),
                    random_vectors(32, 33, 2));
  std::vector<float> value(33);
  kv_load_value(block.format, block.bytes.get(), 9, value.data());
  EXPECT_EQ(value, block.values[9]);
}

TEST(KvBlockKiviDeathTest, EntriesAreNeitherStoredNorCopiedOneByOne) {
  for (const KvCodec codec : kKvCodecs) {
    EXPECT_EQ(kv_codec_is_blockwise(codec), codec == KvCodec::kKivi4 || codec == KvCodec::kKivi2);
  }
  const KvBlockFormat format{.codec = KvCodec::kKivi2, .key_dim = 16, .value_dim = 16};
  const Block block(format);
  const std::vector<float> x(size_t{32} * 16, 1.0f);
  const KvRows rows{x.data(), 16, x.data(), 16};
  std::byte* bytes = block.bytes.get();
  EXPECT_DEATH(kv_store(format, bytes, 3, x.data(), x.data()), "a single entry of a block of int2-kivi");
  EXPECT_DEATH(kv_store_value(format, bytes, 3, x.data()), "a single entry of a block of int2-kivi");
  EXPECT_DEATH(kv_copy(format, bytes, 3, bytes, 4), "a single entry of a block of int2-kivi");
  EXPECT_DEATH(kv_store_block(Isa::kReference, format, bytes, 31, rows), "31 entries of int2-kivi");
}

TEST(KvBlock, KeysReadAtOnceHaveTheBitsOfThoseReadOneByOne) {
  for (const KvCodec codec : kKvCodecs) {
    for (const auto& [key_dim, value_dim] :
         {std::pair(576, 512), std::pair(45, 37), std::pair(20, 16), std::pair(3, 1)}) {
      const KvBlockFormat format{
          .codec = codec, .key_dim = key_dim, .value_dim = value_dim, .value_in_key = !kv_codec_fits(codec, false)};
      const Block block(format, random_vectors(32, key_dim, 1), random_vectors(32, value_dim, 2));
      const int64_t stride = key_dim + 3;
      for (const Isa isa : test::supported_isas()) {
        for (const int count : {0, 1, 16, 23, 32}) {
          std::vector<float> keys(static_cast<size_t>(32 * stride), 12345.0f);
          kv_load_keys(isa, format, block.bytes.get(), count, keys.data(), stride);
          std::vector<float> expected(keys.size(), 12345.0f);
          for (int slot = 0; slot < count; ++slot) {
            std::ranges::copy(block.keys[static_cast<size_t>(slot)], expected.begin() + slot * stride);
          }
          ASSERT_EQ(keys, expected) << isa_name(isa) << " " << kv_codec_name(codec) << " " << key_dim << ", " << count;
        }
      }
    }
  }
}

TEST(KvBlock, CodecsAreForLatentsOrForEntriesWithValuesOrForBoth) {
  for (const KvCodec codec : kKvCodecs) {
    const bool of_latents = kv_latent_bits(codec) != 0;
    const bool of_values = kv_hadamard_bits(codec).key != 0 || kv_kivi_bits(codec) != 0;
    EXPECT_EQ(kv_codec_fits(codec, true), !of_values) << kv_codec_name(codec);
    EXPECT_EQ(kv_codec_fits(codec, false), !of_latents) << kv_codec_name(codec);
  }
}

}  // namespace
}  // namespace witan
