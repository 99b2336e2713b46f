// The weights and largest scores of attention, and the keys that they are of.
#include "kernels/attention/attention.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/attention/attention_fixture.h"
#include "kernels/attention/attention_shapes.h"
#include "kernels/supported_isas.h"
#include "support/special_floats.h"
#include "tensor/half.h"

namespace witan {
namespace {

using test::describe;
using test::Dims;
using test::format_of;
using test::KvEntries;
using test::last_positions;
using test::Queries;
using test::some_channels;
using test::State;
using test::Variant;
using test::without_channels;

using test::kNaN;

using test::kInfinity;

// [rows][kAttentionSplit] and the rows' states, every row computed with all others.
struct Weights {
  std::vector<std::vector<float>> rows;
  std::vector<State> states;

  Weights(Isa isa, const KvView& view, const AttentionRows& tile, int32_t split) {
    const auto num_rows = static_cast<size_t>(tile.num_rows);
    rows.assign(num_rows, std::vector<float>(kAttentionSplit, kNaN));
    states.assign(num_rows, State(2, kNaN));
    std::vector<float*> row_pointers;
    std::vector<float*> state_pointers;
    for (auto& row : rows) row_pointers.push_back(row.data());
    for (auto& state : states) state_pointers.push_back(state.data());
    const test::AlignedBytes scratch = test::poisoned_bytes(attention_scratch_bytes(view, tile.num_rows));
    attention_weights(isa, view, tile, split, state_pointers.data(), row_pointers.data(), scratch.get());
  }
};

TEST(AttentionWeights, AreThoseOfTheAttentionOfEverySplit) {
  for (const Dims& dims : {Dims{64, 64, false}, Dims{33, 7, false}, Dims{576, 512, true}}) {
    for (KvCodec codec : kKvCodecs) {
      if (!kv_codec_fits(codec, dims.value_in_key)) continue;
      const KvEntries entries(format_of(dims, codec), 700);
      const Queries queries(dims.key_dim, last_positions(37, 2, 690));
      const AttentionRows rows = queries.tile(0, queries.rows.size());
      const KvView view = entries.view();
      for (const Isa isa : test::supported_isas()) {
        const std::string where = describe({isa, Precision::kExact}, entries.format, 700);
        for (int32_t split = 0; split < 2; ++split) {
          const Weights weights(isa, view, rows, split);
          const std::vector<State> states = test::split_states({isa, Precision::kExact}, view, rows, split);
          for (size_t r = 0; r < weights.rows.size(); ++r) {
            EXPECT_EQ(weights.states[r][0], states[r][0]) << where;
            EXPECT_EQ(weights.states[r][1], states[r][1]) << where;
            std::vector<double> sum(static_cast<size_t>(dims.value_dim), 0.0);
            std::vector<float> key(static_cast<size_t>(dims.key_dim));
            std::vector<float> value(static_cast<size_t>(dims.value_dim));
            for (int32_t i = 0; i < kAttentionSplit; ++i) {
              const float weight = weights.rows[r][static_cast<size_t>(i)];
              const int32_t entry = split * kAttentionSplit + i;
              if (entry > queries.positions[r]) {
                EXPECT_EQ(weight, 0.0f) << where << " row " << r << " entry " << entry;
                continue;
              }
              EXPECT_GT(weight, 0.0f) << where;
              kv_load(entries.format, entries.blocks[static_cast<size_t>(entry / kKvBlockSize)], entry % kKvBlockSize,
                      key.data(), value.data());
              for (size_t c = 0; c < sum.size(); ++c)
                sum[c] += static_cast<double>(weight) * static_cast<double>(value[c]);
            }
            for (size_t c = 0; c < sum.size(); ++c) EXPECT_NEAR(states[r][2 + c], sum[c], 1e-3) << where;
          }
        }
      }
    }
  }
}

TEST(AttentionWeights, OfKeysThatHaveLostComponentsAreThoseOfTheirAttention) {
  const std::vector<int32_t> channels = some_channels(64, 30);
  for (const KvCodec codec : {KvCodec::kF16, KvCodec::kBF16}) {
    const KvEntries entries(format_of({30, 40, false}, codec), 600);
    const KvView view = without_channels(entries, 64, channels);
    const Queries queries(64, last_positions(20, 2, 600));
    const AttentionRows rows = queries.tile(0, 20);
    for (const Isa isa : test::supported_isas()) {
      for (int32_t split = 0; split < 2; ++split) {
        const Weights weights(isa, view, rows, split);
        const std::vector<State> states = test::split_states({isa, Precision::kExact}, view, rows, split);
        for (size_t r = 0; r < states.size(); ++r) {
          EXPECT_EQ(weights.states[r][0], states[r][0]) << isa_name(isa);
          EXPECT_EQ(weights.states[r][1], states[r][1]) << isa_name(isa);
        }
      }
    }
  }
}

TEST(AttentionWeights, OfARowHaveTheSameBitsWhateverElseIsInTheTile) {
  const KvEntries entries(format_of({64, 64, false}, KvCodec::kF16), 600);
  const Queries queries(64, last_positions(70, 2, 560));
  for (const Isa isa : test::supported_isas()) {
    const Weights together(isa, entries.view(), queries.tile(0, 70), 1);
    for (size_t r : {size_t{0}, size_t{5}, size_t{69}}) {
      const Weights alone(isa, entries.view(), queries.tile(r, r + 1), 1);
      EXPECT_TRUE(test::same_bits(alone.rows[0], together.rows[r])) << isa_name(isa) << " row " << r;
      EXPECT_TRUE(test::same_bits(alone.states[0], together.states[r])) << isa_name(isa) << " row " << r;
    }
  }
}

// Of a split, by all rows together.
std::vector<float> largest_scores(Variant variant, const KvView& view, const AttentionRows& tile, int32_t split) {
  std::vector<float> largest(static_cast<size_t>(view.split_begin(split + 1) - view.split_begin(split)), kNaN);
  const test::AlignedBytes scratch = test::poisoned_bytes(attention_scratch_bytes(view, tile.num_rows));
  attention_largest_scores(variant.isa, variant.precision, view, tile, split, largest.data(), scratch.get());
  return largest;
}

TEST(AttentionLargestScores, AreThoseOfTheRowsAlone) {
  for (const Dims& dims : {Dims{64, 64, false}, Dims{33, 7, false}, Dims{576, 512, true}}) {
    for (const KvCodec codec : kKvCodecs) {
      if (!kv_codec_fits(codec, dims.value_in_key)) continue;
      const KvEntries entries(format_of(dims, codec), 700);
      const KvView view = entries.view();
      const Queries queries(dims.key_dim, std::vector<int32_t>(37, 699));
      for (int32_t split = 0; split < 2; ++split) {
        const int32_t begin = view.split_begin(split);
        const auto count = static_cast<size_t>(view.split_begin(split + 1) - begin);
        std::vector<float> keys(count * static_cast<size_t>(dims.key_dim));
        for (size_t i = 0; i < count; ++i) {
          view.load(begin + static_cast<int32_t>(i), keys.data() + i * static_cast<size_t>(dims.key_dim), nullptr);
        }
        for (const Variant& variant : test::variants(entries.format)) {
          const std::string where = describe(variant, entries.format, 700);
          const bool rounds =
              codec == KvCodec::kBF16 && variant.arithmetic(entries.format) == AttentionArithmetic::kBF16;
          std::vector<float> expected(count, -kInfinity);
          for (size_t r = 0; r < queries.rows.size(); ++r) {
            const std::vector<float> of_row = largest_scores(variant, view, queries.tile(r, r + 1), split);
            std::vector<float> query = queries.rows[r];
            if (rounds)
              std::ranges::transform(query, query.begin(), [](float x) { return bf16_to_f32(f32_to_bf16(x)); });
            for (size_t i = 0; i < count; ++i) {
              expected[i] = std::max(expected[i], of_row[i]);
              const float* key = keys.data() + i * static_cast<size_t>(dims.key_dim);
              const double score = std::inner_product(query.begin(), query.end(), key, 0.0);
              // As many products of at most 3 as there are components, each with a few roundings, turned ones twice.
              ASSERT_NEAR(of_row[i], score, 3.0 * dims.key_dim * 1e-6) << where << " row " << r << " entry " << i;
            }
          }
          EXPECT_EQ(largest_scores(variant, view, queries.tile(0, queries.rows.size()), split), expected) << where;
        }
      }
    }
  }
}

TEST(AttentionLargestScores, PassOverNaNs) {
  const KvEntries entries(format_of({32, 32, false}, KvCodec::kBF16), 70);
  Queries queries(32, {69, 69, 69});
  const Queries others(32, {69, 69});
  queries.rows[2][4] = kNaN;
  for (const Variant& variant : test::variants(entries.format)) {
    EXPECT_EQ(largest_scores(variant, entries.view(), queries.tile(0, 3), 0),
              largest_scores(variant, entries.view(), others.tile(0, 2), 0));
    EXPECT_EQ(largest_scores(variant, entries.view(), queries.tile(2, 3), 0), std::vector<float>(70, -kInfinity));
  }
}

TEST(KvView, KeysOfABlockHaveTheBitsOfThoseReadOneByOne) {
  const std::vector<int32_t> channels = some_channels(64, 30);
  const KvEntries older(format_of({30, 40, false}, KvCodec::kHadamard8), 64);
  const KvEntries newer(format_of({64, 40, false}, KvCodec::kBF16), 45);
  std::vector<const std::byte*> blocks = older.blocks;
  blocks.insert(blocks.end(), newer.blocks.begin(), newer.blocks.end());
  const KvView view{.format = newer.format,
                    .blocks = blocks.data(),
                    .num_entries = 64 + 45,
                    .num_demoted = 64,
                    .demoted_format = older.format,
                    .demoted_channels = channels.data()};
  for (const Isa isa : test::supported_isas()) {
    for (int32_t block = 0; block < view.num_blocks(); ++block) {
      const int32_t count = view.block_begin(block + 1) - view.block_begin(block);
      std::vector<float> keys(size_t{32} * 64, 12345.0f);
      std::vector<float> expected = keys;
      view.load_keys(isa, block, keys.data());
      for (int32_t i = 0; i < count; ++i) {
        view.load(view.block_begin(block) + i, expected.data() + size_t{64} * static_cast<size_t>(i), nullptr);
      }
      EXPECT_EQ(keys, expected) << isa_name(isa) << " block " << block;
    }
  }
}

}  // namespace
}  // namespace witan
