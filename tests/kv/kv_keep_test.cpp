// Dropping entries: what stays, where it is, and what it frees.
#include <gtest/gtest.h>

#include <vector>

#include "kv/kv_cache.h"
#include "naive_model_test_support.h"

namespace witan {
namespace {

using test::config_of;
using test::holds_entries;
using test::ids_of;
using test::kBlockBytes;
using test::kTables;
using test::make_tokens;
using test::Model;
using test::range;
using test::roles_of;
using test::Tokens;

using KvKeep = test::PatternModelTest;

int64_t held(const KvCache& cache) { return cache.stats().block_bytes_held / kBlockBytes; }

TEST_F(KvKeep, WhatStaysMovesTogetherAndTheRestIsFree) {
  MemoryPool pool(size_t{64} << 20);
  KvCacheConfig config = config_of(100);
  config.prefix_cache = false;
  KvCache cache(pool, config);
  Model model = start(cache, make_tokens(320, 1));
  EXPECT_EQ(held(cache), 30);
  ASSERT_TRUE(keep(cache, model, {range(0, 320, 10), range(100, 165), range(0, 1)}));
  check(cache, model);
  EXPECT_EQ(held(cache), 1 + 3 + 1);
  EXPECT_EQ(cache.held_bytes(model.id), 5 * kBlockBytes);
  // It goes on behind its own entries, at its tokens' positions.
  ASSERT_TRUE(extend(cache, model, make_tokens(40, 2)));
  check(cache, model);
  EXPECT_EQ(held(cache), 3 + 4 + 2);
  ASSERT_TRUE(keep(cache, model, {range(0, 10), range(50, 105), range(1, 41)}));  // and may lose more
  check(cache, model);
  cache.release(model.id);
  EXPECT_EQ(held(cache), 0);
  cache.check_integrity();
}

TEST_F(KvKeep, KeepingEverythingChangesNothing) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(100));
  Model model = start(cache, make_tokens(100, 1));
  const int64_t before = held(cache);
  ASSERT_TRUE(keep(cache, model, std::vector(kTables, range(0, 100))));
  check(cache, model);
  EXPECT_EQ(held(cache), before);
  ASSERT_TRUE(extend(cache, model, make_tokens(60, 2)));
  cache.release(model.id);
  // Its blocks were prefix blocks to the end: 5 of 160 tokens.
  const SequenceId other = cache.create();
  Tokens tokens = model.tokens;
  tokens.push_back({7});
  EXPECT_EQ(cache.attach_prefix(other, ids_of(tokens), roles_of(tokens)), 160);
}

TEST_F(KvKeep, ATableMayLoseAllItsEntries) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(100));
  Model model = start(cache, make_tokens(100, 1));
  ASSERT_TRUE(keep(cache, model, {range(0, 100), {}, range(0, 5)}));
  check(cache, model);
  ASSERT_TRUE(extend(cache, model, make_tokens(3, 2)));
  check(cache, model);
}

TEST_F(KvKeep, SharedBlocksStayForOthersAsTheyWere) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(100));
  const Tokens tokens = make_tokens(200, 1);
  Model dense = start(cache, tokens);
  Model model = attach(cache, tokens);
  ASSERT_EQ(model.tokens.size(), 192);
  ASSERT_TRUE(extend_to(cache, model, tokens));
  const int64_t before = held(cache);
  ASSERT_TRUE(keep(cache, model, std::vector(kTables, range(0, 200, 4))));
  check(cache, model);
  EXPECT_TRUE(holds_entries(cache, dense.id, tokens));
  // Its copies come, its own last block goes.
  EXPECT_EQ(held(cache), before + kTables * (2 - 1));
  cache.release(dense.id);
  check(cache, model);
  // What it computes now is no prefix of anything.
  ASSERT_TRUE(extend(cache, model, make_tokens(100, 3)));
  check(cache, model);
  cache.release(model.id);
  const SequenceId other = cache.create();
  EXPECT_EQ(cache.attach_prefix(other, ids_of(model.tokens), roles_of(model.tokens)), 192);
  cache.check_integrity();
}

TEST_F(KvKeep, WithoutRoomForCopiesNothingChanges) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(10));
  Model model = start(cache, make_tokens(320, 1));  // every block is full: no room for copies
  const SequenceId other = cache.create();
  Tokens tokens = model.tokens;
  tokens.push_back({7});
  ASSERT_EQ(cache.attach_prefix(other, ids_of(tokens), roles_of(tokens)), 320);
  EXPECT_FALSE(keep(cache, model, std::vector(kTables, range(0, 100))));
  check(cache, model);
  EXPECT_TRUE(holds_entries(cache, model.id, model.tokens));
  EXPECT_TRUE(holds_entries(cache, other, model.tokens));
}

