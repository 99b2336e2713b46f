// Dropping entries: what stays, where it is, and what it frees.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "kv/kv_cache.h"
#include "kv_test_support.h"

namespace witan {
namespace {

using test::entry_pattern;
using test::extend_chain;
using test::has_pattern;
using test::holds_entries;
using test::ids_of;
using test::make_tokens;
using test::roles_of;
using test::Tokens;
using test::write_pattern;

constexpr int64_t kBlockBytes = 32 * (16 + 16) * 4;

int32_t position_in(const KvView& view, int32_t entry) {
  return view.positions == nullptr ? entry : view.positions[entry];
}

// Three tables, with room for num_sets blocks in each.
KvCacheConfig config_of(int64_t num_sets, int32_t window = 0) {
  KvCacheConfig config;
  config.layers = {{2, 16, 16}, {1, 16, 16, false, window}};
  config.codec = KvCodec::kF32;
  config.capacity_bytes = static_cast<size_t>(num_sets * 3 * kBlockBytes);
  return config;
}

constexpr int32_t kTables = 3;

// A sequence and what it should hold.
struct Model {
  SequenceId id = 0;
  Tokens tokens;
  std::vector<std::vector<int32_t>> positions = std::vector<std::vector<int32_t>>(kTables);

  void add(const Tokens& more) {
    for (size_t i = 0; i < more.size(); ++i) {
      for (auto& table : positions) table.push_back(static_cast<int32_t>(tokens.size() + i));
    }
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
};

// The layer and head of a table.
std::pair<int32_t, int32_t> place_of(int32_t table) { return table < 2 ? std::pair(0, table) : std::pair(1, 0); }

// Writes the entries of `tokens` behind those that each table has.
bool extend(KvCache& cache, Model& model, const Tokens& tokens) {
  const auto count = static_cast<int32_t>(tokens.size());
  if (!cache.reserve(model.id, count)) return false;
  uint32_t chain = 0;
  for (const test::Token& token : model.tokens) chain = extend_chain(chain, token);
  const auto first = static_cast<int32_t>(model.tokens.size());
  for (int32_t i = 0; i < count; ++i) {
    chain = extend_chain(chain, tokens[i]);
    for (int32_t table = 0; table < kTables; ++table) {
      const auto [layer, head] = place_of(table);
      const int32_t entry = cache.num_entries(model.id, layer, head) + i;
      write_pattern(cache.block_format(layer), cache.slot(model.id, layer, head, entry),
                    entry_pattern(chain, layer, head, first + i));
      EXPECT_EQ(position_in(cache.view(model.id, layer, head, entry + 1), entry), first + i);
    }
  }
  cache.commit(model.id, ids_of(tokens), roles_of(tokens));
  model.add(tokens);
  return true;
}

// Checks every entry of every table, but for those that a window has passed.
void check(const KvCache& cache, const Model& model) {
  cache.check_integrity();
  ASSERT_EQ(cache.num_tokens(model.id), std::ssize(model.tokens));
  std::vector<uint32_t> chains;
  for (const test::Token& token : model.tokens)
    chains.push_back(extend_chain(chains.empty() ? 0 : chains.back(), token));
  for (int32_t table = 0; table < kTables; ++table) {
    const auto [layer, head] = place_of(table);
    const auto& positions = model.positions[table];
    const auto count = static_cast<int32_t>(positions.size());
    ASSERT_EQ(cache.num_entries(model.id, layer, head), count);
    const KvView view = cache.view(model.id, layer, head, count);
    const int32_t window = cache.config().layers[layer].window;
    for (int32_t entry = 0; entry < count; ++entry) {
      const int32_t position = positions[entry];
      ASSERT_EQ(position_in(view, entry), position);
      if (window > 0 && position < std::ssize(model.tokens) + 1 - window) continue;
      ASSERT_TRUE(has_pattern(view, entry, entry_pattern(chains[position], layer, head, position)))
          << "table " << table << ", entry " << entry;
    }
  }
}

// Keeps these entries of every table.
bool keep(KvCache& cache, Model& model, const std::vector<std::vector<int32_t>>& kept) {
  if (!cache.keep(model.id, kept)) return false;
  for (int32_t table = 0; table < kTables; ++table) {
    if (cache.config().layers[place_of(table).first].window > 0) continue;
    std::vector<int32_t> positions;
    for (const int32_t entry : kept[table]) positions.push_back(model.positions[table][entry]);
    model.positions[table] = positions;
  }
  return true;
}

Model start(KvCache& cache, const Tokens& tokens) {
  Model model;
  model.id = cache.create();
  EXPECT_TRUE(extend(cache, model, tokens));
  return model;
}

std::vector<int32_t> range(int32_t begin, int32_t end, int32_t step = 1) {
  std::vector<int32_t> entries;
  for (int32_t i = begin; i < end; i += step) entries.push_back(i);
  return entries;
}

int64_t held(const KvCache& cache) { return cache.stats().block_bytes_held / kBlockBytes; }

TEST(KvKeep, WhatStaysMovesTogetherAndTheRestIsFree) {
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

TEST(KvKeep, KeepingEverythingChangesNothing) {
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

TEST(KvKeep, ATableMayLoseAllItsEntries) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(100));
  Model model = start(cache, make_tokens(100, 1));
  ASSERT_TRUE(keep(cache, model, {range(0, 100), {}, range(0, 5)}));
  check(cache, model);
  ASSERT_TRUE(extend(cache, model, make_tokens(3, 2)));
  check(cache, model);
}

TEST(KvKeep, SharedBlocksStayForOthersAsTheyWere) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(100));
  const Tokens tokens = make_tokens(200, 1);
  Model dense = start(cache, tokens);
  Model model;
  model.id = cache.create();
  ASSERT_EQ(cache.attach_prefix(model.id, ids_of(tokens), roles_of(tokens)), 192);
  model.add(Tokens(tokens.begin(), tokens.begin() + 192));
  ASSERT_TRUE(extend(cache, model, Tokens(tokens.begin() + 192, tokens.end())));
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

TEST(KvKeep, WithoutRoomForCopiesNothingChanges) {
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

TEST(KvKeep, WithoutRoomForCopiesPrefixBlocksThatNobodyElseHasBecomeItsOwn) {
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

TEST(KvKeep, WithoutRoomForAllCopiesOnlyBlocksThatOthersHaveAreCopied) {
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

TEST(KvKeep, LayersWithAWindowKeepWhatTheyHave) {
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

TEST(KvKeep, RandomOperationsAgreeWithANaiveModel) {
  // With 12 sets of blocks there is often no room for copies.
  for (const auto& [window, num_sets] : {std::pair(0, 60), std::pair(50, 60), std::pair(0, 12), std::pair(50, 12)}) {
    MemoryPool pool(size_t{64} << 20);
    KvCache cache(pool, config_of(num_sets, window));
    std::mt19937 random(17);
    const auto below = [&](int n) { return static_cast<int32_t>(random() % static_cast<unsigned>(n)); };
    std::vector<Model> models;
    int kept = 0;
    for (int step = 0; step < 600; ++step) {
      const int what = below(10);
      if (what < 2 && models.size() < 6) {
        Model model;
        model.id = cache.create();
        // Few beginnings, so that they meet in the prefix cache.
        const Tokens tokens = make_tokens(40 + below(200), below(3));
        const int32_t cached = cache.attach_prefix(model.id, ids_of(tokens), roles_of(tokens));
        model.add(Tokens(tokens.begin(), tokens.begin() + cached));
        if (!extend(cache, model, Tokens(tokens.begin() + cached, tokens.end()))) {
          cache.release(model.id);
          continue;
        }
        models.push_back(model);
      } else if (models.empty()) {
        continue;
      } else if (what < 5) {
        extend(cache, models[static_cast<size_t>(below(static_cast<int>(models.size())))],
               make_tokens(1 + below(60), 100 + step));
      } else if (what < 9) {
        Model& model = models[static_cast<size_t>(below(static_cast<int>(models.size())))];
        std::vector<std::vector<int32_t>> entries(kTables);
        for (int32_t table = 0; table < kTables; ++table) {
          const int share = below(4);
          for (int32_t i = 0; i < std::ssize(model.positions[table]); ++i) {
            if (below(3) < share) entries[table].push_back(i);
          }
        }
        kept += keep(cache, model, entries) ? 1 : 0;
      } else {
        const auto i = static_cast<size_t>(below(static_cast<int>(models.size())));
        cache.release(models[i].id);
        models.erase(models.begin() + static_cast<std::ptrdiff_t>(i));
      }
      for (const Model& model : models) check(cache, model);
      if (HasFatalFailure()) return;
    }
    EXPECT_GT(kept, 100);
  }
}

}  // namespace
}  // namespace witan
