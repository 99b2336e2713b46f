#include "kernels/attention/kv_block.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention/hadamard.h"
#include "kernels/supported_isas.h"
#include "support/special_floats.h"
#include "tensor/half.h"
#include "tensor/random_bits.h"

namespace witan {
namespace {

// Those that store components as they are; see the KvBlockHadamard tests for the others.
constexpr KvCodec kPlainCodecs[] = {KvCodec::kF32, KvCodec::kF16, KvCodec::kBF16, KvCodec::kQ8};
constexpr KvCodec kHadamardCodecs[] = {KvCodec::kHadamard8,       KvCodec::kHadamard8Value4, KvCodec::kHadamard8Value2,
                                       KvCodec::kHadamard4Value8, KvCodec::kHadamard4,       KvCodec::kHadamard4Value2,
                                       KvCodec::kHadamard2Value8, KvCodec::kHadamard2Value4, KvCodec::kHadamard2};
using test::kInfinity;

struct Entry {
  std::vector<float> key;
  std::vector<float> value;
};

Entry random_entry(const KvBlockFormat& format, uint64_t seed) {
  RandomBits random(seed);
  Entry entry;
  for (int32_t i = 0; i < format.key_dim; ++i) entry.key.push_back(2.0f * random.next_signed_unit());
  for (int32_t i = 0; i < format.value_dim; ++i) entry.value.push_back(0.5f * random.next_signed_unit());
  return entry;
}

Entry load_entry(const KvBlockFormat& format, const std::vector<std::byte>& block, int slot) {
  Entry entry{std::vector<float>(static_cast<size_t>(format.key_dim)),
              std::vector<float>(static_cast<size_t>(format.value_dim))};
  kv_load(format, block.data(), slot, entry.key.data(), entry.value.data());
  return entry;
}

std::vector<std::byte> empty_block(const KvBlockFormat& format) {
  return std::vector<std::byte>(static_cast<size_t>(format.block_bytes()));
}

// Stores x in a block of its own and reads it back.
std::vector<float> round_trip(KvCodec codec, const std::vector<float>& x) {
  const auto dim = static_cast<int32_t>(x.size());
  const KvBlockFormat format{.codec = codec, .key_dim = dim, .value_dim = dim};
  std::vector<std::byte> block = empty_block(format);
  kv_store(format, block.data(), 5, x.data(), x.data());
  const Entry entry = load_entry(format, block, 5);
  EXPECT_EQ(std::memcmp(entry.key.data(), entry.value.data(), x.size() * sizeof(float)), 0);
  return entry.key;
}

template <typename T>
T read_at(const std::vector<std::byte>& block, size_t byte_offset) {
  T value;
  std::memcpy(&value, block.data() + byte_offset, sizeof(value));
  return value;
}

TEST(KvBlock, BytesCoverElementsAndScalesInLinesOf64) {
  struct Row {
    KvBlockFormat format;
    int64_t key_bytes;
    int64_t block_bytes;
  };
  const Row rows[] = {
      {{KvCodec::kF32, 128, 128, false}, 16384, 32768},
      {{KvCodec::kF16, 128, 64, false}, 8192, 8192 + 4096},
      {{KvCodec::kBF16, 576, 512, true}, 36864, 36864},
      {{KvCodec::kBF16, 128, 128, false}, 8192, 16384},
      {{KvCodec::kBF16, 33, 17, false}, 32 * 34 * 2, 32 * 34 * 2 + 32 * 32 * 2},  // pairs, and runs of 16
      {{KvCodec::kQ8, 128, 128, false}, 32 * (128 + 16), 2 * 32 * (128 + 16)},
      {{KvCodec::kQ8, 33, 1, false}, 32 * (36 + 8), 32 * (36 + 8) + 32 * (16 + 4)},  // words of 4, and runs of 16
      {{KvCodec::kQ8, 576, 512, true}, 32 * (576 + 72), 32 * (576 + 72)},
      {{KvCodec::kHadamard8, 128, 128, false}, 32 * (128 + 4), 2 * 32 * (128 + 4)},
      {{KvCodec::kHadamard8Value4, 128, 128, false}, 32 * (128 + 4), 32 * (128 + 4) + 32 * (64 + 4)},
      {{KvCodec::kHadamard4, 128, 128, false}, 32 * (64 + 4), 2 * 32 * (64 + 4)},
      {{KvCodec::kHadamard4Value2, 40, 80, false},
       32 * (32 + 4),
       32 * (32 + 4) + 32 * (32 + 4)},  // keys of 64, values of 128
      {{KvCodec::kHadamard8Value2, 128, 128, false}, 32 * (128 + 4), 32 * (128 + 4) + 32 * (32 + 4)},
      {{KvCodec::kHadamard4Value8, 128, 128, false}, 32 * (64 + 4), 32 * (64 + 4) + 32 * (128 + 4)},
      {{KvCodec::kHadamard2Value8, 128, 128, false}, 32 * (32 + 4), 32 * (32 + 4) + 32 * (128 + 4)},
      {{KvCodec::kHadamard2Value4, 128, 128, false}, 32 * (32 + 4), 32 * (32 + 4) + 32 * (64 + 4)},
      {{KvCodec::kHadamard2, 128, 128, false}, 32 * (32 + 4), 2 * 32 * (32 + 4)},
      {{KvCodec::kLatent8, 576, 512, true}, 32 * (512 + 16 + 128), 32 * (512 + 16 + 128)},
      {{KvCodec::kLatent4, 576, 512, true}, 32 * (256 + 16 + 128), 32 * (256 + 16 + 128)},
      {{KvCodec::kLatent4, 45, 40, true}, 32 * (32 + 4 + 12), 32 * (32 + 4 + 12)},  // latents of 64, pairs
      {{KvCodec::kKivi4, 128, 128, false}, 128 * (16 + 4), 128 * (16 + 4) + 32 * (64 + 4 * 4)},
      {{KvCodec::kKivi2, 128, 128, false}, 128 * (8 + 4), 128 * (8 + 4) + 32 * (32 + 4 * 4)},
      {{KvCodec::kKivi2, 40, 33, false},  // keys of 48, values of 48 with 2 ranges; 40 ranges are 160 bytes
       48 * 8 + 192,
       48 * 8 + 192 + 32 * (12 + 2 * 4)},
  };
  for (const Row& row : rows) {
    EXPECT_EQ(row.format.key_bytes(), row.key_bytes) << kv_codec_name(row.format.codec);
    EXPECT_EQ(row.format.block_bytes(), row.block_bytes) << kv_codec_name(row.format.codec);
  }
}

TEST(KvBlock, KeysLieByComponentAndValuesByEntry) {
  for (KvCodec codec : {KvCodec::kF32, KvCodec::kF16}) {
    const KvBlockFormat format{.codec = codec, .key_dim = 20, .value_dim = 24};
    std::vector<std::byte> block = empty_block(format);
    const Entry entry = random_entry(format, 1);
    kv_store(format, block.data(), 7, entry.key.data(), entry.value.data());
    const auto element = [&](size_t offset, size_t index) {
      if (codec == KvCodec::kF32) return read_at<float>(block, offset + 4 * index);
      return f16_to_f32(read_at<uint16_t>(block, offset + 2 * index));
    };
    const auto rounded = [&](float x) { return codec == KvCodec::kF32 ? x : f16_to_f32(f32_to_f16(x)); };
    const auto values = static_cast<size_t>(format.key_bytes());
    for (size_t d = 0; d < 20; ++d) EXPECT_EQ(element(0, d * 32 + 7), rounded(entry.key[d]));
    for (size_t c = 0; c < 24; ++c) EXPECT_EQ(element(values, 7 * 24 + c), rounded(entry.value[c]));
  }
}

TEST(KvBlock, Bf16InterleavesComponentsOfKeysAndEntriesOfValuesInPairs) {
  const KvBlockFormat format{.codec = KvCodec::kBF16, .key_dim = 21, .value_dim = 24};
  for (size_t slot : {6u, 7u}) {
    // Every bit is set where nothing was stored.
    std::vector<std::byte> block(static_cast<size_t>(format.block_bytes()), std::byte{0xff});
    const Entry entry = random_entry(format, 1);
    kv_store(format, block.data(), static_cast<int>(slot), entry.key.data(), entry.value.data());
    for (size_t d = 0; d < 22; ++d) {
      const uint16_t expected = d == 21 ? uint16_t{0} : f32_to_bf16(entry.key[d]);
      EXPECT_EQ(read_at<uint16_t>(block, (d / 2 * 32 + slot) * 4 + d % 2 * 2), expected) << slot << " " << d;
    }
    const auto values = static_cast<size_t>(format.key_bytes());
    for (size_t c = 0; c < 24; ++c) {
      const size_t word = c / 16 * 256 + slot / 2 * 16 + c % 16;
      EXPECT_EQ(read_at<uint16_t>(block, values + word * 4 + slot % 2 * 2), f32_to_bf16(entry.value[c]));
      EXPECT_EQ(read_at<uint16_t>(block, values + word * 4 + (1 - slot % 2) * 2), 0xffff) << "of the other entry";
    }
    std::vector<std::byte> copy(block.size(), std::byte{0xff});
    kv_copy(format, block.data(), static_cast<int>(slot), copy.data(), static_cast<int>(slot));
    EXPECT_EQ(copy, block);
  }
}

TEST(KvBlock, Q8HasWordsOfFourComponentsOfKeysAndOfFourEntriesOfValuesThenScales) {
  const KvBlockFormat format{.codec = KvCodec::kQ8, .key_dim = 40, .value_dim = 36};
  std::vector<std::byte> block = empty_block(format);
  Entry entry{std::vector<float>(40, 1.0f), std::vector<float>(36, -2.0f)};
  entry.key[39] = -4.0f;
  entry.value[35] = 8.0f;
  kv_store(format, block.data(), 3, entry.key.data(), entry.value.data());
  EXPECT_EQ(read_at<uint8_t>(block, 4 * 3), 128 + 127);
  EXPECT_EQ(read_at<uint8_t>(block, (9 * 32 + 3) * 4 + 3), 128 - 127);
  EXPECT_EQ(read_at<uint8_t>(block, (9 * 32 + 3) * 4 + 2), 128 + 32);  // 127 / 4 = 31.75
  EXPECT_EQ(read_at<float>(block, 40 * 32 + 4 * 3), 1.0f / 127.0f);
  EXPECT_EQ(read_at<float>(block, 40 * 32 + 4 * (32 + 3)), 4.0f / 127.0f);
  const auto values = static_cast<size_t>(format.key_bytes());
  EXPECT_EQ(read_at<int8_t>(block, values + 3), -127);
  EXPECT_EQ(read_at<int8_t>(block, values + 2 * 512 + 3 * 4 + 3), 127);
  EXPECT_EQ(read_at<int8_t>(block, values + 2 * 512 + 3 * 4 + 2), 0) << "of the entry before";
  EXPECT_EQ(read_at<float>(block, values + 32 * 48 + 4 * 3), 2.0f / 127.0f);
  EXPECT_EQ(read_at<float>(block, values + 32 * 48 + 4 * (32 + 3)), 8.0f / 127.0f);
}

TEST(KvBlock, EverySlotReadsBackWhatWasStoredInIt) {
  for (KvCodec codec : kPlainCodecs) {
    for (bool value_in_key : {false, true}) {
      const KvBlockFormat format{.codec = codec, .key_dim = 45, .value_dim = 37, .value_in_key = value_in_key};
      std::vector<std::byte> block = empty_block(format);
      std::vector<Entry> entries;
      for (int slot = 0; slot < kKvBlockSize; ++slot) {
        entries.push_back(random_entry(format, static_cast<uint64_t>(slot)));
        kv_store(format, block.data(), slot, entries.back().key.data(),
                 value_in_key ? nullptr : entries.back().value.data());
      }
      // Half an ulp of each codec; Q8: half a step of max / 127.
      const float relative = codec == KvCodec::kF32 ? 0.0f : codec == KvCodec::kF16 ? 0x1p-11f : 0x1p-8f;
      const float step = codec == KvCodec::kQ8 ? 2.0f / 127.0f : 0.0f;
      for (int slot = 0; slot < kKvBlockSize; ++slot) {
        const Entry& stored = entries[static_cast<size_t>(slot)];
        const Entry loaded = load_entry(format, block, slot);
        for (size_t i = 0; i < 45; ++i) {
          const float tolerance = codec == KvCodec::kQ8 ? 0.501f * step : relative * std::fabs(stored.key[i]) + 1e-7f;
          ASSERT_NEAR(loaded.key[i], stored.key[i], tolerance) << kv_codec_name(codec) << " slot " << slot;
        }
        for (size_t i = 0; i < 37; ++i) {
          const float expected = value_in_key ? loaded.key[i] : stored.value[i];
          const float tolerance = value_in_key            ? 0.0f
                                  : codec == KvCodec::kQ8 ? 0.1255f * step
                                                          : relative * std::fabs(expected) + 1e-7f;
          ASSERT_NEAR(loaded.value[i], expected, tolerance) << kv_codec_name(codec) << " slot " << slot;
        }
      }
    }
  }
}

TEST(KvBlock, ABlockStoredAtOnceHoldsWhatItsEntriesWouldAndZeros) {
  for (const Isa isa : test::supported_isas()) {
    for (KvCodec codec : kKvCodecs) {
      if (kv_codec_is_blockwise(codec)) continue;
      for (const auto& [key_dim, value_dim] : {std::pair(192, 128), std::pair(33, 7), std::pair(20, 17)}) {
        const KvBlockFormat format{
            .codec = codec, .key_dim = key_dim, .value_dim = value_dim, .value_in_key = !kv_codec_fits(codec, false)};
        const std::string where = fmt::format("{} {} {} {}", isa_name(isa), kv_codec_name(codec), key_dim, value_dim);
        for (const int count : {0, 1, 16, 31, 32}) {
          // Strides of more than an entry; the floats between and behind entries are not to be read.
          const int64_t key_stride = key_dim + 3;
          const int64_t value_stride = value_dim + 5;
          std::vector<float> keys(static_cast<size_t>(count * key_stride), std::nanf(""));
          std::vector<float> values(static_cast<size_t>(count * value_stride), std::nanf(""));
          std::vector<std::byte> one_by_one = empty_block(format);
          for (int slot = 0; slot < count; ++slot) {
            const Entry entry = random_entry(format, static_cast<uint64_t>(slot) + 1);
            std::ranges::copy(entry.key, keys.begin() + slot * key_stride);
            std::ranges::copy(entry.value, values.begin() + slot * value_stride);
            kv_store(format, one_by_one.data(), slot, entry.key.data(), entry.value.data());
          }
          std::vector<std::byte> at_once(one_by_one.size(), std::byte{0xff});
          kv_store_block(isa, format, at_once.data(), count, {keys.data(), key_stride, values.data(), value_stride});
          if (codec == KvCodec::kBF16 && isa >= Isa::kAvx512Bf16) {
            EXPECT_EQ(at_once, one_by_one) << where << ", " << count << " entries, whose padding is zeros too";
          }
          for (int slot = 0; slot < kKvBlockSize; ++slot) {
            Entry expected{std::vector<float>(static_cast<size_t>(key_dim)),
                           std::vector<float>(static_cast<size_t>(value_dim))};
            Entry stored = expected;
            if (slot < count) kv_load(format, one_by_one.data(), slot, expected.key.data(), expected.value.data());
            kv_load(format, at_once.data(), slot, stored.key.data(), stored.value.data());
            ASSERT_EQ(stored.key, expected.key) << where << " slot " << slot << " of " << count;
            ASSERT_EQ(stored.value, expected.value) << where << " slot " << slot << " of " << count;
          }
        }
      }
    }
  }
}

TEST(KvBlock, AKeyCanBeReadAlone) {
  const KvBlockFormat format{.codec = KvCodec::kF16, .key_dim = 24, .value_dim = 16};
  std::vector<std::byte> block = empty_block(format);
  const Entry entry = random_entry(format, 2);
  kv_store(format, block.data(), 31, entry.key.data(), entry.value.data());
  std::vector<float> key(24);
  kv_load(format, block.data(), 31, key.data(), nullptr);
  EXPECT_EQ(key, load_entry(format, block, 31).key);
}

TEST(KvBlock, Q8RoundsToTheNearestEven) {
  // With a largest magnitude of 127 the scale is 1.
  const std::vector<float> x = {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 3.49f, -126.6f};
  EXPECT_EQ(round_trip(KvCodec::kQ8, x), (std::vector<float>{127, 0, 2, 2, 0, -2, -2, 3, -127}));
}

TEST(KvBlock, Q8GroupsOfZerosAndOfSubnormalScalesReadAsZeros) {
  for (float x : {0.0f, -0.0f, 1e-40f, -1e-38f}) {
    for (float loaded : round_trip(KvCodec::kQ8, std::vector<float>(40, x))) EXPECT_EQ(loaded, 0.0f) << x;
  }
}

TEST(KvBlock, Q8KeepsTheLargestMagnitudeOverTheWholeRange) {
  RandomBits random(3);
  for (int exponent = -118; exponent < 128; ++exponent) {
    std::vector<float> x(32);
    for (float& v : x) v = std::ldexp(random.next_signed_unit(), exponent);
    const auto largest = static_cast<size_t>(
        std::max_element(x.begin(), x.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); }) - x.begin());
    const std::vector<float> loaded = round_trip(KvCodec::kQ8, x);
    EXPECT_NEAR(loaded[largest] / x[largest], 1.0f, 2e-7f) << exponent;
  }
}