TEST_F(KvKeep, WithoutRoomForCopiesPrefixBlocksThatNobodyElseHasBecomeItsOwn) {
  for (const int32_t window : {0, 70}) {
    MemoryPool pool(size_t{64} << 20);
    KvCache cache(pool, config_of(10, window));
    Model model = start(cache, make_tokens(130, 1));
    ASSERT_TRUE(extend(cache, model, make_tokens(190, 2)));
    ASSERT_TRUE(keep(cache, model, std::vector(kTables, range(0, 320, 2))));
    check(cache, model);
    const int64_t num_window_blocks = 3;  // of 96 entries
    EXPECT_EQ(held(cache), 2 * 5 + (window > 0 ? num_window_blocks : 5));
    ASSERT_TRUE(extend(cache, model, make_tokens(40, 4)));
    check(cache, model);
    const SequenceId other = cache.create();
    EXPECT_EQ(cache.attach_prefix(other, ids_of(model.tokens), roles_of(model.tokens)), 0) << "none is cached";
    cache.release(model.id);
    cache.release(other);
    EXPECT_EQ(held(cache), 0);
    cache.check_integrity();
  }
}

TEST_F(KvKeep, WithoutRoomForAllCopiesOnlyBlocksThatOthersHaveAreCopied) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(9));
  const Tokens tokens = make_tokens(40, 1);
  const Model dense = start(cache, tokens);  // a full block, and one
  Model model;
  model.id = cache.create();
  ASSERT_EQ(cache.attach_prefix(model.id, ids_of(tokens), roles_of(tokens)), 32);
  model.add(Tokens(tokens.begin(), tokens.begin() + 32));
  ASSERT_TRUE(extend(cache, model, make_tokens(192, 2)));  // 6 more
  EXPECT_EQ(cache.bytes_freed_by_keeping(model.id, 1000), -kTables * kBlockBytes) << "the shared block is copied";
  EXPECT_EQ(cache.bytes_freed_by_keeping(model.id, 64), (6 - 2) * kTables * kBlockBytes);
  Model last = start(cache, make_tokens(10, 3));
  const std::vector<std::vector<int32_t>> kept(kTables, range(0, 224, 4));  // 2 blocks of each table
  EXPECT_FALSE(keep(cache, model, kept));
  check(cache, model);
  cache.release(last.id);
  ASSERT_TRUE(keep(cache, model, kept)) << "there is room for one of them";
  check(cache, model);
  EXPECT_TRUE(holds_entries(cache, dense.id, tokens));
  EXPECT_EQ(held(cache), kTables * (2 + 2));
}

TEST_F(KvKeep, WhatIsFreedIsWithoutTheCopiesOfSharedWindows) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(100, 70));
  const Tokens tokens = make_tokens(321, 1);
  const Model dense = start(cache, tokens);
  Model model = attach(cache, tokens);
  ASSERT_TRUE(extend_to(cache, model, tokens));
  const int64_t held_before = cache.stats().block_bytes_held;
  const int64_t freed = cache.bytes_freed_by_keeping(model.id, 32);
  ASSERT_TRUE(keep(cache, model, std::vector(kTables, range(0, 32))));
  EXPECT_EQ(held_before - cache.stats().block_bytes_held, freed);
  EXPECT_LT(freed, 0) << "all that it has is shared";
  check(cache, model);
  check(cache, dense);
}

TEST_F(KvKeep, LayersWithAWindowKeepWhatTheyHave) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(100, 70));
  Model model = start(cache, make_tokens(300, 1));
  ASSERT_TRUE(keep(cache, model, {range(0, 20), range(10, 50), {}}));
  check(cache, model);
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(extend(cache, model, make_tokens(33, 10 + i)));
    check(cache, model);
  }
  cache.release(model.id);
  cache.check_integrity();
}

TEST_F(KvKeep, RandomOperationsAgreeWithANaiveModel) {
  // With 12 sets of blocks there is often no room for copies.
  for (const auto& [window, num_sets] : {std::pair(0, 60), std::pair(50, 60), std::pair(0, 12), std::pair(50, 12)}) {
    MemoryPool pool(size_t{64} << 20);
    KvCache cache(pool, config_of(num_sets, window));
    int num_kept = 0;
    operate_at_random(cache, 600, 6, [&](Model& model, int32_t, const Below& below) {
      num_kept += keep(cache, model, random_entries(model, below)) ? 1 : 0;
    });
    EXPECT_GT(num_kept, 100);
  }
}

}  // namespace
}  // namespace witan
