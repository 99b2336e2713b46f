#include "kv/policy/kv_compression.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace witan {
namespace {

constexpr int32_t kLayers = 2;
constexpr int32_t kHeads = 2;
constexpr int32_t kGroup = 2;
constexpr int32_t kDim = 8;
constexpr int32_t kEntries = 100;
constexpr float kScale = 0.5f;

class KvCompressionTest : public testing::Test {
 protected:
  KvCompressionTest() {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    EXPECT_TRUE(kv_.reserve(sequence_, kEntries));
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      for (int32_t head = 0; head < kHeads; ++head) {
        for (int32_t i = 0; i < kEntries; ++i) {
          std::vector<float> key(kDim);
          std::ranges::generate(key, [&] { return normal(random); });
          const KvCache::Slot slot = kv_.slot(sequence_, layer, head, i);
          kv_store(kv_.block_format(layer), slot.block, slot.slot, key.data(), key.data());
        }
      }
    }
    kv_.commit(sequence_, std::vector<TokenId>(kEntries, 1), std::vector<TokenRole>(kEntries, TokenRole::kPrompt));
    evidence_.window = std::make_unique<QueryWindow>(pool_, kLayers, kHeads * kGroup, kDim, kEntries - 32, 32);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      evidence_.window->scoring(layer).scale = kScale;
      for (int32_t token = kEntries - 32; token < kEntries; ++token) {
        std::generate_n(evidence_.window->queries(layer, token), kHeads * kGroup * kDim,
                        [&] { return normal(random); });
      }
    }
  }

  KvChoice choose(const std::string& policy, const KvText& text = {.num_prompt_tokens = kEntries}) {
    return choose(parse_kv_policy(policy), text);
  }

  KvChoice choose(const KvPolicy& policy, const KvText& text) {
    ComputeContext ctx{.threads = threads_, .scratch = scratch_, .isa = select_isa(), .precision = Precision::kExact};
    return choose_kept(ctx, kv_, sequence_, text, policy, &evidence_);
  }

  // Of the softmax weights of the last 32 tokens, the share that `kept` [tables] has, on average.
  double attention_of(const std::vector<std::vector<int32_t>>& kept) {
    double sum = 0.0;
    for (int32_t table = 0; table < kLayers * kHeads; ++table) {
      const int32_t layer = table / kHeads;
      const int32_t head = table % kHeads;
      const KvView view = kv_.view(sequence_, layer, head, kEntries);
      for (int32_t token = kEntries - 32; token < kEntries; ++token) {
        for (int32_t g = 0; g < kGroup; ++g) {
          const float* query = evidence_.window->queries(layer, token) + (head * kGroup + g) * kDim;
          std::vector<double> weights;
          for (int32_t i = 0; i <= token; ++i) {
            float key[kDim];
            kv_load(view.format, view.blocks[i / 32], i % 32, key, nullptr);
            weights.push_back(std::exp(static_cast<double>(kScale) * std::inner_product(key, key + kDim, query, 0.0)));
          }
          double part = 0.0;
          for (const int32_t i : kept[static_cast<size_t>(table)]) {
            if (i <= token) part += weights[static_cast<size_t>(i)];
          }
          sum += part / std::accumulate(weights.begin(), weights.end(), 0.0);
        }
      }
    }
    return sum / (kLayers * kHeads * 32 * kGroup);
  }

  MemoryPool pool_{size_t{64} << 20};
  KvCache kv_{
      pool_,
      {.layers = std::vector<KvLayerSpec>(kLayers, {.num_kv_heads = kHeads, .key_dim = kDim, .value_dim = kDim}),
       .codec = KvCodec::kF32,
       .capacity_bytes = size_t{16} << 20}};
  SequenceId sequence_ = kv_.create();
  KvEvidence evidence_;
  ThreadPool threads_{2};
  Scratch scratch_{pool_};
};