TEST(KvBlock, NonFiniteComponentsAreNeverReadAsPlausibleNumbers) {
  for (float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> x(70, 1.0f);
    x[33] = bad;
    for (KvCodec codec : kPlainCodecs) {
      const std::vector<float> loaded = round_trip(codec, x);
      EXPECT_EQ(loaded[0], 1.0f);
      EXPECT_EQ(loaded[69], 1.0f);
      EXPECT_FALSE(std::isfinite(loaded[33])) << kv_codec_name(codec);
      if (codec == KvCodec::kQ8) {
        EXPECT_TRUE(std::isnan(loaded[32]) && std::isnan(loaded[63])) << "the group shares the scale";
      }
    }
  }
}

TEST(KvBlock, ACopiedEntryHasTheBitsOfAStoredOneAndTheOthersStay) {
  for (const KvCodec codec : kKvCodecs) {
    for (const bool value_in_key : {false, true}) {
      if (!kv_codec_fits(codec, value_in_key) || kv_codec_is_blockwise(codec)) continue;
      SCOPED_TRACE(kv_codec_name(codec));
      const KvBlockFormat format{.codec = codec, .key_dim = 70, .value_dim = 33, .value_in_key = value_in_key};
      const auto store = [&](std::vector<std::byte>& block, int slot, uint64_t seed) {
        const Entry entry = random_entry(format, seed);
        kv_store(format, block.data(), slot, entry.key.data(), entry.value.data());
      };
      std::vector<std::byte> from = empty_block(format);
      std::vector<std::byte> to = empty_block(format);
      std::vector<std::byte> expected = empty_block(format);
      for (int slot = 0; slot < kKvBlockSize; ++slot) {
        store(from, slot, 100 + static_cast<uint64_t>(slot));
        store(to, slot, 200 + static_cast<uint64_t>(slot));
        store(expected, slot, slot == 9 ? 105 : slot == 31 ? 200 : 200 + static_cast<uint64_t>(slot));
      }
      kv_copy(format, from.data(), 5, to.data(), 9);
      kv_copy(format, to.data(), 0, to.data(), 31);
      EXPECT_EQ(to, expected);
    }
  }
}

