#include "kv/policy/entry_selection.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

namespace witan {
namespace {

using Kept = std::vector<std::vector<int32_t>>;

// Random scores of few values, so that many are equal.
struct Scores {
  int32_t num_heads;
  int32_t num_entries;
  int32_t num_fixed = 0;
  std::vector<std::vector<float>> layers;

  Scores(int32_t num_layers, int32_t heads, int32_t entries, uint32_t seed = 1, int32_t num_values = 20)
      : num_heads(heads), num_entries(entries) {
    std::mt19937 random(seed);
    for (int32_t l = 0; l < num_layers; ++l) {
      layers.emplace_back();
      for (int32_t i = 0; i < heads * entries; ++i) {
        layers.back().push_back(static_cast<float>(random() % static_cast<uint32_t>(num_values)));
      }
    }
  }

  float at(int32_t layer, int32_t head, int32_t entry) const {
    return layers[static_cast<size_t>(layer)][static_cast<size_t>(head * num_entries + entry)];
  }

  Kept select(const KvPolicy& policy, int32_t num_kept) const {
    std::vector<LayerScores> views;
    for (const auto& layer : layers) {
      views.emplace_back();
      for (int32_t head = 0; head < num_heads; ++head) {
        views.back().push_back(
            {.scores = layer.data() + int64_t{head} * num_entries, .num_entries = num_entries, .num_fixed = num_fixed});
      }
    }
    return select_entries(policy, views, num_kept);
  }
};

// (score, layer, head, entry): the better ones first, of equal ones the first.
struct Candidate {
  float score;
  int32_t head;
  int32_t entry;
  bool operator<(const Candidate& other) const {
    return std::tuple(-score, head, entry) < std::tuple(-other.score, other.head, other.entry);
  }
};

int64_t total(const Kept& kept) {
  return std::accumulate(kept.begin(), kept.end(), int64_t{0},
                         [](int64_t sum, const auto& entries) { return sum + std::ssize(entries); });
}

void expect_sane(const Kept& kept, int32_t num_entries) {
  for (const auto& entries : kept) {
    EXPECT_TRUE(std::ranges::adjacent_find(entries, std::greater_equal<>()) == entries.end())
        << "ascending, none twice";
    if (!entries.empty()) {
      EXPECT_GE(entries.front(), 0);
      EXPECT_LT(entries.back(), num_entries);
    }
  }
}

TEST(EntrySelection, KeepsTheBestOfEachHead) {
  for (const int32_t num_kept : {1, 5, 12, 40, 99, 100}) {
    const Scores scores(2, 3, 100);
    KvPolicy policy;
    policy.num_sinks = 2;
    policy.num_recent = 4;
    const Kept kept = scores.select(policy, num_kept);
    expect_sane(kept, 100);
    for (int32_t table = 0; table < 6; ++table) {
      std::vector<int32_t> expected;
      std::vector<Candidate> candidates;
      for (int32_t i = 0; i < 100; ++i) {
        const bool fixed = i < std::min(2, num_kept) || i >= 100 - std::min(4, std::max(0, num_kept - 2));
        if (fixed)
          expected.push_back(i);
        else
          candidates.push_back({scores.at(table / 3, table % 3, i), 0, i});
      }
      std::ranges::sort(candidates, std::less<>());
      for (size_t i = 0; std::ssize(expected) < num_kept; ++i) expected.push_back(candidates[i].entry);
      std::ranges::sort(expected);
      EXPECT_EQ(kept[static_cast<size_t>(table)], expected) << "table " << table << " kept " << num_kept;
    }
  }
}

TEST(EntrySelection, ChunksOfAnySizeKeepTheSameNumber) {
  const Scores scores(1, 2, 256);
  for (const int32_t chunk : {1, 2, 3, 4, 7, 8, 10, 128, 256, 300}) {
    for (const int32_t num_kept : {1, 37, 128, 255}) {
      KvPolicy policy;
      policy.chunk = chunk;
      const Kept kept = scores.select(policy, num_kept);
      expect_sane(kept, 256);
      for (const auto& entries : kept) EXPECT_EQ(std::ssize(entries), num_kept) << "chunk " << chunk;
    }
  }
}

TEST(EntrySelection, WholeChunksStayByTheSumOfTheirScoresAndTheRestGoesToTheNextBest) {
  Scores scores(1, 1, 12);
  scores.layers[0] = {1, 1, 1, /**/ 0, 5, 0, /**/ 2, 2, 3, /**/ 9, 0, /* recent: */ 0};
  KvPolicy policy;
  policy.chunk = 3;
  policy.num_recent = 1;
  EXPECT_EQ(scores.select(policy, 3)[0], (std::vector<int32_t>{9, 10, 11})) << "the last chunk is a short one";
  EXPECT_EQ(scores.select(policy, 6)[0], (std::vector<int32_t>{6, 7, 8, 9, 10, 11}));
  EXPECT_EQ(scores.select(policy, 8)[0], (std::vector<int32_t>{3, 4, 6, 7, 8, 9, 10, 11})) << "two of the next chunk";
  policy.chunk_by_sum = false;
  EXPECT_EQ(scores.select(policy, 4)[0], (std::vector<int32_t>{8, 9, 10, 11}));
}

TEST(EntrySelection, HeadsCompeteForALayersBudgetAboveTheirFloor) {
  const int32_t num_kept = 30;
  const Scores scores(3, 4, 100, 7, 1000);
  for (const double floor : {0.0, 0.2, 1.0}) {
    KvPolicy policy;
    policy.scope = KvScope::kLayer;
    policy.head_floor = floor;
    policy.num_recent = 3;
    const Kept kept = scores.select(policy, num_kept);
    expect_sane(kept, 100);
    for (int32_t layer = 0; layer < 3; ++layer) {
      // By the paper's algorithm: each head's best first, then the best of all that are left.
      std::vector<Candidate> chosen;
      std::vector<Candidate> rest;
      for (int32_t head = 0; head < 4; ++head) {
        std::vector<Candidate> own;
        for (int32_t i = 0; i < 97; ++i) own.push_back({scores.at(layer, head, i), head, i});
        std::ranges::sort(own, std::less<>());
        const auto safe = own.begin() + std::max(0, static_cast<int32_t>(floor * num_kept) - 3);
        chosen.insert(chosen.end(), own.begin(), safe);
        rest.insert(rest.end(), safe, own.end());
      }
      std::ranges::sort(rest, std::less<>());
      chosen.insert(chosen.end(), rest.begin(), rest.begin() + (4 * (num_kept - 3) - std::ssize(chosen)));
      for (int32_t head = 0; head < 4; ++head) {
        std::vector<int32_t> expected = {97, 98, 99};
        for (const Candidate& c : chosen) {
          if (c.head == head) expected.push_back(c.entry);
        }
        std::ranges::sort(expected);
        EXPECT_EQ(kept[static_cast<size_t>(layer * 4 + head)], expected) << "floor " << floor;
      }
    }
  }
}

TEST(EntrySelection, AllLayersCompete) {
  const Scores scores(3, 2, 64, 9, 500);
  KvPolicy policy;
  policy.scope = KvScope::kModel;
  const Kept kept = scores.select(policy, 10);
  expect_sane(kept, 64);
  EXPECT_EQ(total(kept), 60);
  float worst_kept = std::numeric_limits<float>::infinity();
  float best_dropped = -worst_kept;
  for (int32_t table = 0; table < 6; ++table) {
    const auto& entries = kept[static_cast<size_t>(table)];
    for (int32_t i = 0; i < 64; ++i) {
      const float score = scores.at(table / 2, table % 2, i);
      if (std::ranges::binary_search(entries, i))
        worst_kept = std::min(worst_kept, score);
      else
        best_dropped = std::max(best_dropped, score);
    }
  }
  EXPECT_GE(worst_kept, best_dropped);
}

TEST(EntrySelection, ScoresOfNaNAreTheWorst) {
  Scores scores(1, 1, 6);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  scores.layers[0] = {nan, 3, nan, 2, 1, nan};
  EXPECT_EQ(scores.select({}, 3)[0], (std::vector<int32_t>{1, 3, 4}));
  EXPECT_EQ(scores.select({}, 4)[0], (std::vector<int32_t>{0, 1, 3, 4}));
}

TEST(EntrySelection, FixedEntriesStayBesideTheBudget) {
  Scores scores(2, 3, 100);
  scores.num_fixed = 60;
  KvPolicy policy;
  policy.num_sinks = 4;  // of the text: they are among the fixed ones
  policy.num_recent = 2;
  for (const int32_t num_kept : {1, 2, 7, 40}) {
    const Kept kept = scores.select(policy, num_kept);
    expect_sane(kept, 100);
    for (int32_t table = 0; table < 6; ++table) {
      const std::vector<int32_t>& entries = kept[static_cast<size_t>(table)];
      ASSERT_EQ(std::ssize(entries), 60 + num_kept);
      for (int32_t i = 0; i < 60; ++i) EXPECT_EQ(entries[static_cast<size_t>(i)], i);
      std::vector<Candidate> candidates;
      for (int32_t i = 60; i < 98; ++i) candidates.push_back({scores.at(table / 3, table % 3, i), 0, i});
      std::ranges::sort(candidates, std::less<>());
      for (int32_t i = 0; i < num_kept - 2; ++i) {
        EXPECT_TRUE(std::ranges::binary_search(entries, candidates[static_cast<size_t>(i)].entry));
      }
    }
  }
}

TEST(EntrySelection, EachChunkKeepsTheSameShare) {
  const Scores scores(1, 2, 103, 3, 1000);
  KvPolicy policy;
  policy.num_sinks = 2;
  policy.num_recent = 1;
  for (const int32_t chunk : {1, 7, 10, 50, 100, 1000}) {
    policy.share_chunk = chunk;
    for (const int32_t num_kept : {1, 3, 4, 23, 53, 102, 103}) {
      const Kept kept = scores.select(policy, num_kept);
      expect_sane(kept, 103);
      for (int32_t head = 0; head < 2; ++head) {
        const std::vector<int32_t>& entries = kept[static_cast<size_t>(head)];
        ASSERT_EQ(std::ssize(entries), num_kept);
        for (int32_t begin = 2; begin < 102; begin += chunk) {
          const int32_t end = std::min(102, begin + chunk);
          std::vector<Candidate> candidates;
          for (int32_t i = begin; i < end; ++i) candidates.push_back({scores.at(0, head, i), 0, i});
          std::ranges::sort(candidates, std::less<>());
          const auto count = std::ranges::count_if(entries, [&](int32_t i) { return i >= begin && i < end; });
          EXPECT_NEAR(static_cast<double>(count), (end - begin) * std::max(0, num_kept - 3) / 100.0, 1.0)
              << chunk << " " << num_kept;
          for (int64_t i = 0; i < count; ++i) {
            EXPECT_TRUE(std::ranges::binary_search(entries, candidates[static_cast<size_t>(i)].entry));
          }
        }
      }
    }
  }
}

TEST(EntrySelection, TheSecondStageKeepsAsManyOfEachHeadAsTheFirst) {
  const Scores scores(3, 4, 100, 7, 1000);
  const Scores second(3, 4, 100, 8, 1000);
  for (const KvScope scope : {KvScope::kHead, KvScope::kLayer, KvScope::kModel}) {
    for (const int32_t num_fixed : {0, 30}) {
      for (const double share : {0.0, 0.5, 1.0}) {
        for (const int32_t num_kept : {1, 5, 20, 69, 70}) {
          KvPolicy policy;
          policy.scope = scope;
          policy.num_sinks = 1;
          policy.num_recent = 3;
          std::vector<LayerScores> views;
          for (int32_t table = 0; table < 12; ++table) {
            if (table % 4 == 0) views.emplace_back();
            views.back().push_back(
                {.scores = scores.layers[static_cast<size_t>(table / 4)].data() + int64_t{table % 4} * 100,
                 .num_entries = 100,
                 .num_fixed = num_fixed,
                 .second_scores = second.layers[static_cast<size_t>(table / 4)].data() + int64_t{table % 4} * 100});
          }
          const Kept once = select_entries(policy, views, num_kept);
          policy.second_stage = {.first_share = share, .epsilon = 0.0};
          const Kept twice = select_entries(policy, views, num_kept);
          expect_sane(twice, 100);
          if (share == 1.0) {
            EXPECT_EQ(twice, once);
          }
          for (size_t table = 0; table < 12; ++table) {
            ASSERT_EQ(twice[table].size(), once[table].size());
            const auto num_total = static_cast<int32_t>(std::ssize(once[table])) - num_fixed;
            const auto fixed = policy.num_protected(100 - num_fixed, num_kept, num_fixed == 0);
            const int32_t begin = num_fixed + fixed.num_sinks;
            const int32_t end = 100 - fixed.num_recent;
            std::vector<Candidate> candidates;
            for (int32_t i = begin; i < end; ++i) candidates.push_back({views[table / 4][table % 4].scores[i], 0, i});
            std::ranges::sort(candidates, std::less<>());
            const int32_t num_first = std::max(0, static_cast<int32_t>(share * num_total) - fixed.count());
            for (auto c = candidates.begin() + num_first; c != candidates.end(); ++c) {
              c->score = views[table / 4][table % 4].second_scores[c->entry];
            }
            std::sort(candidates.begin() + num_first, candidates.end(), std::less<>());
            std::vector<int32_t> expected;
            for (int32_t i = 0; i < 100; ++i) {
              if (i < begin || i >= end) expected.push_back(i);
            }
            for (int32_t i = 0; i < num_total - fixed.count(); ++i) {
              expected.push_back(candidates[static_cast<size_t>(i)].entry);
            }
            std::ranges::sort(expected);
            EXPECT_EQ(twice[table], expected) << "table " << table << ", kept " << num_kept << ", share " << share;
          }
        }
      }
    }
  }
}

// What heads have left of a first judgement differs; they compete again.
TEST(EntrySelection, HeadsOfDifferentLengthsCompeteForTheSameTotal) {
  const Scores scores(2, 3, 100, 7, 1000);
  const int32_t lengths[] = {100, 20, 45, 70, 5, 90};  // 55 each on average
  std::vector<LayerScores> views(2);
  for (size_t table = 0; table < 6; ++table) {
    views[table / 3].push_back(
        {.scores = scores.layers[table / 3].data() + table % 3 * 100, .num_entries = lengths[table]});
  }
  KvPolicy policy;
  policy.num_recent = 8;
  for (const KvScope scope : {KvScope::kLayer, KvScope::kModel}) {
    policy.scope = scope;
    policy.head_floor = 0.2;
    for (const int32_t num_kept : {10, 30, 54}) {
      const Kept kept = select_entries(policy, views, num_kept);
      EXPECT_EQ(total(kept), 6 * num_kept);
      for (size_t table = 0; table < 6; ++table) {
        EXPECT_TRUE(kept[table].empty() || kept[table].back() < lengths[table]);
        EXPECT_GE(std::ssize(kept[table]), std::min(lengths[table], 8));
      }
    }
  }
}

std::vector<int32_t> layers_of(int32_t num_layers, int32_t num_entries) {
  return std::vector<int32_t>(static_cast<size_t>(num_layers), num_entries);
}

TEST(LayerBudgets, GiveWhatALayerHasNotToOthers) {
  KvPolicy policy;
  policy.layers = KvLayerBudget::kPyramid;
  EXPECT_EQ(layer_budgets(policy, std::vector<int32_t>{30, 100, 100}, 40), (std::vector<int32_t>{30, 88, 2}));
  EXPECT_EQ(layer_budgets(policy, std::vector<int32_t>{100, 100, 1}, 40), (std::vector<int32_t>{79, 40, 1}));
  EXPECT_EQ(layer_budgets(policy, std::vector<int32_t>{40, 40, 40}, 40), (std::vector<int32_t>{40, 40, 40}));
}

TEST(LayerBudgets, AreThoseOfATable) {
  KvPolicy policy;
  policy.layers = KvLayerBudget::kTable;
  policy.layer_shares = {2.0, 1.0, 0.0, 1.0};
  EXPECT_EQ(layer_budgets(policy, layers_of(4, 100), 40), (std::vector<int32_t>{80, 40, 0, 40}));
  EXPECT_EQ(layer_budgets(policy, layers_of(4, 60), 40), (std::vector<int32_t>{60, 60, 0, 40})) << "20 go on";
  policy.num_recent = 8;
  EXPECT_EQ(layer_budgets(policy, layers_of(4, 100), 40), (std::vector<int32_t>{72, 40, 8, 40}));
  EXPECT_EQ(layer_budgets(policy, layers_of(4, 40), 40), layers_of(4, 40));
  policy.layer_shares = {0.1, 0.1, 0.1};
  EXPECT_EQ(layer_budgets(policy, layers_of(3, 100), 33), layers_of(3, 33));
}

TEST(LayerBudgets, ArePyramidsOfExactlyTheBudget) {
  KvPolicy policy;
  policy.layers = KvLayerBudget::kPyramid;
  policy.num_recent = 8;
  for (const int32_t num_layers : {1, 2, 3, 28, 48}) {
    for (const int32_t num_kept : {8, 9, 50, 333, 900, 1000}) {
      const std::vector<int32_t> budgets = layer_budgets(policy, layers_of(num_layers, 1000), num_kept);
      EXPECT_EQ(std::accumulate(budgets.begin(), budgets.end(), int64_t{0}), int64_t{num_kept} * num_layers);
      EXPECT_LE(budgets.front(), 1000);
      EXPECT_GE(budgets.back(), std::min(8, num_kept));
      for (size_t l = 1; l < budgets.size(); ++l) EXPECT_LE(budgets[l], budgets[l - 1] + 1) << "but for rounding";
    }
  }
  // PyramidKV's formula with beta = 20: m = (cap - W) / beta, M = 2 (cap - W) - m.
  const std::vector<int32_t> budgets = layer_budgets(policy, layers_of(5, 1000), 208);
  EXPECT_EQ(budgets, (std::vector<int32_t>{398, 303, 208, 113, 18}));
  // And where the first layer would keep more than there is.
  EXPECT_EQ(layer_budgets(policy, layers_of(3, 300), 208), (std::vector<int32_t>{300, 208, 116}));
}

}  // namespace
}  // namespace witan