TEST_F(KvCompressionTest, PinnedEntriesStayWhateverTheyAreWorth) {
  const KvText text{.num_prompt_tokens = kEntries, .pinned = {{.begin = 10, .end = 14}, {.begin = 60, .end = 61}}};
  for (const char* policy : {"keynorm,tokens=12", "snapkv(window=4),tokens=12", "adakv(window=4),tokens=12",
                             "pyramidkv(window=1,slope=2),tokens=12", "kvcompose(window=4),tokens=20", "tova,tokens=12",
                             "chunkkv(window=4,chunk=2),tokens=16", "streamingllm,tokens=12",
                             "snapkv(window=2),global,tokens=12", "chunkkv(window=4,reuse=2),tokens=30"}) {
    const KvChoice choice = choose(policy, text);
    for (const auto& kept : choice.kept) EXPECT_THAT(kept, testing::IsSupersetOf({10, 11, 12, 13, 60})) << policy;
    EXPECT_NE(choose(policy).kept, choice.kept) << policy;
  }
}

// What a sequence does not read is judged as what it reads: of all entries the same ones stay, whatever was read
// before.
TEST_F(KvCompressionTest, EntriesThatLieAsideAreJudgedWithTheOthers) {
  const std::vector<std::string> policies = {"keynorm,tokens=12",
                                             "keydiff,tokens=12",
                                             "snapkv(window=4),tokens=12",
                                             "adakv(window=8),keep=0.3",
                                             "lagkv(lag=16),keep=0.3",
                                             "chunkkv(window=4,chunk=5),tokens=30",
                                             "rkv,keep=0.4",
                                             "tova,tokens=9"};
  const KvText pinned{.num_prompt_tokens = kEntries, .pinned = {{.begin = 10, .end = 14}}};
  std::vector<std::vector<std::vector<int32_t>>> expected;
  for (const std::string& policy : policies) {
    expected.push_back(choose(policy).kept);
    expected.push_back(choose(policy, pinned).kept);
  }
  const std::vector<std::vector<int32_t>> read(kLayers * kHeads, {0, 1, 50, 51, 52, 98, 99});
  ASSERT_TRUE(kv_.set_aside(sequence_, read, KvAside::kBlocks, kEntries));
  for (size_t i = 0; i < policies.size(); ++i) {
    EXPECT_EQ(choose(policies[i]).kept, expected[2 * i]) << policies[i];
    EXPECT_EQ(choose(policies[i], pinned).kept, expected[2 * i + 1]) << policies[i] << ", with pinned tokens";
  }
}

TEST_F(KvCompressionTest, PinnedEntriesStayWhereEntriesAreJudgedTwice) {
  evidence_.value_norms = std::make_unique<ValueNorms>(pool_, kv_.config().layers, kEntries);
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t head = 0; head < kHeads; ++head) {
      for (int32_t i = 0; i < kEntries; ++i) evidence_.value_norms->of(layer, head)[i] = static_cast<float>(i % 7 + 1);
      evidence_.value_norms->set_num_known(layer, head, kEntries);
    }
  }
  const KvText text{.num_prompt_tokens = kEntries, .pinned = {{.begin = 10, .end = 14}, {.begin = 60, .end = 61}}};
  for (const char* policy : {"criticalkv(window=4,first=0),tokens=12", "criticalkv(window=4),tokens=12",
                             "criticalkv(window=4,first=0),adakv(window=4),tokens=12"}) {
    const KvChoice choice = choose(policy, text);
    for (const auto& kept : choice.kept) EXPECT_THAT(kept, testing::IsSupersetOf({10, 11, 12, 13, 60})) << policy;
    EXPECT_NE(choose(policy).kept, choice.kept) << policy;
  }
}