TEST(Hadamard, TurnsByTheSylvesterMatrixAndTwiceIsOnce) {
  for (const int32_t dim : {1, 2, 3, 4, 20, 33, 64, 80, 96, 128, 192, 512}) {
    std::vector<float> x = random_entry({.key_dim = dim, .value_dim = 1}, 1).key;
    std::vector<float> turned = x;
    hadamard_rotate(turned.data(), dim);
    const int32_t size = hadamard_size(dim);
    EXPECT_EQ(dim % size, 0);
    EXPECT_NE(dim / size % 2, 0) << "the largest power of two";
    for (int32_t i = 0; i < dim; ++i) {
      double sum = 0.0;
      for (int32_t j = 0; j < size; ++j) {
        const double term = static_cast<double>(x[static_cast<size_t>(i / size * size + j)]);
        sum += std::popcount(static_cast<uint32_t>(i % size & j)) % 2 == 0 ? term : -term;
      }
      EXPECT_NEAR(turned[static_cast<size_t>(i)], sum / std::sqrt(size), 2e-6 * std::sqrt(size)) << dim << " " << i;
    }
    hadamard_rotate(turned.data(), dim);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(turned[i], x[i], 2e-6) << dim;
  }
}

// How far components may be from what was stored, for numbers that are spread evenly over the components.
TEST(KvBlockHadamard, QuantsAreOffByHalfAStep) {
  for (const KvCodec codec : kHadamardCodecs) {
    for (const auto& [key_dim, value_dim] :
         {std::pair(128, 128), std::pair(45, 37), std::pair(80, 96), std::pair(7, 3)}) {
      const KvBlockFormat format{.codec = codec, .key_dim = key_dim, .value_dim = value_dim};
      std::vector<std::byte> block = empty_block(format);
      const auto check = [&](std::vector<float> stored, std::vector<float> loaded, int bits, const char* what) {
        const auto dim = static_cast<int32_t>(stored.size());
        hadamard_rotate(stored.data(), dim);
        hadamard_rotate(loaded.data(), dim);
        float max = 0.0f;
        double squares = 0.0;
        for (const float x : stored) {
          max = std::max(max, std::fabs(x));
          squares += static_cast<double>(x) * static_cast<double>(x);
        }
        const double rms = std::sqrt(squares / dim);
        const double half_step = bits == 8 ? max / 254.0 : bits == 4 ? max / 15.0 : 0.9957 * rms / 2.0;
        for (size_t i = 0; i < stored.size(); ++i) {
          // Two bits do not reach the largest ones.
          const double beyond =
              bits == 2 ? std::max(0.0, std::fabs(static_cast<double>(stored[i])) - 4.0 * half_step) : 0.0;
          ASSERT_NEAR(loaded[i], stored[i], 1.0001 * half_step + beyond + 2e-6) << kv_codec_name(codec) << " " << what;
        }
      };
      for (int slot = 0; slot < kKvBlockSize; ++slot) {
        const Entry stored = random_entry(format, static_cast<uint64_t>(slot));
        kv_store(format, block.data(), slot, stored.key.data(), stored.value.data());
      }
      for (int slot = 0; slot < kKvBlockSize; ++slot) {
        const Entry stored = random_entry(format, static_cast<uint64_t>(slot));
        const Entry loaded = load_entry(format, block, slot);
        check(stored.key, loaded.key, kv_hadamard_bits(codec).key, "key");
        check(stored.value, loaded.value, kv_hadamard_bits(codec).value, "value");
      }
    }
  }
}

