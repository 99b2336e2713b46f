#include "kv/policy/page_bounds.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

namespace witan {
namespace {

constexpr int32_t kDim = 24;
constexpr int32_t kGroup = 20;  // more rows than weights are computed of at once
constexpr int32_t kEntries = 32 * 40 + 7;

std::vector<float> random_floats(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> floats(static_cast<size_t>(count));
  std::ranges::generate(floats, [&] { return normal(random); });
  return floats;
}

struct Entries {
  KvCodec codec;
  Precision precision;  // of those who read them
};

class PageBoundsTest : public testing::TestWithParam<Entries> {
 protected:
  PageBoundsTest() {
    const std::vector<float> keys = random_floats(int64_t{kEntries} * kDim, 1);
    const std::vector<float> values = random_floats(int64_t{kEntries} * kDim, 2);
    EXPECT_TRUE(kv_.reserve(sequence_, kEntries));
    for (int32_t i = 0; i < kEntries; ++i) {
      const KvCache::Slot slot = kv_.slot(sequence_, 1, 0, i);
      kv_store(kv_.block_format(1), slot.block, slot.slot, keys.data() + i * kDim, values.data() + i * kDim);
    }
  }

  KvView view(int32_t num_entries) const { return kv_.view(sequence_, 1, 0, num_entries); }

  std::vector<int32_t> choose(const PageBounds& bounds, Isa isa, const std::vector<float>& queries,
                              int32_t num_entries) {
    std::vector<const float*> rows;
    for (int32_t g = 0; g < kGroup; ++g) rows.push_back(queries.data() + g * kDim);
    std::vector<int32_t> pages(static_cast<size_t>(bounds.num_pages_read(num_entries)));
    auto scratch =
        pool_.allocate(MemoryTag::kActivations,
                       static_cast<size_t>(bounds.scratch_floats(1, view(num_entries), kGroup)) * sizeof(float));
    const int32_t count = bounds.choose(isa, GetParam().precision, 1, 0, view(num_entries),
                                        {.queries = rows.data(), .num_rows = kGroup, .scale = 0.2f}, pages.data(),
                                        reinterpret_cast<float*>(scratch->data()));
    pages.resize(static_cast<size_t>(count));
    return pages;
  }

  // The largest score that any query has with a key of the page, and the bound that follows from its keys.
  std::pair<double, double> best_of_page(const std::vector<float>& queries, int32_t page,
                                         int32_t page_entries = kKvBlockSize) const {
    const KvView all = view(kEntries);
    double score = -1e30;
    double bound = -1e30;
    for (int32_t g = 0; g < kGroup; ++g) {
      std::vector<double> largest(kDim, -1e30);
      for (int32_t entry = page * page_entries; entry < (page + 1) * page_entries; ++entry) {
        float key[kDim];
        kv_load(all.format, all.blocks[entry / kKvBlockSize], entry % kKvBlockSize, key, nullptr);
        double dot = 0.0;
        for (int32_t d = 0; d < kDim; ++d) {
          const double product =
              static_cast<double>(queries[static_cast<size_t>(g * kDim + d)]) * static_cast<double>(key[d]);
          dot += product;
          largest[static_cast<size_t>(d)] = std::max(largest[static_cast<size_t>(d)], product);
        }
        score = std::max(score, dot);
      }
      double sum = 0.0;
      for (const double product : largest) sum += product;
      bound = std::max(bound, sum);
    }
    return {score, bound};
  }