// In a pool that grows the recent tokens are as many as in the whole one; its other places are for heavy hitters.
TEST_F(KvCompressionTest, APoolThatGrowsHasTheRecentTokensAndTheHeaviestBeforeThem) {
  constexpr int32_t kPrompt = 40;
  constexpr int32_t kGenerated = kEntries - kPrompt;
  constexpr int32_t kRecent = 10;
  KvPolicy policy = parse_kv_policy("h2o,keep=0.5,generated_tokens=20,generated_growth=adaptive");
  policy.max_generated = 2 * kGenerated;
  evidence_.mass = std::make_unique<AttentionMass>(pool_, kv_.config().layers, kEntries);
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t head = 0; head < kHeads; ++head) {
      for (int32_t i = 0; i < kEntries; ++i) {
        evidence_.mass->of(layer, head)[i] = static_cast<float>((i * 37 + layer * 11 + head * 5) % 101);
      }
    }
  }
  const KvChoice choice = choose(policy, {.num_prompt_tokens = kPrompt});
  const int32_t num_heavy = (20 - kRecent) * (kGenerated - kRecent) / (2 * kGenerated - kRecent);
  ASSERT_GT(num_heavy, 1);
  for (int32_t table = 0; table < kLayers * kHeads; ++table) {
    const float* mass = evidence_.mass->of(table / kHeads, table % kHeads);
    std::vector<int32_t> heavy(static_cast<size_t>(kGenerated - kRecent));
    std::iota(heavy.begin(), heavy.end(), kPrompt);
    std::ranges::stable_sort(heavy, std::greater<>(), [&](int32_t i) { return mass[i]; });
    std::vector<int32_t> expected(heavy.begin(), heavy.begin() + num_heavy);
    for (int32_t i = 0; i < kPrompt; ++i) expected.push_back(i);
    for (int32_t i = kEntries - kRecent; i < kEntries; ++i) expected.push_back(i);
    EXPECT_THAT(choice.kept[static_cast<size_t>(table)], testing::UnorderedElementsAreArray(expected)) << table;
  }
}

TEST_F(KvCompressionTest, PartsOfTheTextStayOrGoTogether) {
  const KvText text{.num_prompt_tokens = kEntries, .span_starts = {0, 7, 30, 31, 50, 90}};
  const std::vector<int32_t> starts = {0, 7, 30, 31, 50, 90, kEntries};
  for (const int32_t num_kept : {20, 45, 70}) {
    const KvChoice choice = choose("shotkv(window=10),tokens=" + std::to_string(num_kept), text);
    const std::vector<int32_t>& kept = choice.kept[0];
    ASSERT_EQ(std::ssize(kept), num_kept);
    EXPECT_EQ(choice.kept[1], kept) << "the same in all heads";
    int32_t num_parts = 0;  // of which some stays and some goes
    for (size_t s = 0; s + 1 < starts.size(); ++s) {
      const auto count = std::ranges::count_if(kept, [&](int32_t i) { return i >= starts[s] && i < starts[s + 1]; });
      num_parts += count > 0 && count < starts[s + 1] - starts[s];
    }
    EXPECT_LE(num_parts, 1) << "the one that the budget has no room for";
  }
}

TEST_F(KvCompressionTest, AGuardKeepsEverythingWhereTooMuchAttentionWouldGo) {
  for (const char* policy : {"keynorm,keep=0.3", "snapkv(window=8),keep=0.3", "tova,keep=0.6"}) {
    const KvChoice unguarded = choose(policy);
    EXPECT_FALSE(unguarded.attention_kept) << "nobody asked";
    const double share = attention_of(unguarded.kept);
    const KvChoice below = choose(fmt::format("{},guard={}", policy, share - 0.01));
    ASSERT_TRUE(below.attention_kept);
    EXPECT_NEAR(*below.attention_kept, share, 1e-5) << policy;
    EXPECT_FALSE(below.fell_back);
    EXPECT_EQ(below.kept, unguarded.kept) << "what the guard looks at is not what the method does";
    const KvChoice above = choose(fmt::format("{},guard={}", policy, share + 0.01));
    EXPECT_TRUE(above.fell_back);
    for (const auto& kept : above.kept) EXPECT_EQ(std::ssize(kept), kEntries);
  }
}

}  // namespace
}  // namespace witan