TEST(KvBlockHadamard, FieldsLieAsTheHeaderSays) {
  // What is stored has, turned, one component that is not 0.
  const KvBlockFormat format{.codec = KvCodec::kHadamard4, .key_dim = 64, .value_dim = 64};
  for (int component : {0, 5, 13, 40, 63}) {
    std::vector<float> x(64, 0.0f);
    x[static_cast<size_t>(component)] = 120.0f;
    hadamard_rotate(x.data(), 64);
    std::vector<std::byte> block = empty_block(format);
    kv_store(format, block.data(), 6, x.data(), x.data());
    const auto field = [&](size_t byte, int index) { return read_at<uint8_t>(block, byte) >> (4 * index) & 15; };
    const auto c = static_cast<size_t>(component);
    // Components that are 0 become the level above or below it.
    EXPECT_EQ(field((c / 8 * 32 + 6) * 4 + c % 4, static_cast<int>(c / 4 % 2)), 15) << "as the level 7.5 + 8";
    const size_t other = c ^ 4;
    EXPECT_TRUE((field((other / 8 * 32 + 6) * 4 + other % 4, static_cast<int>(other / 4 % 2)) & 7) % 7 == 0);
    const auto values = static_cast<size_t>(format.key_bytes());
    EXPECT_EQ(field(values + ((c / 32 * 8 + 1) * 16 + c % 16) * 4 + 2, static_cast<int>(c / 16 % 2)), 7);
    EXPECT_NEAR(read_at<float>(block, static_cast<size_t>(format.key_scales_offset()) + 4 * 6), 1.0f, 1e-6);
    EXPECT_NEAR(read_at<float>(block, static_cast<size_t>(format.value_scales_offset()) + 4 * 6), 1.0f, 1e-6);
  }
}

