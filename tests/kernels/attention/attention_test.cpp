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

namespace witan {
namespace {

using test::describe;
using test::Dims;
using test::expect_all_rows_match;
using test::fitting;
using test::format_of;
using test::kDims;
using test::kSomeCodecs;
using test::KvEntries;
using test::last_positions;
using test::Oracle;
using test::Queries;
using test::some_channels;
using test::State;
using test::Variant;
using test::without_channels;

using test::kInfinity;
using test::kNaN;

TEST(Attention, MatchesTheOracleForEveryShapeAndCodec) {
  for (const Dims& dims : kDims) {
    for (KvCodec codec : kKvCodecs) {
      if (!kv_codec_fits(codec, dims.value_in_key)) continue;
      for (int32_t num_entries : {1, 33, 513}) {
        const KvEntries entries(format_of(dims, codec), num_entries);
        const Queries queries(dims.key_dim, last_positions(3, 2, num_entries));
        for (const Variant& variant : test::variants(entries.format))
          expect_all_rows_match(variant, entries.view(), queries);
      }
    }
  }
}

TEST(Attention, MatchesTheOracleForAnyNumberOfEntriesAndRows) {
  for (KvCodec codec : kKvCodecs) {
    for (int32_t num_entries : {1, 2, 31, 32, 33, 64, 511, 512, 513, 1500}) {
      const KvEntries entries(format_of(fitting({64, 64, false}, codec), codec), num_entries);
      for (int32_t num_rows : {1, 2, 5, 8, 13}) {
        const Queries queries(64, last_positions(num_rows, 4, num_entries));
        for (const Variant& variant : test::variants(entries.format)) {
          if (variant.isa == Isa::kReference && num_rows > 2) continue;  // slow, and rows are apart in it
          expect_all_rows_match(variant, entries.view(), queries);
        }
      }
    }
  }
}

TEST(Attention, BiasesAreAddedToTheScaledScores) {
  for (KvCodec codec : kKvCodecs) {
    for (int32_t num_entries : {1, 33, 600}) {
      const KvEntries entries(format_of(fitting({20, 20, false}, codec), codec), num_entries);
      const Queries queries(20, last_positions(5, 1, num_entries));
      AttentionRows rows = queries.tile(0, queries.rows.size());
      // Readable to the end of the last block, where no bias is.
      std::vector<std::vector<float>> biases;
      std::vector<const float*> pointers;
      RandomBits random(7);
      for (int32_t r = 0; r < rows.num_rows; ++r) {
        std::vector<float>& row = biases.emplace_back(static_cast<size_t>((num_entries + 31) / 32 * 32), kNaN);
        for (int32_t i = 0; i < num_entries; ++i) row[static_cast<size_t>(i)] = 4.0f * random.next_signed_unit();
      }
      for (const auto& row : biases) pointers.push_back(row.data());
      rows.biases = pointers.data();
      for (const Variant& variant : test::variants(entries.format)) {
        const std::vector<State> states = test::attend(variant, entries.view(), rows);
        for (int32_t r = 0; r < rows.num_rows; ++r) {
          test::expect_matches(test::finish(variant.isa, states[static_cast<size_t>(r)]),
                               Oracle(entries.view(), rows, r, variant.arithmetic(entries.format)),
                               describe(variant, entries.format, num_entries));
        }
      }
    }
  }
}

TEST(Attention, ARowHasTheSameBitsWhateverElseIsInTheTile) {
  for (const Dims& dims : {Dims{64, 64, false}, Dims{20, 20, false}, Dims{80, 128, false}, Dims{96, 80, true}}) {
    for (KvCodec codec : kKvCodecs) {
      if (!kv_codec_fits(codec, dims.value_in_key)) continue;
      const KvEntries entries(format_of(dims, codec), 150);
      // Row positions with repeats, jumps and rows that see next to nothing.
      std::vector<int32_t> positions;
      for (int32_t r = 0; r < 40; ++r) positions.push_back(r % 7 == 3 ? r : 105 + r / 3 * 3);
      const Queries queries(dims.key_dim, positions);
      for (const Variant& variant : test::variants(entries.format)) {
        std::vector<State> alone;
        for (size_t r = 0; r < 40; ++r)
          alone.push_back(test::split_states(variant, entries.view(), queries.tile(r, r + 1), 0)[0]);
        for (size_t num_rows = 1; num_rows <= 40; ++num_rows) {
          const size_t begin = (num_rows * 5) % (41 - num_rows);
          const std::vector<State> together =
              test::split_states(variant, entries.view(), queries.tile(begin, begin + num_rows), 0);
          for (size_t r = 0; r < num_rows; ++r) {
            ASSERT_TRUE(test::same_bits(together[r], alone[begin + r]))
                << describe(variant, entries.format, 150) << " row " << begin + r << " in a tile of " << num_rows;
          }
        }
      }
    }
  }
}

TEST(Attention, EntriesThatARowDoesNotSeeContributeNothing) {
  for (const Dims& dims : {Dims{64, 64, false}, Dims{20, 20, false}, Dims{48, 32, true}}) {
    for (KvCodec codec : kKvCodecs) {
      if (!kv_codec_fits(codec, dims.value_in_key)) continue;
      // What is rounded in whole blocks depends on all entries of these.
      const int32_t num_seen = kv_codec_is_blockwise(codec) ? 64 : 77;
      const KvEntries seen(format_of(dims, codec), num_seen, 5);
      const Queries queries(dims.key_dim, {num_seen - 1, num_seen, 1199, num_seen - 1, 500});
      // Scores far above all others and scores of NaN; values that even a weight of 0 would turn into NaN.
      for (float unseen_key : {1e4f, -1e4f, kNaN}) {
        KvEntries more(format_of(dims, codec), 1200, 5);
        const std::vector<float> key(static_cast<size_t>(dims.key_dim), unseen_key);
        const std::vector<float> value(static_cast<size_t>(dims.value_dim), kInfinity);
        for (int32_t i = num_seen; i < more.num_entries; ++i) more.store(i, key, value);
        for (const Variant& variant : test::variants(seen.format)) {
          const State expected = test::attend(variant, seen.view(), queries.tile(0, 1))[0];
          for (int32_t num_entries : {78, 79, 95, 96, 97, 511, 512, 513, 1200}) {
            const State alone = test::attend(variant, more.view(num_entries), queries.tile(0, 1))[0];
            ASSERT_TRUE(test::same_bits(alone, expected)) << describe(variant, seen.format, num_entries);
            if (variant.isa == Isa::kReference) continue;  // slow, and rows are apart in it
            const State in_tile = test::attend(variant, more.view(num_entries), queries.tile(0, 5))[0];
            ASSERT_TRUE(test::same_bits(in_tile, expected))
                << describe(variant, seen.format, num_entries) << " in a tile";
          }
        }
      }
    }
  }
}

TEST(Attention, ASplitThatARowDoesNotSeeGivesTheEmptyState) {
  for (KvCodec codec : kSomeCodecs) {
    const KvEntries entries(format_of(fitting({32, 24, false}, codec), codec), 1100);
    for (const Variant& variant : test::variants(entries.format)) {
      const Queries queries(32, {-1, 511, 1099});
      const std::vector<State> states = test::split_states(variant, entries.view(), queries.tile(0, 3), 1);
      const int32_t value_dim = entries.format.value_dim;
      EXPECT_EQ(states[0], test::empty_state(value_dim)) << describe(variant);
      EXPECT_EQ(states[1], test::empty_state(value_dim)) << describe(variant);
      EXPECT_GT(states[2][1], 1.0f) << describe(variant);
      // Nothing was seen at all: zeros, not NaN.
      EXPECT_EQ(test::finish(variant.isa, test::attend(variant, entries.view(), queries.tile(0, 1))[0]),
                std::vector<float>(static_cast<size_t>(value_dim), 0.0f));
    }
  }
}

TEST(Attention, OneThreadWalkingEqualsSplitsTakenInAnyOrderAndTile) {
  for (KvCodec codec : kSomeCodecs) {
    const KvEntries entries(format_of(fitting({64, 64, false}, codec), codec), 1500);
    const Queries queries(64, last_positions(24, 8, 1500));
    for (const Variant& variant : test::variants(entries.format)) {
      const std::vector<State> walked = test::attend(variant, entries.view(), queries.tile(0, 24));
      std::vector<std::vector<State>> splits(3);
      for (int32_t split : {2, 0, 1}) {
        for (size_t begin = 0; begin < 24; begin += 8) {
          for (State& state : test::split_states(variant, entries.view(), queries.tile(begin, begin + 8), split)) {
            splits[static_cast<size_t>(split)].push_back(state);
          }
        }
      }
      for (size_t r = 0; r < 24; ++r) {
        const int32_t value_dim = entries.format.value_dim;
        State merged = test::empty_state(value_dim);
        for (const auto& split : splits) merge_attention_state(variant.isa, merged.data(), split[r].data(), value_dim);
        EXPECT_TRUE(test::same_bits(merged, walked[r])) << describe(variant) << " row " << r;
      }
    }
  }
}

TEST(Attention, WhatWasMadeOfQueriesServesTheNextSplits) {
  for (KvCodec codec : kKvCodecs) {
    const KvEntries entries(format_of(fitting({64, 64, false}, codec), codec), 1500);
    const Queries queries(64, last_positions(9, 3, 1500));
    for (const Variant& variant : test::variants(entries.format)) {
      if (variant.isa == Isa::kReference) continue;
      const KvView view = entries.view();
      AttentionRows rows = queries.tile(0, 9);
      const test::AlignedBytes scratch = test::poisoned_bytes(attention_scratch_bytes(view, rows.num_rows));
      const auto num_floats = static_cast<size_t>(attention_state_floats(view.format.value_dim));
      std::vector<State> states(9, State(num_floats));
      std::vector<float*> pointers;
      for (State& state : states) pointers.push_back(state.data());
      for (int32_t split = 0; split < view.num_splits(); ++split) {
        rows.same_as_before = split > 0;
        attention_split(variant.isa, variant.precision, view, rows, split, pointers.data(), scratch.get());
        rows.same_as_before = false;
        EXPECT_EQ(states, test::split_states(variant, view, rows, split)) << describe(variant, entries.format, 1500);
      }
    }
  }
}

TEST(Attention, PositionsDecideWhatIsSeenNotTheOrderOfEntries) {
  for (KvCodec codec : {KvCodec::kBF16, KvCodec::kLatent8, KvCodec::kKivi4}) {
    for (int32_t num_entries : {40, 600}) {
      KvEntries entries(format_of(fitting({40, 40, false}, codec), codec), num_entries, 6);
      // A permutation with gaps, as after compaction: 3 (7 i mod n).
      for (int32_t i = 0; i < num_entries; ++i) {
        entries.positions.push_back(static_cast<int32_t>(3 * (int64_t{7} * i % num_entries)));
      }
      for (int32_t window : {0, 1, 100, 2000000000}) {
        Queries queries(40, {0, 5, 50, 60, 60, 3 * num_entries / 2, 3 * num_entries, 3 * num_entries + 70, INT32_MAX});
        queries.window = window;
        for (const Variant& variant : test::variants(entries.format))
          expect_all_rows_match(variant, entries.view(), queries);
      }
    }
  }
}

TEST(Attention, PositionsThatEqualTheEntriesChangeNoBit) {
  for (KvCodec codec : kSomeCodecs) {
    KvEntries entries(format_of(fitting({64, 64, false}, codec), codec), 700);
    Queries queries(64, {699, 650, 3, 512, 511});
    queries.window = 300;
    for (const Variant& variant : test::variants(entries.format)) {
      entries.positions.clear();
      const std::vector<State> implicit = test::attend(variant, entries.view(), queries.tile(0, 5));
      entries.positions.resize(700);
      std::iota(entries.positions.begin(), entries.positions.end(), 0);
      EXPECT_EQ(test::attend(variant, entries.view(), queries.tile(0, 5)), implicit) << describe(variant);
    }
  }
}

// A view of two kinds of entries is split where the second begins.
TEST(Attention, DemotedEntriesAreAttendedInTheirOwnFormatBeforeTheOthers) {
  for (const KvCodec codec : {KvCodec::kBF16, KvCodec::kF16, KvCodec::kQ8}) {
    for (const int32_t num_demoted : {1, 40, 512, 700}) {
      KvEntries demoted(format_of({64, 64, false}, KvCodec::kHadamard4), num_demoted, 3);
      KvEntries others(format_of({64, 64, false}, codec), 530, 4);
      const int32_t count = num_demoted + others.num_entries;
      std::vector<const std::byte*> blocks = demoted.blocks;
      blocks.insert(blocks.end(), others.blocks.begin(), others.blocks.end());
      const KvView view{.format = others.format,
                        .blocks = blocks.data(),
                        .num_entries = count,
                        .num_demoted = num_demoted,
                        .demoted_format = demoted.format};
      for (int32_t i = 0; i < others.num_entries; ++i) others.positions.push_back(num_demoted + i);
      const Queries queries(64, {count - 1, num_demoted, num_demoted / 2, count - 3});
      ASSERT_EQ(view.num_splits(), demoted.view().num_splits() + others.view().num_splits());
      EXPECT_EQ(view.split_begin(view.num_splits()), count);
      for (const int32_t entry : {0, num_demoted - 1, num_demoted, count - 1}) {
        const bool is_demoted = entry < num_demoted;
        std::vector<float> key(64), value(64), expected_key(64), expected_value(64);
        view.load(entry, key.data(), value.data());
        (is_demoted ? demoted : others)
            .view()
            .load(is_demoted ? entry : entry - num_demoted, expected_key.data(), expected_value.data());
        EXPECT_EQ(key, expected_key);
        EXPECT_EQ(value, expected_value);
      }
      for (const Variant& variant : test::variants(others.format)) {
        std::vector<State> expected = test::attend(variant, demoted.view(), queries.tile(0, 4));
        for (int32_t split = 0; split < others.view().num_splits(); ++split) {
          const std::vector<State> next = test::split_states(variant, others.view(), queries.tile(0, 4), split);
          for (size_t r = 0; r < 4; ++r) {
            merge_attention_state(variant.isa, expected[r].data(), next[r].data(), 64);
          }
        }
        const std::vector<State> states = test::attend(variant, view, queries.tile(0, 4));
        for (size_t r = 0; r < 4; ++r) {
          EXPECT_TRUE(test::same_bits(states[r], expected[r])) << describe(variant) << " row " << r;
        }
      }
    }
  }
}

TEST(Attention, AComponentThatKeysHaveLostCountsAsZero) {
  struct Case {
    int32_t key_dim;
    int32_t num_channels;
  };
  for (const KvCodec codec : {KvCodec::kF32, KvCodec::kF16, KvCodec::kBF16}) {
    for (const auto& [key_dim, num_channels] : {Case{64, 26}, Case{20, 7}, Case{80, 2}}) {
      const std::vector<int32_t> channels = some_channels(key_dim, num_channels);
      for (const int32_t num_entries : {1, 70, 600}) {
        const KvEntries entries(format_of({num_channels, 24, false}, codec), num_entries);
        const KvView view = without_channels(entries, key_dim, channels);
        KvEntries zeroed(format_of({key_dim, 24, false}, codec), num_entries);
        for (int32_t i = 0; i < num_entries; ++i) {
          std::vector<float> key(static_cast<size_t>(key_dim), kNaN);
          std::vector<float> value(24);
          view.load(i, key.data(), value.data());
          std::vector<float> stored(static_cast<size_t>(num_channels));
          entries.view().load(i, stored.data(), value.data());
          std::vector<float> expected(static_cast<size_t>(key_dim), 0.0f);
          for (size_t c = 0; c < channels.size(); ++c) expected[static_cast<size_t>(channels[c])] = stored[c];
          ASSERT_EQ(key, expected);
          zeroed.store(i, key, value);
        }
        const Queries queries(key_dim, last_positions(21, 3, num_entries));
        const AttentionRows rows = queries.tile(0, queries.rows.size());
        for (const Variant& variant : test::variants(entries.format)) {
          const std::vector<State> states = test::attend(variant, view, rows);
          for (int32_t r = 0; r < rows.num_rows; ++r) {
            test::expect_matches(test::finish(variant.isa, states[static_cast<size_t>(r)]),
                                 Oracle(zeroed.view(), rows, r, variant.arithmetic(entries.format)),
                                 describe(variant, view.format, num_entries) + fmt::format(" row {}", r));
          }
        }
      }
    }
  }
}

// Whatever the codec makes of a key, it is made of what has stayed of it.
TEST(Attention, QueriesLoseTheComponentsThatKeysHaveLost) {
  constexpr int32_t kKeyDim = 96;
  for (const KvCodec codec : kKvCodecs) {
    if (!kv_codec_fits(codec, false)) continue;
    const std::vector<int32_t> channels = some_channels(kKeyDim, 64);
    const KvEntries entries(format_of({64, 40, false}, codec), 700);
    const KvView view = without_channels(entries, kKeyDim, channels);
    const Queries queries(kKeyDim, last_positions(18, 2, 700));
    Queries chosen = queries;
    for (size_t r = 0; r < queries.rows.size(); ++r) {
      chosen.rows[r].clear();
      for (const int32_t channel : channels) chosen.rows[r].push_back(queries.rows[r][static_cast<size_t>(channel)]);
      chosen.pointers[r] = chosen.rows[r].data();
    }
    for (const Variant& variant : test::variants(entries.format)) {
      const std::vector<State> states = test::attend(variant, view, queries.tile(0, 18));
      const std::vector<State> expected = test::attend(variant, entries.view(), chosen.tile(0, 18));
      for (size_t r = 0; r < states.size(); ++r) {
        EXPECT_TRUE(test::same_bits(states[r], expected[r]))
            << describe(variant, entries.format, 700) << fmt::format(" row {}", r);
      }
    }
  }
}

TEST(Attention, AWindowHidesWhatLiesBeforeIt) {
  for (KvCodec codec : kSomeCodecs) {
    const KvEntries entries(format_of(fitting({64, 64, false}, codec), codec), 1100);
    for (int32_t window : {1, 31, 32, 33, 64, 512, 513, 1099, 1100, 5000}) {
      Queries queries(64, {0, 30, 31, 32, 511, 512, 1000, 1099, 1099, 1099, 1098});
      queries.window = window;
      for (const Variant& variant : test::variants(entries.format))
        expect_all_rows_match(variant, entries.view(), queries);
    }
  }
}

TEST(Attention, BlocksBeforeTheWindowAreNotRead) {
  for (KvCodec codec : kSomeCodecs) {
    // A sliding-window layer gives back the blocks that no row can see any more.
    KvEntries entries(format_of(fitting({64, 64, false}, codec), codec), 1100);
    Queries queries(64, {1098, 1098, 1099, 1099});
    queries.window = 40;
    for (const Variant& variant : test::variants(entries.format)) {
      const std::vector<State> expected = test::attend(variant, entries.view(), queries.tile(0, 4));
      KvView view = entries.view();
      std::vector<const std::byte*> blocks = entries.blocks;
      std::fill_n(blocks.begin(), (1098 - 40) / kKvBlockSize, nullptr);
      view.blocks = blocks.data();
      EXPECT_EQ(test::attend(variant, view, queries.tile(0, 4)), expected) << describe(variant);
    }
  }
}

TEST(Attention, ASinkTakesItsShareOfTheDenominator) {
  for (KvCodec codec : kSomeCodecs) {
    const KvEntries entries(format_of(fitting({32, 19, false}, codec), codec), 520);
    const Queries queries(32, {519});
    const AttentionRows rows = queries.tile(0, 1);
    for (float sink : {-3.0f, 0.0f, 2.5f, 30.0f, -200.0f}) {
      for (const Variant& variant : test::variants(entries.format)) {
        const State state = test::attend(variant, entries.view(), rows)[0];
        test::expect_matches(test::finish(variant.isa, state, &sink),
                             Oracle(entries.view(), rows, 0, variant.arithmetic(entries.format), &sink),
                             fmt::format("{} sink {}", describe(variant), sink));
      }
    }
  }
}

TEST(Attention, SinksOfEmptyStatesAndOfMinusInfinityAreSane) {
  for (Isa isa : test::supported_isas()) {
    const float sink = 1.5f;
    EXPECT_EQ(test::finish(isa, test::empty_state(20), &sink), std::vector<float>(20, 0.0f)) << isa_name(isa);
    const float none = -kInfinity;
    EXPECT_EQ(test::finish(isa, test::empty_state(20), &none), std::vector<float>(20, 0.0f)) << isa_name(isa);
    const State state = {0.5f, 2.0f, 1.0f, -3.0f};
    EXPECT_EQ(test::finish(isa, state, &none), test::finish(isa, state)) << isa_name(isa);
  }
}

TEST(AttentionState, AnEmptyStateIsNeutralInBothPlaces) {
  for (Isa isa : test::supported_isas()) {
    for (int32_t value_dim : {1, 6, 14, 16, 33, 128}) {
      const auto num_floats = static_cast<size_t>(attention_state_floats(value_dim));
      State state(num_floats);
      RandomBits random(7);
      for (float& x : state) x = random.next_signed_unit();
      state[1] = 3.0f;
      State into = test::empty_state(value_dim);
      merge_attention_state(isa, into.data(), state.data(), value_dim);
      EXPECT_TRUE(test::same_bits(into, state)) << isa_name(isa);
      merge_attention_state(isa, into.data(), test::empty_state(value_dim).data(), value_dim);
      EXPECT_TRUE(test::same_bits(into, state)) << isa_name(isa);
      State both = test::empty_state(value_dim);
      merge_attention_state(isa, both.data(), test::empty_state(value_dim).data(), value_dim);
      EXPECT_TRUE(test::same_bits(both, test::empty_state(value_dim))) << isa_name(isa);
    }
  }
}

TEST(AttentionState, MergingMatchesTheReferenceAndStaysInBounds) {
  for (Isa isa : test::supported_isas()) {
    for (int32_t value_dim : {1, 7, 15, 16, 17, 64, 129}) {
      for (float max_difference : {-200.0f, -5.0f, 0.0f, 5.0f, 200.0f}) {
        RandomBits random(8);
        State a(static_cast<size_t>(attention_state_floats(value_dim)));
        State b(a.size());
        for (float& x : a) x = random.next_signed_unit();
        for (float& x : b) x = random.next_signed_unit();
        a[1] = 2.0f;
        b[1] = 5.0f;
        b[0] = a[0] + max_difference;
        State expected = a;
        merge_attention_state(Isa::kReference, expected.data(), b.data(), value_dim);
        a.push_back(12345.0f);
        merge_attention_state(isa, a.data(), b.data(), value_dim);
        EXPECT_EQ(a.back(), 12345.0f);
        // Terms of at most 5, each with a rounded difference of maxima as its exponent, exp within an ulp and a
        // product.
        for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(a[i], expected[i], 5 * 8 * 1.2e-7) << isa_name(isa);
      }
    }
  }
}

TEST(Attention, ANaNStaysInItsRowAndIsNotHidden) {
  for (KvCodec codec : kSomeCodecs) {
    const KvEntries entries(format_of(fitting({32, 32, false}, codec), codec), 600);
    Queries queries(32, {599, 599, 599});
    const Queries clean = queries;
    queries.rows[1][4] = kNaN;
    for (const Variant& variant : test::variants(entries.format)) {
      const std::vector<State> states = test::attend(variant, entries.view(), queries.tile(0, 3));
      const std::vector<State> expected = test::attend(variant, entries.view(), clean.tile(0, 3));
      EXPECT_TRUE(test::same_bits(states[0], test::attend(variant, entries.view(), queries.tile(0, 1))[0]))
          << describe(variant);
      for (float x : test::finish(variant.isa, states[1])) EXPECT_TRUE(std::isnan(x)) << describe(variant);
      EXPECT_TRUE(test::same_bits(states[2], expected[2])) << describe(variant);
    }
  }
}

}  // namespace
}  // namespace witan
