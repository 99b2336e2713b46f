// Entries that are set aside: what is read, what comes back, and what both take.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <vector>

#include "kv/kv_cache.h"
#include "naive_model_test_support.h"
#include "support/expect_error.h"

namespace witan {
namespace {

using test::config_of;
using test::holds_entries;
using test::kBlockBytes;
using test::kTables;
using test::make_tokens;
using test::Model;
using test::range;
using test::Tokens;

int64_t held(const KvCache& cache) { return cache.stats().block_bytes_held / kBlockBytes; }

class KvAsideTest : public test::PatternModelTest, public testing::WithParamInterface<KvAside> {
 protected:
  static bool is_in_file() { return GetParam() == KvAside::kFile; }

  static KvCacheConfig config(int64_t num_sets, int32_t window = 0) {
    KvCacheConfig config = config_of(num_sets, window);
    config.aside_directory = std::filesystem::temp_directory_path();
    return config;
  }

  // The tokens at these positions are read from now on.
  static bool set_aside(KvCache& cache, Model& model, const std::vector<std::vector<int32_t>>& kept, int32_t num_more) {
    cache.gather_aside(model.id);
    const auto num_tokens = static_cast<int32_t>(model.tokens.size());
    if (!cache.set_aside(model.id, kept, GetParam(), num_tokens + num_more)) return false;
    for (int32_t table = 0; table < kTables; ++table) {
      if (!has_window(cache, table)) model.positions[static_cast<size_t>(table)] = kept[static_cast<size_t>(table)];
    }
    return true;
  }

  // What lies aside is every entry of the text.
  void check_all(KvCache& cache, const Model& model) {
    cache.gather_aside(model.id);
    check(cache, model);
    uint32_t chain = 0;
    for (int32_t position = 0; position < std::ssize(model.tokens); ++position) {
      chain = test::extend_chain(chain, model.tokens[static_cast<size_t>(position)]);
      for (int32_t table = 0; table < kTables; ++table) {
        if (has_window(cache, table)) continue;
        const auto [layer, head] = test::place_of(table);
        const KvView all = cache.all_entries(model.id, layer, head);
        ASSERT_EQ(all.num_entries, std::ssize(model.tokens));
        ASSERT_EQ(all.positions, nullptr);
        ASSERT_TRUE(holds(all, position, {.table = table, .position = position, .chain = chain}))
            << "table " << table << ", position " << position;
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Places, KvAsideTest, testing::Values(KvAside::kBlocks, KvAside::kFile),
                         [](const auto& place) { return place.param == KvAside::kFile ? "file" : "blocks"; });

TEST_P(KvAsideTest, WhatIsNotReadComesBack) {
  MemoryPool pool(size_t{64} << 20);
  KvCacheConfig c = config(100);
  c.prefix_cache = false;
  KvCache cache(pool, c);
  Model model = start(cache, make_tokens(320, 1));
  EXPECT_EQ(held(cache), 30);
  ASSERT_TRUE(set_aside(cache, model, {range(0, 320, 10), range(100, 165), range(0, 1)}, 40));
  check_all(cache, model);
  EXPECT_EQ(held(cache), (is_in_file() ? 0 : 3 * 12) + 1 + 3 + 1) << "360 tokens aside, in 12 blocks a table";
  EXPECT_EQ(cache.aside_block_bytes(model.id), is_in_file() ? 0 : 36 * kBlockBytes);
  EXPECT_EQ(cache.aside_file_bytes(model.id), is_in_file() ? 36 * kBlockBytes : 0);
  ASSERT_TRUE(extend(cache, model, make_tokens(40, 2)));
  check(cache, model);
  // Entries that were not read, and new ones; one table reads all, one nothing.
  ASSERT_TRUE(set_aside(cache, model, {range(1, 360, 7), range(0, 360), {}}, 20));
  check_all(cache, model);
  ASSERT_TRUE(extend(cache, model, make_tokens(20, 3)));
  check_all(cache, model);
  cache.drop_aside(model.id);
  check(cache, model);
  EXPECT_FALSE(cache.has_aside(model.id));
  EXPECT_EQ(held(cache), 3 + 12 + 1);  // of 52 + 20, 380 and 20 entries
  cache.release(model.id);
  EXPECT_EQ(held(cache), 0);
  cache.check_integrity();
}

TEST_P(KvAsideTest, WhereEverythingIsReadNothingIsAside) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config(100));
  Model model = start(cache, make_tokens(100, 1));
  const int64_t before = held(cache);
  ASSERT_TRUE(set_aside(cache, model, std::vector(kTables, range(0, 100)), 64));
  EXPECT_FALSE(cache.has_aside(model.id));
  EXPECT_EQ(held(cache), before);
  check(cache, model);
}

TEST_P(KvAsideTest, SharedBlocksStayForOthersAndInBlocksAreNotCopied) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config(100));
  const Tokens tokens = make_tokens(200, 1);
  Model dense = start(cache, tokens);
  Model model = attach(cache, tokens);
  ASSERT_TRUE(extend_to(cache, model, tokens));
  EXPECT_EQ(held(cache), kTables * (6 + 2));
  ASSERT_TRUE(set_aside(cache, model, std::vector(kTables, range(0, 200, 4)), 24));
  check_all(cache, model);
  EXPECT_TRUE(holds_entries(cache, dense.id, tokens));
  EXPECT_EQ(held(cache), kTables * (6 + 1 + 2 + (is_in_file() ? 0 : 1)));
  ASSERT_TRUE(extend(cache, model, make_tokens(24, 2)));
  check_all(cache, model);
  EXPECT_TRUE(holds_entries(cache, dense.id, tokens)) << "its part of a block that is not full was its own";
  cache.release(dense.id);
  check_all(cache, model);
  cache.clear_prefix_cache();
  check_all(cache, model);
  cache.release(model.id);
  cache.clear_prefix_cache();
  EXPECT_EQ(held(cache), 0);
  cache.check_integrity();
}

TEST_P(KvAsideTest, WithoutRoomNothingChanges) {
  MemoryPool pool(size_t{64} << 20);
  KvCacheConfig c = config(11);
  c.prefix_cache = false;
  KvCache cache(pool, c);
  Model model = start(cache, make_tokens(320, 1));
  const std::vector kept(kTables, range(0, 320, 5));
  if (!is_in_file()) {
    EXPECT_FALSE(set_aside(cache, model, kept, 0)) << "2 blocks of what is read, and room for 1";
    check(cache, model);
    EXPECT_FALSE(cache.has_aside(model.id));
    EXPECT_TRUE(set_aside(cache, model, std::vector(kTables, range(0, 320, 10)), 0));
    check_all(cache, model);
    EXPECT_FALSE(set_aside(cache, model, kept, 0));
    EXPECT_FALSE(set_aside(cache, model, std::vector(kTables, range(0, 320, 10)), 1));
  } else {
    ASSERT_TRUE(set_aside(cache, model, kept, 0));
    Model other = start(cache, make_tokens(9 * 32, 2));
    EXPECT_FALSE(set_aside(cache, model, std::vector(kTables, range(0, 65)), 100));
    check(cache, other);
  }
  check_all(cache, model);
}

// Tables that read less make room for those that read more, and for what lies aside.
TEST_P(KvAsideTest, RoomThatOneTableLeavesIsAnothers) {
  MemoryPool pool(size_t{64} << 20);
  KvCacheConfig c = config(0);
  c.capacity_bytes = static_cast<size_t>((10 + 11 + (is_in_file() ? 9 : 30)) * kBlockBytes);
  c.prefix_cache = false;
  KvCache cache(pool, c);
  Model model = start(cache, make_tokens(300, 1));
  ASSERT_TRUE(set_aside(cache, model, {range(0, 288), range(0, 10), range(0, 32)}, 20));
  EXPECT_EQ(held(cache), 9 + 1 + 1 + (is_in_file() ? 0 : 30));
  ASSERT_TRUE(set_aside(cache, model, {range(0, 10), range(12, 300), range(0, 32)}, 20));
  check_all(cache, model);
  ASSERT_TRUE(set_aside(cache, model, {range(0, 10), range(0, 10), range(0, 96)}, 52));  // and two blocks a table aside
  check_all(cache, model);
  EXPECT_EQ(held(cache), 1 + 1 + 3 + (is_in_file() ? 0 : 33));
}

// Neither a file that was written for nothing nor anything else is left.
TEST_P(KvAsideTest, AFirstTimeWithoutRoomCanBeRepeated) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config(13));
  const Tokens tokens = make_tokens(320, 1);
  Model other = start(cache, tokens);
  Model model = attach(cache, tokens);
  ASSERT_TRUE(extend_to(cache, model, tokens));
  EXPECT_FALSE(set_aside(cache, model, std::vector(kTables, range(0, 320, 2)), 10));
  EXPECT_FALSE(cache.has_aside(model.id));
  EXPECT_TRUE(holds_entries(cache, model.id, tokens));
  ASSERT_TRUE(set_aside(cache, model, std::vector(kTables, range(0, 320, 8)), 0)) << "fewer have room";
  check_all(cache, model);
  EXPECT_TRUE(holds_entries(cache, other.id, tokens));
}