// An outlier among small components ruins their neighbours where they share a scale, and not where it is spread.
TEST(KvBlockHadamard, AnOutlierCostsTheOthersLessThanInPlainQuants) {
  std::vector<float> x = random_entry({.key_dim = 128, .value_dim = 1}, 3).key;
  x[40] = 100.0f;
  const auto error = [&](KvCodec codec) {
    const std::vector<float> loaded = round_trip(codec, x);
    double sum = 0.0;
    for (size_t i = 32; i < 64; ++i) sum += i == 40 ? 0.0 : std::pow(static_cast<double>(loaded[i] - x[i]), 2);
    return std::sqrt(sum);
  };
  EXPECT_LT(error(KvCodec::kHadamard8), 0.5 * error(KvCodec::kQ8));
}

TEST(KvBlockHadamard, ZerosAndNonFiniteEntries) {
  for (const KvCodec codec : kHadamardCodecs) {
    for (const float loaded : round_trip(codec, std::vector<float>(48, 0.0f))) EXPECT_EQ(loaded, 0.0f);
    std::vector<float> x(48, 1.0f);
    x[20] = kInfinity;
    for (const float loaded : round_trip(codec, x)) EXPECT_TRUE(std::isnan(loaded)) << "the entry shares a scale";
  }
}

TEST(KvBlock, AValueCanBeReadAndReplacedAlone) {
  for (const KvCodec codec : kKvCodecs) {
    if (!kv_codec_fits(codec, false) || kv_codec_is_blockwise(codec)) continue;
    const KvBlockFormat format{.codec = codec, .key_dim = 40, .value_dim = 36};
    std::vector<std::byte> block = empty_block(format);
    std::vector<std::byte> expected = empty_block(format);
    const Entry first = random_entry(format, 1);
    const Entry second = random_entry(format, 2);
    for (const int slot : {8, 9, 10}) {
      kv_store(format, block.data(), slot, first.key.data(), first.value.data());
      kv_store(format, expected.data(), slot, first.key.data(), (slot == 9 ? second : first).value.data());
    }
    kv_store_value(format, block.data(), 9, second.value.data());
    EXPECT_EQ(block, expected) << kv_codec_name(codec);
    std::vector<float> value(36);
    kv_load_value(format, block.data(), 9, value.data());
    EXPECT_EQ(value, load_entry(format, block, 9).value) << kv_codec_name(codec);
  }
}

}  // namespace
}  // namespace witan
