// How queries, weights and sums are rounded, by kind of arithmetic.
#include "kernels/attention/attention.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/attention/attention_fixture.h"
#include "kernels/attention/attention_shapes.h"
#include "kernels/supported_isas.h"

namespace witan {
namespace {

using test::describe;
using test::expect_all_rows_match;
using test::fitting;
using test::format_of;
using test::KvEntries;
using test::Oracle;
using test::Queries;
using test::State;
using test::Variant;

TEST(Attention, FastPrecisionRoundsWithBf16AndQuantisedEntriesOnly) {
  const auto fast_arithmetic = [](Isa isa, KvCodec codec, bool value_in_key) {
    const auto from = [&](Isa weakest) { return isa == Isa::kReference || isa >= weakest; };
    const bool has_values = !value_in_key;
    const bool is_float = codec == KvCodec::kF32 || codec == KvCodec::kF16;
    const bool is_int8 = has_values && (codec == KvCodec::kQ8 || kv_hadamard_bits(codec).key != 0);
    if (is_int8 && from(Isa::kAvx512Vnni)) return AttentionArithmetic::kInt8;
    if (!is_int8 && !is_float && from(Isa::kAvx512Bf16)) return AttentionArithmetic::kBF16;
    return AttentionArithmetic::kF32;
  };
  for (Isa isa : test::supported_isas()) {
    for (KvCodec codec : kKvCodecs) {
      for (const bool value_in_key : {false, true}) {
        if (!kv_codec_fits(codec, value_in_key)) continue;
        const KvBlockFormat format = format_of({64, 32, value_in_key}, codec);
        const AttentionArithmetic expected = fast_arithmetic(isa, codec, value_in_key);
        const Variant exact{isa, Precision::kExact};
        const Variant fast{isa, Precision::kFast};
        EXPECT_EQ(exact.arithmetic(format), AttentionArithmetic::kF32);
        EXPECT_EQ(fast.arithmetic(format), expected) << describe(fast, format, 0);
        const KvEntries entries(format, 600);
        const Queries queries(64, {599});
        const State in_exact = test::attend(exact, entries.view(), queries.tile(0, 1))[0];
        const State in_fast = test::attend(fast, entries.view(), queries.tile(0, 1))[0];
        EXPECT_EQ(test::same_bits(in_exact, in_fast), expected == AttentionArithmetic::kF32)
            << describe(fast, format, 600);
      }
    }
  }
}

// Models attend most to a first token whose value is next to nothing.
TEST(Attention, AnEntryOfLargeWeightAndSmallValueDoesNotHideTheOthersOfItsBlock) {
  for (KvCodec codec : {KvCodec::kQ8, KvCodec::kHadamard8, KvCodec::kHadamard4}) {
    KvEntries entries(format_of(fitting({64, 64, false}, codec), codec), 32);
    const Queries queries(64, {31});
    std::vector<float> key = queries.rows[0];
    for (float& k : key) k *= 0.25f;
    entries.store(0, key, std::vector<float>(64, 1e-4f));
    for (const Variant& variant : test::variants(entries.format)) {
      const std::vector<float> out =
          test::finish(variant.isa, test::attend(variant, entries.view(), queries.tile(0, 1))[0]);
      const Oracle oracle(entries.view(), queries.tile(0, 1), 0);
      double error = 0.0;
      double size = 0.0;
      for (size_t c = 0; c < 64; ++c) {
        error += std::pow(static_cast<double>(out[c]) - oracle.out[c], 2);
        size += std::pow(oracle.out[c], 2);
      }
      EXPECT_LT(std::sqrt(error / size), 0.02) << describe(variant);
    }
  }
}

// Scores are all the same, so that of values far smaller than another one whole steps are left: none within its step.
TEST(Attention, RoundedWeightsOfKWeightStepEntriesShareAStep) {
  for (KvCodec codec : {KvCodec::kQ8, KvCodec::kHadamard8, KvCodec::kHadamard4}) {
    for (const int32_t small : {kKvBlockSize - 1, kWeightStep - 1, kWeightStep, 2 * kWeightStep - 1}) {
      KvEntries entries(format_of({64, 32, false}, codec), 2 * kWeightStep);
      const std::vector<float> key(64, 0.0f);
      for (int32_t i = 0; i < entries.num_entries; ++i) entries.store(i, key, std::vector<float>(32, 0.0f));
      std::vector<float> value(32, 0.0f);
      value[0] = 1.0f;
      entries.store(0, key, value);
      value[0] = 1e-3f;
      entries.store(small, key, value);
      const Queries queries(64, {entries.num_entries - 1});
      for (const Variant& variant : test::variants(entries.format)) {
        if (variant.arithmetic(entries.format) != AttentionArithmetic::kInt8) continue;
        const auto sum = [&](const KvView& view) {
          return test::split_states(variant, view, queries.tile(0, 1), 0)[0][2];
        };
        const float with = sum(entries.view());
        entries.store(small, key, std::vector<float>(32, 0.0f));
        const float without = sum(entries.view());
        entries.store(small, key, value);
        EXPECT_EQ(with != without, small >= kWeightStep) << describe(variant) << " entry " << small;
      }
    }
  }
}

// What attention_split_bf16_* says of its order: pairs, the odd one first.
TEST(Attention, Bf16SumsAddPairsTheOddOneFirst) {
  const Variant variant{Isa::kAvx512Bf16, Precision::kFast};
  if (!cpu_supports(variant.isa)) GTEST_SKIP() << "no BF16 instructions";
  for (int32_t num_entries : {1, 2, 31, 333, 512}) {
    const KvEntries entries(format_of({37, 21, false}, KvCodec::kBF16), num_entries);
    std::vector<std::vector<float>> keys(static_cast<size_t>(num_entries) + 1, std::vector<float>(38));
    std::vector<std::vector<float>> values(static_cast<size_t>(num_entries) + 1, std::vector<float>(21));
    for (int32_t i = 0; i < num_entries; ++i) {
      kv_load(entries.format, entries.blocks[static_cast<size_t>(i / kKvBlockSize)], i % kKvBlockSize,
              keys[static_cast<size_t>(i)].data(), values[static_cast<size_t>(i)].data());
    }
    Queries queries(37, {num_entries - 1, num_entries - 1});
    queries.scale = 0.25f;
    queries.rows[1].assign(37, 0.0f);  // weighs all entries 1
    const std::vector<State> states = test::attend(variant, entries.view(), queries.tile(0, 2));

    std::vector<float> query = queries.rows[0];
    for (float& q : query) q = bf16_to_f32(f32_to_bf16(q));
    query.push_back(0.0f);
    std::vector<float> scores;
    for (size_t i = 0; i < static_cast<size_t>(num_entries); ++i) {
      float score = 0.0f;
      for (size_t d = 0; d < 38; d += 2) {
        score = std::fma(keys[i][d], query[d], std::fma(keys[i][d + 1], query[d + 1], score));
      }
      scores.push_back(score * queries.scale);
    }
    const float max = *std::max_element(scores.begin(), scores.end());
    EXPECT_EQ(states[0][0], max) << num_entries;
    double denominator = 0.0;
    for (float score : scores) denominator += std::exp(static_cast<double>(score - max));
    EXPECT_NEAR(states[0][1], denominator, 1e-6 * denominator) << num_entries;

    EXPECT_EQ(states[1][1], static_cast<float>(num_entries));
    for (size_t c = 0; c < 21; ++c) {
      float sum = 0.0f;
      for (size_t i = 0; i < static_cast<size_t>(num_entries); i += 2) sum = values[i][c] + (values[i + 1][c] + sum);
      EXPECT_EQ(states[1][2 + c], sum) << num_entries << " entries, component " << c;
    }
  }
}

// Weights are relative to a score of those so far; here it rises by little, by more than weights may exceed 1, out of
// sight, and falls again. The second row sees the opposite of each score.
TEST(Attention, ScoresMayRiseAndFallWithinASplit) {
  constexpr float kLevels[] = {-3.0f, 4.0f, 20.0f, -30.0f, 21.0f, 160.0f, 155.0f, 158.0f};
  constexpr int32_t kDim = 64;
  for (KvCodec codec : kKvCodecs) {
    KvEntries entries(format_of(fitting({kDim, kDim, false}, codec), codec), kAttentionSplit);
    const int32_t key_dim = entries.format.key_dim;
    Queries queries(key_dim, {kAttentionSplit - 1, kAttentionSplit - 1});
    std::vector<float>& opposite = queries.rows[1];
    std::ranges::transform(queries.rows[0], opposite.begin(), std::negate());
    float square = 0.0f;
    for (const float q : queries.rows[0]) square += q * q;
    RandomBits random(11);
    std::vector<float> key(static_cast<size_t>(key_dim));
    std::vector<float> value(static_cast<size_t>(entries.format.value_dim));
    for (int32_t i = 0; i < entries.num_entries; ++i) {
      const float factor = kLevels[i / kWeightStep] / (square * queries.scale);
      for (size_t d = 0; d < key.size(); ++d) key[d] = factor * queries.rows[0][d] + 0.1f * random.next_signed_unit();
      for (float& v : value) v = random.next_signed_unit();
      entries.store(i, key, value);
    }
    for (const Variant& variant : test::variants(entries.format)) {
      for (const int32_t count : {kAttentionSplit, 7 * kWeightStep, 3 * kWeightStep, 2 * kWeightStep, kWeightStep}) {
        expect_all_rows_match(variant, entries.view(count), queries);
      }
    }
  }
}

TEST(Attention, LargeScoresPickTheirEntry) {
  for (KvCodec codec : {KvCodec::kF32, KvCodec::kBF16}) {
    // Scores of about +-1e6: all weight goes to the best entry, whatever split it is in.
    KvEntries entries(format_of(fitting({16, 16, false}, codec), codec), 1030, 9, 0.25f);
    for (int32_t best : {0, 511, 512, 1029}) {
      KvEntries with_best(entries.format, 1030, 9, 0.25f);
      std::vector<float> value(16);
      std::iota(value.begin(), value.end(), 1.0f);
      Queries queries(16, {1029});
      queries.scale = 1e5f;
      with_best.store(best, queries.rows[0], value);
      for (const Variant& variant : test::variants(entries.format)) {
        EXPECT_EQ(test::finish(variant.isa, test::attend(variant, with_best.view(), queries.tile(0, 1))[0]), value)
            << describe(variant);
      }
    }
  }
}

}  // namespace
}  // namespace witan