TEST_P(KvAsideTest, SequencesChangeAtRandom) {
  for (const int32_t window : {0, 50}) {
    MemoryPool pool(size_t{64} << 20);
    KvCache cache(pool, config(40, window));
    struct Aside {
      int32_t num_tokens = 0;
      bool is_over = false;
    };
    std::map<SequenceId, Aside> asides;
    int32_t num_set = 0;
    operate_at_random(cache, 1500, 6, [&](Model& model, int32_t what, const Below& below) {
      Aside& aside = asides[model.id];
      const auto num_tokens = static_cast<int32_t>(model.tokens.size());
      if (aside.is_over) return;
      if (cache.has_aside(model.id) && (what == 3 || num_tokens > aside.num_tokens)) {
        cache.drop_aside(model.id);
        aside.is_over = true;
        return;
      }
      if (what == 2 && cache.has_aside(model.id)) return check_all(cache, model);
      std::vector<std::vector<int32_t>> kept(kTables);
      for (auto& table : kept) table = range(below(40), num_tokens, 1 + below(9));
      const int32_t num_more = below(150);
      if (!set_aside(cache, model, kept, num_more)) return;
      aside.num_tokens = num_tokens + num_more;
      num_set += cache.has_aside(model.id);
      check_all(cache, model);
    });
    EXPECT_GT(num_set, 100);
  }
}

TEST(KvAside, ADirectoryThatIsNotThereIsAnErrorAndNothingChanges) {
  MemoryPool pool(size_t{64} << 20);
  KvCacheConfig config = config_of(100);
  config.aside_directory = "/no/such/place";
  KvCache cache(pool, config);
  const Tokens tokens = make_tokens(200, 1);
  const SequenceId sequence = cache.create();
  ASSERT_TRUE(test::append(cache, sequence, {}, tokens));
  test::expect_error(ErrorCode::kIo, "/no/such/place",
                     [&] { (void)cache.set_aside(sequence, std::vector(kTables, range(0, 50)), KvAside::kFile, 200); });
  EXPECT_TRUE(holds_entries(cache, sequence, tokens));
  cache.check_integrity();
}

}  // namespace
}  // namespace witan
