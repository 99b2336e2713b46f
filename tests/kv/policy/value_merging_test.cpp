#include "kv/policy/value_merging.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <tuple>

#include "kv/kv_cache.h"
#include "kv/policy/value_norms.h"

namespace witan {
namespace {

constexpr int32_t kDim = 24;
constexpr int32_t kEntries = 500;
constexpr int32_t kStep = 4;  // one of so many entries is kept
constexpr float kScale = 0.2f;

using Rows = std::vector<std::vector<float>>;

Rows random_rows(int32_t count, uint32_t seed, float size = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, size);
  Rows rows(static_cast<size_t>(count), std::vector<float>(kDim));
  for (auto& row : rows) std::ranges::generate(row, [&] { return normal(random); });
  return rows;
}

std::vector<int32_t> kept_entries() {
  std::vector<int32_t> kept;
  for (int32_t i = 1; i < kEntries; i += kStep) kept.push_back(i);
  return kept;
}

// Softmax attention of a query, in doubles.
std::vector<double> output(const Rows& keys, const Rows& values, const std::vector<float>& query) {
  double total = 0.0;
  std::vector<double> sum(kDim);
  for (size_t i = 0; i < keys.size(); ++i) {
    double score = 0.0;
    for (size_t d = 0; d < kDim; ++d) score += static_cast<double>(query[d]) * static_cast<double>(keys[i][d]);
    const double weight = std::exp(score * static_cast<double>(kScale));
    total += weight;
    for (size_t d = 0; d < kDim; ++d) sum[d] += weight * static_cast<double>(values[i][d]);
  }
  for (double& x : sum) x /= total;
  return sum;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double squares = 0.0;
  for (size_t d = 0; d < a.size(); ++d) squares += (a[d] - b[d]) * (a[d] - b[d]);
  return std::sqrt(squares);
}

// A cache of one kv head, of sequences with the same entries: their blocks are shared, or each has its own.
class ValueMergingTest : public testing::TestWithParam<std::tuple<KvCodec, bool>> {
 protected:
  SequenceId fill(const Rows& keys, const Rows& values) {
    const std::vector<TokenId> tokens(keys.size(), 7);
    const std::vector<TokenRole> roles(keys.size(), TokenRole::kPrompt);
    const SequenceId sequence = kv_.create();
    const int32_t first = kv_.attach_prefix(sequence, tokens, roles);
    EXPECT_TRUE(kv_.reserve(sequence, static_cast<int32_t>(keys.size()) - first));
    for (size_t i = static_cast<size_t>(first); i < keys.size(); ++i) {
      const KvCache::Slot slot = kv_.slot(sequence, 0, 0, static_cast<int32_t>(i));
      kv_store(kv_.block_format(0), slot.block, slot.slot, keys[i].data(), values[i].data());
    }
    kv_.commit(sequence, std::span(tokens).subspan(static_cast<size_t>(first)),
               std::span(roles).subspan(static_cast<size_t>(first)));
    return sequence;
  }

  KvView view(SequenceId sequence) const { return kv_.view(sequence, 0, 0, kv_.num_entries(sequence, 0, 0)); }

  // Keys and values as attention reads them.
  std::pair<Rows, Rows> read(SequenceId sequence) const {
    const KvView all = view(sequence);
    Rows keys(static_cast<size_t>(all.num_entries), std::vector<float>(kDim));
    Rows values = keys;
    for (int32_t i = 0; i < all.num_entries; ++i) {
      kv_load(all.format, all.blocks[i / kKvBlockSize], i % kKvBlockSize, keys[static_cast<size_t>(i)].data(),
              values[static_cast<size_t>(i)].data());
    }
    return {keys, values};
  }

  // The last 16 entries' keys as queries, or the attention that each entry had.
  KvMerge plan(SequenceId sequence, const KvMerging& merging, const std::vector<float>* mass = nullptr,
               Isa isa = select_isa()) {
    const KvView all = view(sequence);
    const Rows keys = read(sequence).first;
    std::vector<const float*> rows;
    std::vector<int32_t> positions;
    for (int32_t i = all.num_entries - 16; i < all.num_entries; ++i) {
      rows.push_back(keys[static_cast<size_t>(i)].data());
      positions.push_back(i);
    }
    const HeadEvidence head{
        .isa = isa,
        .view = all,
        .queries = {.queries = rows.data(), .positions = positions.data(), .num_rows = 16, .scale = kScale},
        .mass = mass == nullptr ? nullptr : mass->data()};
    const std::vector<int32_t> kept = kept_entries();
    const int64_t floats = plan_merge_scratch(merging, head, static_cast<int32_t>(kept.size()));
    auto scratch = pool_.allocate(MemoryTag::kActivations, static_cast<size_t>(floats + 16) * sizeof(float));
    return plan_merge(merging, head, kept, 0, 0, reinterpret_cast<float*>(scratch->data()));
  }