  MemoryPool pool_{size_t{64} << 20};
  std::vector<KvLayerSpec> layers_ = {{.num_kv_heads = 1, .key_dim = kDim, .value_dim = kDim},
                                      {.num_kv_heads = 1, .key_dim = kDim, .value_dim = kDim},
                                      {.num_kv_heads = 1, .key_dim = kDim, .value_dim = kDim, .window = 64}};
  KvCache kv_{
      pool_, {.layers = layers_, .codec = GetParam().codec, .capacity_bytes = size_t{32} << 20, .prefix_cache = false}};
  SequenceId sequence_ = kv_.create();
};

TEST_P(PageBoundsTest, PagesWithTheLargestBoundsAreRead) {
  for (const int32_t size : {32, 16}) {
    PageBounds bounds(pool_, layers_, {.num_tokens = 10 * size, .num_dense_layers = 1, .page_entries = size}, kEntries);
    EXPECT_FALSE(bounds.has(0)) << "dense";
    EXPECT_FALSE(bounds.has(2)) << "it has a window";
    ASSERT_TRUE(bounds.has(1));
    // Learnt in pieces.
    for (const int32_t n : {5, 16, 32, 100, 101, 1000, kEntries}) bounds.learn(select_isa(), 1, 0, view(n));
    for (uint32_t seed = 10; seed < 20; ++seed) {
      const std::vector<float> queries = random_floats(kGroup * kDim, seed);
      for (const int32_t n : {kEntries, size * 40, size * 11 + 1}) {
        const int32_t last = (n - 1) / size;
        std::vector<std::pair<double, int32_t>> ranked;
        for (int32_t page = 0; page < last; ++page) {
          ranked.emplace_back(-best_of_page(queries, page, size).second, page);
        }
        std::ranges::sort(ranked);
        for (const Isa isa : kAllIsas) {
          if (!cpu_supports(isa)) continue;
          const std::vector<int32_t> pages = choose(bounds, isa, queries, n);
          ASSERT_EQ(pages.size(), 10u);
          EXPECT_TRUE(std::ranges::is_sorted(pages));
          EXPECT_EQ(pages.back(), last) << "the entries that are being written are always read";
          // Bounds are rounded to bfloat16, outward: pages of nearly the same bound may change places.
          for (size_t i = 0; i + 1 < pages.size(); ++i) {
            EXPECT_GE(best_of_page(queries, pages[i], size).second, -ranked[8].first * (1 - 0.01)) << isa_name(isa);
          }
        }
      }
    }
  }
}

TEST_P(PageBoundsTest, AShareIsOfTheEntriesThatThereAre) {
  PageBounds bounds(pool_, layers_, {.ratio = 0.25, .num_dense_layers = 0}, kEntries);
  bounds.learn(select_isa(), 1, 0, view(kEntries));
  const std::vector<float> queries = random_floats(kGroup * kDim, 5);
  for (const auto& [n, count] : {std::pair(kEntries, 11u), {32 * 20, 5u}, {32 * 16 + 3, 4u}, {300, 3u}, {50, 2u}}) {
    EXPECT_EQ(choose(bounds, select_isa(), queries, n).size(), count) << n;
  }
}

TEST_P(PageBoundsTest, NoScoreExceedsThem) {
  for (uint32_t seed = 30; seed < 40; ++seed) {
    const std::vector<float> queries = random_floats(kGroup * kDim, seed);
    // The page with the largest bound of all but the last is read if two are, so that its bound is no less than any
    // score of the others.
    PageBounds three(pool_, layers_, {.num_tokens = 1, .num_dense_layers = 0}, kEntries);
    three.learn(select_isa(), 1, 0, view(kEntries));
    const std::vector<int32_t> pages = choose(three, select_isa(), queries, kEntries);
    ASSERT_EQ(pages.size(), 3u);
    const double least = std::min(best_of_page(queries, pages[0]).second, best_of_page(queries, pages[1]).second);
    const std::set<int32_t> read(pages.begin(), pages.end());
    int32_t num_better = 0;
    for (int32_t page = 0; page < 40; ++page) {
      if (!read.contains(page)) num_better += best_of_page(queries, page).first > least * 1.01;
    }
    EXPECT_EQ(num_better, 0);
  }
}

// Whatever is read at once, and however much of it.
TEST_P(PageBoundsTest, TheSameIsLearntWithEveryInstructionSetAndInPieces) {
  for (const int32_t size : {32, 16}) {
    const KvPageReader reader{.num_tokens = 10 * size, .num_dense_layers = 1, .page_entries = size};
    PageBounds expected(pool_, layers_, reader, kEntries);
    expected.learn(Isa::kReference, 1, 0, view(kEntries));
    EXPECT_EQ(expected.num_known(1, 0), kEntries / size);
    for (const Isa isa : kAllIsas) {
      if (!cpu_supports(isa)) continue;
      PageBounds bounds(pool_, layers_, reader, kEntries);
      for (const int32_t n : {5, 16, 33, 48, 100, 101, 1000, kEntries}) {
        bounds.learn(isa, 1, 0, view(n));
        EXPECT_EQ(bounds.num_known(1, 0), n / size);
      }
      for (uint32_t seed = 40; seed < 50; ++seed) {
        const std::vector<float> queries = random_floats(kGroup * kDim, seed);
        EXPECT_EQ(choose(bounds, select_isa(), queries, kEntries), choose(expected, select_isa(), queries, kEntries));
      }
    }
  }
}

TEST_P(PageBoundsTest, OfEquallyGoodPagesTheFirstAreRead) {
  PageBounds bounds(pool_, layers_, {.num_tokens = 5 * 32, .num_dense_layers = 0}, kEntries);
  bounds.learn(select_isa(), 1, 0, view(kEntries));
  for (const Isa isa : kAllIsas) {
    if (!cpu_supports(isa)) continue;
    EXPECT_EQ(choose(bounds, isa, std::vector<float>(kGroup * kDim, 0.0f), kEntries),
              (std::vector<int32_t>{0, 1, 2, 3, 40}));
  }
}

TEST_P(PageBoundsTest, WhatIsLearntAnewIsOfTheEntriesThatAreLeft) {
  const KvPageReader reader{.num_tokens = 5 * 32, .num_dense_layers = 0};
  PageBounds bounds(pool_, layers_, reader, kEntries);
  bounds.learn(select_isa(), 1, 0, view(kEntries));
  std::vector<TokenId> tokens(kEntries, 1);
  kv_.commit(sequence_, tokens, std::vector<TokenRole>(kEntries, TokenRole::kPrompt));
  std::vector<int32_t> kept;
  for (int32_t entry = 0; entry < kEntries; entry += 2) kept.push_back(entry);
  ASSERT_TRUE(kv_.keep(sequence_, std::vector<std::vector<int32_t>>{kept, kept, {}}));
  ThreadPool threads(2);
  bounds.learn_anew(select_isa(), threads, kv_, sequence_);
  const auto num_kept = static_cast<int32_t>(kept.size());
  EXPECT_EQ(bounds.num_known(0, 0), num_kept / 32);
  EXPECT_EQ(bounds.num_known(1, 0), num_kept / 32);
  PageBounds expected(pool_, layers_, reader, kEntries);
  expected.learn(select_isa(), 1, 0, view(num_kept));
  for (uint32_t seed = 50; seed < 60; ++seed) {
    const std::vector<float> queries = random_floats(kGroup * kDim, seed);
    EXPECT_EQ(choose(bounds, select_isa(), queries, num_kept), choose(expected, select_isa(), queries, num_kept));
  }
}

TEST_P(PageBoundsTest, AllPagesAreReadWhereThereAreNoMore) {
  PageBounds bounds(pool_, layers_, {.num_tokens = 1000 * 32, .num_dense_layers = 0}, kEntries);
  const std::vector<int32_t> pages = choose(bounds, select_isa(), random_floats(kGroup * kDim, 3), kEntries);
  EXPECT_EQ(pages.size(), 41u);
}

INSTANTIATE_TEST_SUITE_P(Codecs, PageBoundsTest,
                         testing::Values(Entries{KvCodec::kF32, Precision::kExact},
                                         Entries{KvCodec::kBF16, Precision::kExact},
                                         Entries{KvCodec::kBF16, Precision::kFast},
                                         Entries{KvCodec::kQ8, Precision::kFast}),
                         [](const auto& entries) {
                           const bool is_exact = entries.param.precision == Precision::kExact;
                           return std::string(kv_codec_name(entries.param.codec)) + (is_exact ? "_exact" : "_fast");
                         });

}  // namespace
}  // namespace witan
