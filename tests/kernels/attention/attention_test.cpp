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
#include "kernels/supported_isas.h"

namespace witan {
namespace {

using test::KvEntries;
using test::Oracle;
using test::Queries;
using test::State;
using test::Variant;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Dims {
  int32_t key_dim;
  int32_t value_dim;
  bool value_in_key;
};

constexpr Dims kDims[] = {{16, 16, false},   {20, 20, false},   {64, 64, false}, {80, 80, false},  {96, 64, false},
                          {128, 128, false}, {192, 128, false}, {33, 7, false},  {24, 136, false}, {576, 512, true},
                          {20, 16, true},    {45, 37, true},    {192, 160, true}};

KvBlockFormat format_of(const Dims& dims, KvCodec codec) {
  return {.codec = codec, .key_dim = dims.key_dim, .value_dim = dims.value_dim, .value_in_key = dims.value_in_key};
}

// One of each way to store and to multiply entries.
constexpr KvCodec kSomeCodecs[] = {KvCodec::kF16,       KvCodec::kBF16,    KvCodec::kQ8,   KvCodec::kHadamard8Value4,
                                   KvCodec::kHadamard2, KvCodec::kLatent4, KvCodec::kKivi2};

// The dimensions, or of a latent within its key where the codec is for these.
Dims fitting(const Dims& dims, KvCodec codec) {
  if (kv_codec_fits(codec, dims.value_in_key)) return dims;
  return {dims.key_dim, std::min(dims.value_dim, dims.key_dim - 8), true};
}

std::string describe(const Variant& variant, const KvBlockFormat& format, int32_t num_entries) {
  return fmt::format("{} {} keys {} values {}{} entries {}", test::describe(variant), kv_codec_name(format.codec),
                     format.key_dim, format.value_dim, format.value_in_key ? " in key" : "", num_entries);
}

// `count` rows, `heads` per token, of which the last token sees all entries.
std::vector<int32_t> last_positions(int32_t count, int32_t heads, int32_t num_entries) {
  std::vector<int32_t> positions;
  const int32_t num_tokens = (count + heads - 1) / heads;
  for (int32_t r = 0; r < count; ++r) positions.push_back(std::max(0, num_entries - num_tokens + r / heads));
  return positions;
}

void expect_all_rows_match(const Variant& variant, const KvView& view, const Queries& queries) {
  const AttentionRows rows = queries.tile(0, queries.rows.size());
  const std::vector<State> states = test::attend(variant, view, rows);
  for (int32_t r = 0; r < rows.num_rows; ++r) {
    test::expect_matches(test::finish(variant.isa, states[static_cast<size_t>(r)]),
                         Oracle(view, rows, r, variant.arithmetic(view.format)),
                         describe(variant, view.format, view.num_entries) + fmt::format(" row {}", r));
  }
}

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
      EXPECT_EQ(states[0], test::empty_state(value_dim)) << test::describe(variant);
      EXPECT_EQ(states[1], test::empty_state(value_dim)) << test::describe(variant);
      EXPECT_GT(states[2][1], 1.0f) << test::describe(variant);
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
        EXPECT_TRUE(test::same_bits(merged, walked[r])) << test::describe(variant) << " row " << r;
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
      EXPECT_EQ(test::attend(variant, entries.view(), queries.tile(0, 5)), implicit) << test::describe(variant);
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
          EXPECT_TRUE(test::same_bits(states[r], expected[r])) << test::describe(variant) << " row " << r;
        }
      }
    }
  }
}

// So many components of a key, ascending, the first and the last among them.
std::vector<int32_t> some_channels(int32_t key_dim, int32_t count) {
  std::vector<int32_t> channels;
  for (int32_t i = 0; i < count; ++i) channels.push_back(i * (key_dim - 1) / (count - 1));
  return channels;
}

// All of a view's entries have been demoted: their keys have these components alone.
KvView without_channels(const KvEntries& entries, int32_t key_dim, const std::vector<int32_t>& channels) {
  KvView view = entries.view();
  view.num_demoted = view.num_entries;
  view.demoted_format = view.format;
  view.demoted_channels = channels.data();
  view.format.key_dim = key_dim;
  return view;
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
      EXPECT_EQ(test::attend(variant, view, queries.tile(0, 4)), expected) << test::describe(variant);
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
                             fmt::format("{} sink {}", test::describe(variant), sink));
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
      EXPECT_LT(std::sqrt(error / size), 0.02) << test::describe(variant);
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
        EXPECT_EQ(with != without, small >= kWeightStep) << test::describe(variant) << " entry " << small;
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
          << test::describe(variant);
      for (float x : test::finish(variant.isa, states[1])) EXPECT_TRUE(std::isnan(x)) << test::describe(variant);
      EXPECT_TRUE(test::same_bits(states[2], expected[2])) << test::describe(variant);
    }
  }
}

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
std::vector<float> largest_scores(Isa isa, const KvView& view, const AttentionRows& tile, int32_t split) {
  std::vector<float> largest(static_cast<size_t>(view.split_begin(split + 1) - view.split_begin(split)), kNaN);
  const test::AlignedBytes scratch = test::poisoned_bytes(attention_scratch_bytes(view, tile.num_rows));
  attention_largest_scores(isa, view, tile, split, largest.data(), scratch.get());
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
        for (const Isa isa : test::supported_isas()) {
          const std::string where = describe({isa, Precision::kExact}, entries.format, 700);
          std::vector<float> expected(count, -kInfinity);
          for (size_t r = 0; r < queries.rows.size(); ++r) {
            const std::vector<float> of_row = largest_scores(isa, view, queries.tile(r, r + 1), split);
            for (size_t i = 0; i < count; ++i) {
              expected[i] = std::max(expected[i], of_row[i]);
              const float* key = keys.data() + i * static_cast<size_t>(dims.key_dim);
              const double score = std::inner_product(queries.rows[r].begin(), queries.rows[r].end(), key, 0.0);
              // As many products of at most 3 as there are components, each with a few roundings, turned ones twice.
              ASSERT_NEAR(of_row[i], score, 3.0 * dims.key_dim * 1e-6) << where << " row " << r << " entry " << i;
            }
          }
          EXPECT_EQ(largest_scores(isa, view, queries.tile(0, queries.rows.size()), split), expected) << where;
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
  for (const Isa isa : test::supported_isas()) {
    EXPECT_EQ(largest_scores(isa, entries.view(), queries.tile(0, 3), 0),
              largest_scores(isa, entries.view(), others.tile(0, 2), 0));
    EXPECT_EQ(largest_scores(isa, entries.view(), queries.tile(2, 3), 0), std::vector<float>(70, -kInfinity));
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
            << test::describe(variant);
      }
    }
  }
}

}  // namespace
}  // namespace witan