  bool keep(SequenceId sequence, const KvMerge& merge) {
    return kv_.keep(sequence, std::vector<std::vector<int32_t>>{kept_entries()}, std::vector<KvMerge>{merge});
  }

  // Relative, of a stored value.
  static float rounding() {
    switch (std::get<0>(GetParam())) {
      case KvCodec::kF32:
        return 1e-6f;
      case KvCodec::kF16:
        return 0x1p-10f;
      case KvCodec::kBF16:
        return 0x1p-7f;
      default:
        return 0.01f;
    }
  }

  MemoryPool pool_{size_t{64} << 20};
  KvCache kv_{pool_,
              {.layers = {{.num_kv_heads = 1, .key_dim = kDim, .value_dim = kDim}},
               .codec = std::get<0>(GetParam()),
               .capacity_bytes = size_t{16} << 20,
               .prefix_cache = std::get<1>(GetParam())}};
  const KvMerging similar_ = {.into = KvMerging::Into::kSimilar};
  const KvMerging next_ = {.into = KvMerging::Into::kNext, .num_next = 8};
};

TEST_P(ValueMergingTest, KeptValuesBecomeWhatThePlanSaysAndKeysStay) {
  const SequenceId sequence = fill(random_rows(kEntries, 1), random_rows(kEntries, 2));
  const SequenceId other = fill(random_rows(kEntries, 1), random_rows(kEntries, 2));
  const auto [keys, values] = read(sequence);
  for (const KvMerging& merging : {similar_, next_}) {
    const SequenceId merged = fill(random_rows(kEntries, 1), random_rows(kEntries, 2));
    const KvMerge merge = plan(merged, merging);
    ASSERT_FALSE(merge.empty());
    ASSERT_TRUE(keep(merged, merge));
    kv_.check_integrity();
    const auto [keys_after, values_after] = read(merged);
    const std::vector<int32_t> kept = kept_entries();
    int32_t num_untouched = 0;
    for (size_t j = 0; j < kept.size(); ++j) {
      const auto entry = static_cast<size_t>(kept[j]);
      EXPECT_EQ(keys_after[j], keys[entry]);
      std::vector<double> expected(kDim);
      double largest = 0.0;
      const size_t first = j + 1 - std::min(j + 1, static_cast<size_t>(merge.reach));
      const int32_t begin = first == 0 ? 0 : merge.group_ends[first - 1];
      for (size_t d = 0; d < kDim; ++d) {
        expected[d] = static_cast<double>(merge.own[j]) * static_cast<double>(values[entry][d]);
        for (int32_t i = begin; i < merge.group_ends[j]; ++i) {
          expected[d] += static_cast<double>(merge.weights[static_cast<size_t>(i)]) *
                         static_cast<double>(values[static_cast<size_t>(merge.sources[static_cast<size_t>(i)])][d]);
        }
        largest = std::max(largest, std::abs(expected[d]));
      }
      for (size_t d = 0; d < kDim; ++d) {
        EXPECT_NEAR(static_cast<double>(values_after[j][d]), expected[d], static_cast<double>(rounding()) * largest);
      }
      if (begin == merge.group_ends[j]) {
        EXPECT_EQ(values_after[j], values[entry]) << "nothing was merged into it";
        ++num_untouched;
      }
    }
    EXPECT_EQ(num_untouched > 0, merging.into == KvMerging::Into::kSimilar);
    kv_.release(merged);
  }
  // Nobody else sees it.
  EXPECT_EQ(read(sequence), std::pair(keys, values));
  EXPECT_EQ(read(other), std::pair(keys, values));
}

TEST_P(ValueMergingTest, SimilarValuesGoWhereTheCosineIsLargestWithTheWeightOfTheFormula) {
  const SequenceId sequence = fill(random_rows(kEntries, 3), random_rows(kEntries, 4));
  const auto [keys, values] = read(sequence);
  const auto length = [](const std::vector<float>& x) {
    double squares = 0.0;
    for (const float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
    return std::sqrt(squares);
  };
  const auto cosine = [&](size_t a, size_t b) {
    double dot = 0.0;
    for (size_t d = 0; d < kDim; ++d) dot += static_cast<double>(keys[a][d]) * static_cast<double>(keys[b][d]);
    return dot / (length(keys[a]) * length(keys[b]));
  };
  const std::vector<int32_t> kept = kept_entries();
  for (const Isa isa : kAllIsas) {
    if (!cpu_supports(isa)) continue;
    for (const float threshold : {0.0f, 0.5f}) {
      const KvMerge merge = plan(sequence, {.threshold = threshold}, nullptr, isa);
      std::set<int32_t> merged;
      for (size_t j = 0; j < kept.size(); ++j) {
        double total = 1.0;
        std::vector<double> weights;
        for (int32_t i = j == 0 ? 0 : merge.group_ends[j - 1]; i < merge.group_ends[j]; ++i) {
          const auto source = static_cast<size_t>(merge.sources[static_cast<size_t>(i)]);
          merged.insert(merge.sources[static_cast<size_t>(i)]);
          const double best = cosine(source, static_cast<size_t>(kept[j]));
          for (const int32_t k : kept) EXPECT_LE(cosine(source, static_cast<size_t>(k)), best + 1e-6);
          EXPECT_GE(best, static_cast<double>(threshold) - 1e-6);
          const double of_source = length(values[source]);
          weights.push_back(best * of_source / (of_source + length(values[static_cast<size_t>(kept[j])])));
          total += weights.back();
        }
        EXPECT_NEAR(static_cast<double>(merge.own[j]), 1.0 / total, 1e-5);
        for (size_t w = 0; w < weights.size(); ++w) {
          const auto i = static_cast<size_t>(j == 0 ? 0 : merge.group_ends[j - 1]) + w;
          EXPECT_NEAR(static_cast<double>(merge.weights[i]), weights[w] / total, 1e-5);
        }
      }
      const size_t num_dropped = kEntries - kept.size();
      if (threshold == 0.0f) {
        EXPECT_EQ(merged.size(), num_dropped);
      } else {
        EXPECT_LT(merged.size(), num_dropped);
        EXPECT_GT(merged.size(), 0u);
      }
    }
  }
}

// Groups of nearly equal keys of which one is kept: its value becomes nearly their mean.
TEST_P(ValueMergingTest, OfNearlyEqualKeysTheOutputIsNearerToThatOfAllEntries) {
  const Rows directions = random_rows(kEntries / kStep, 5, 2.0f);
  const Rows noise = random_rows(kEntries, 6, 0.05f);
  Rows keys = noise;
  for (size_t i = 0; i < keys.size(); ++i) {
    for (size_t d = 0; d < kDim; ++d) keys[i][d] += directions[i / kStep][d];
  }
  const SequenceId dense = fill(keys, random_rows(kEntries, 7));
  const SequenceId evicted = fill(keys, random_rows(kEntries, 7));
  const SequenceId merged = fill(keys, random_rows(kEntries, 7));
  ASSERT_TRUE(keep(evicted, {}));
  ASSERT_TRUE(keep(merged, plan(merged, similar_)));
  double error_evicted = 0.0;
  double error_merged = 0.0;
  for (const auto& query : random_rows(50, 8)) {
    const auto expected = output(read(dense).first, read(dense).second, query);
    error_evicted += distance(output(read(evicted).first, read(evicted).second, query), expected);
    error_merged += distance(output(read(merged).first, read(merged).second, query), expected);
  }
  EXPECT_LT(error_merged, 0.5 * error_evicted);
}

// What is dropped gets a third of the attention, and has something in common that is missed.
TEST_P(ValueMergingTest, OfDroppedEntriesWithLittleAttentionTheOutputIsNearerToThatOfAllEntries) {
  const Rows common = random_rows(1, 9);
  Rows keys = random_rows(kEntries, 10, 0.3f);
  Rows values = random_rows(kEntries, 11, 0.3f);
  const std::vector<int32_t> kept = kept_entries();
  for (size_t i = 0; i < keys.size(); ++i) {
    const bool is_kept = std::ranges::binary_search(kept, static_cast<int32_t>(i));
    keys[i][0] = is_kept ? 3.0f : 0.0f;
    for (size_t d = 0; !is_kept && d < kDim; ++d) values[i][d] += common[0][d];
  }
  Rows queries = random_rows(50, 12, 0.3f);
  for (auto& query : queries) query[0] = 3.0f;
  std::vector<float> mass(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    for (const auto& query : queries) {
      double score = 0.0;
      for (size_t d = 0; d < kDim; ++d) score += static_cast<double>(query[d]) * static_cast<double>(keys[i][d]);
      mass[i] += static_cast<float>(std::exp(score * static_cast<double>(kScale)));
    }
  }
  const SequenceId dense = fill(keys, values);
  const SequenceId evicted = fill(keys, values);
  const SequenceId merged = fill(keys, values);
  ASSERT_TRUE(keep(evicted, {}));
  ASSERT_TRUE(keep(merged, plan(merged, {.into = KvMerging::Into::kNext, .num_next = 32}, &mass)));
  double error_evicted = 0.0;
  double error_merged = 0.0;
  for (const auto& query : queries) {
    const auto expected = output(read(dense).first, read(dense).second, query);
    error_evicted += distance(output(read(evicted).first, read(evicted).second, query), expected);
    error_merged += distance(output(read(merged).first, read(merged).second, query), expected);
  }
  EXPECT_LT(error_merged, 0.8 * error_evicted);
}

TEST_P(ValueMergingTest, ValuesStayFinite) {
  Rows values = random_rows(kEntries, 13);
  for (auto& row : values) {
    for (float& x : row) x = x > 0 ? 60000.0f : -60000.0f;
  }
  values[2] = std::vector<float>(kDim, 0.0f);
  Rows keys = random_rows(kEntries, 14);
  keys[3] = std::vector<float>(kDim, 0.0f);
  const std::vector<float> mass(kEntries, 1.0f);  // alike: every dropped entry is merged
  for (const KvMerging& merging : {similar_, next_}) {
    const SequenceId merged = fill(keys, values);
    ASSERT_TRUE(keep(merged, plan(merged, merging, &mass)));
    for (const auto& row : read(merged).second) {
      for (const float x : row) ASSERT_TRUE(std::isfinite(x));
    }
    kv_.release(merged);
    kv_.clear_prefix_cache();
  }
}

TEST_P(ValueMergingTest, WhereEverythingOrNothingStaysThereIsNothingToMerge) {
  const SequenceId sequence = fill(random_rows(64, 1), random_rows(64, 2));
  std::vector<int32_t> all(64);
  std::ranges::generate(all, [i = 0]() mutable { return i++; });
  const HeadEvidence head{.isa = select_isa(), .view = view(sequence)};
  EXPECT_TRUE(plan_merge(similar_, head, all, 0, 0, nullptr).empty());
  EXPECT_TRUE(plan_merge(similar_, head, {}, 0, 0, nullptr).empty());
}

INSTANTIATE_TEST_SUITE_P(Codecs, ValueMergingTest,
                         testing::Combine(testing::Values(KvCodec::kF32, KvCodec::kF16, KvCodec::kBF16, KvCodec::kQ8),
                                          testing::Bool()),
                         [](const auto& test) {
                           return std::string(kv_codec_name(std::get<0>(test.param))) +
                                  (std::get<1>(test.param) ? "_shared" : "_private");
                         });

TEST(MergingDraw, IsEvenAndOfThePlaceAlone) {
  double sum = 0.0;
  std::set<double> draws;
  for (int32_t position = 0; position < 4000; ++position) {
    const double draw = merging_draw(position % 7, position % 5, position);
    EXPECT_TRUE(draw >= 0.0 && draw < 1.0);
    sum += draw;
    draws.insert(draw);
  }
  EXPECT_NEAR(sum / 4000, 0.5, 0.02);
  EXPECT_EQ(draws.size(), 4000u);
  EXPECT_NE(merging_draw(0, 1, 5), merging_draw(1, 0, 5));
  EXPECT_EQ(merging_draw(3, 2, 5), merging_draw(3, 2, 5));
}

TEST(ValueNorms, OfHeadsWhoseValuesWereMergedAreNotKnownAnyMore) {
  MemoryPool pool(size_t{16} << 20);
  const std::vector<KvLayerSpec> layers = {{.num_kv_heads = 2, .key_dim = 8, .value_dim = 8}};
  ValueNorms norms(pool, layers, 10);
  for (int32_t head = 0; head < 2; ++head) {
    for (int32_t i = 0; i < 10; ++i) norms.of(0, head)[i] = static_cast<float>(i);
    norms.set_num_known(0, head, 10);
  }
  const std::vector<std::vector<int32_t>> kept = {{1, 4}, {0, 2, 9}};
  std::vector<KvMerge> merges(2);
  merges[1] = {.own = {1.0f, 1.0f, 1.0f}, .group_ends = {0, 1, 1}, .sources = {5}, .weights = {1.0f}};
  norms.keep(layers, kept, merges);
  EXPECT_EQ(norms.num_known(0, 0), 2);
  EXPECT_EQ(norms.of(0, 0)[1], 4.0f);
  EXPECT_EQ(norms.num_known(0, 1), 0);
}

}  // namespace
}  // namespace witan
