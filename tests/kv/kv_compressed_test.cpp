// What KV policies left of the beginnings of texts, kept for later sequences.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "kernels/attention/kv_block.h"
#include "kv/kv_cache.h"
#include "kv_test_support.h"
#include "naive_model_test_support.h"

namespace witan {
namespace {

using test::append;
using test::config_of;
using test::holds_entries;
using test::ids_of;
using test::kDim;
using test::make_tokens;
using test::roles_of;
using test::Tokens;

constexpr const char* kPolicy = "keydiff,keep=0.4,prefill_every=100";
const KvDemotion kDemotion{.codecs = {KvCodec::kHadamard4, KvCodec::kHadamard8}, .num_recent = 8};

// Of three tables, two of layer 0 and one of layer 1.
class KvCompressedTest : public testing::Test {
 protected:
  void open(const KvCacheConfig& config) { cache_.emplace(memory_, config); }
  KvCache& cache() { return *cache_; }

  // Entries of all tables, of any values.
  void extend(SequenceId id, const Tokens& tokens) {
    const auto count = static_cast<int32_t>(tokens.size());
    ASSERT_TRUE(cache().reserve(id, count));
    for (int32_t i = 0; i < 3 * count; ++i) {
      const int32_t layer = i % 3 / 2;
      const int32_t head = i % 3 % 2;
      const KvCache::Slot slot = cache().slot(id, layer, head, cache().num_entries(id, layer, head) + i / 3);
      std::vector<float> entry(2 * kDim);
      for (float& x : entry) x = std::sin(static_cast<float>(++num_written_));
      kv_store(cache().block_format(layer), slot.block, slot.slot, entry.data(), entry.data() + kDim);
    }
    cache().commit(id, ids_of(tokens), roles_of(tokens));
  }

  // A sequence of these tokens of which each head keeps other entries, every fourth.
  SequenceId compressed(const Tokens& tokens, int32_t every = 4) {
    const SequenceId id = cache().create();
    extend(id, tokens);
    std::vector<std::vector<int32_t>> kept(3);
    for (size_t table = 0; table < 3; ++table) {
      for (int32_t i = static_cast<int32_t>(table) % every; i < std::ssize(tokens); i += every) {
        kept[table].push_back(i);
      }
    }
    EXPECT_TRUE(cache().keep(id, kept));
    return id;
  }

  // All that attention sees of a sequence: positions and entries, by table.
  std::vector<std::vector<float>> contents(SequenceId id) {
    std::vector<std::vector<float>> all;
    for (int32_t layer = 0; layer < 2; ++layer) {
      for (int32_t head = 0; head < cache().config().layers[static_cast<size_t>(layer)].num_kv_heads; ++head) {
        const KvView view = cache().view(id, layer, head, cache().num_entries(id, layer, head));
        std::vector<float>& table = all.emplace_back();
        const int32_t window = cache().config().layers[static_cast<size_t>(layer)].window;
        const int32_t first = window > 0 ? std::max(0, view.num_entries + 1 - window) : 0;
        for (int32_t i = first; i < view.num_entries; ++i) {
          table.push_back(static_cast<float>(view.positions == nullptr ? i : view.positions[i]));
          std::vector<float> entry(2 * kDim);
          view.load(i, entry.data(), entry.data() + kDim);
          table.insert(table.end(), entry.begin(), entry.end());
        }
        table.push_back(static_cast<float>(view.num_demoted));
      }
    }
    return all;
  }

  MemoryPool memory_{size_t{64} << 20};
  std::optional<KvCache> cache_;
  int64_t num_written_ = 0;
};

TEST_F(KvCompressedTest, ALaterSequenceGoesOnFromACopy) {
  for (const bool demoted : {false, true}) {
    for (const int32_t window : {0, 40}) {
      open(config_of(80, window));
      const Tokens text = make_tokens(200, 1);
      const SequenceId first = compressed(text);
      if (demoted) {
        ThreadPool threads(1);
        ASSERT_TRUE(cache().demote(first, kDemotion, Isa::kReference, threads));
        ASSERT_GT(cache().num_demoted(first, 0, 0), 0);
      }
      const auto expected = contents(first);
      const int64_t bytes = cache().held_bytes(first);
      ASSERT_TRUE(cache().save_compressed(first, kPolicy, ids_of(text)));
      EXPECT_EQ(cache().stats().compressed_bytes, bytes);
      cache().check_integrity();
      cache().release(first);

      Tokens longer = text;
      const Tokens more = make_tokens(50, 2);
      longer.insert(longer.end(), more.begin(), more.end());
      const auto found = cache().find_compressed(kPolicy, ids_of(longer));
      ASSERT_TRUE(found);
      EXPECT_EQ(found->num_tokens, 200);
      const SequenceId next = cache().create();
      ASSERT_TRUE(cache().attach_compressed(next, found->id));
      cache().check_integrity();
      EXPECT_EQ(cache().num_tokens(next), 200);
      EXPECT_EQ(cache().held_bytes(next), bytes);
      EXPECT_EQ(contents(next), expected);
      EXPECT_EQ(cache().stats().prefix_hit_tokens, 200);

      // What it does then is its own.
      extend(next, more);
      cache().check_integrity();
      const SequenceId third = cache().create();
      ASSERT_TRUE(cache().attach_compressed(third, cache().find_compressed(kPolicy, ids_of(longer))->id));
      EXPECT_EQ(contents(third), expected);
      cache().release(next);
      cache().release(third);
      cache().clear_prefix_cache();
      EXPECT_EQ(cache().stats().block_bytes_held, 0);
      cache().check_integrity();
    }
  }
}

TEST_F(KvCompressedTest, TheLongestOfThePolicyThatTheTextGoesOnBehindIsFound) {
  open(config_of(100));
  const Tokens text = make_tokens(200, 1);
  const auto save = [&](int32_t length, const char* policy) {
    const Tokens part(text.begin(), text.begin() + length);
    const SequenceId id = compressed(part);
    EXPECT_TRUE(cache().save_compressed(id, policy, ids_of(part)));
    EXPECT_TRUE(cache().save_compressed(id, policy, ids_of(part))) << "again";
    cache().release(id);
  };
  save(100, kPolicy);
  const int64_t bytes = cache().stats().compressed_bytes;
  save(150, kPolicy);
  save(180, "keynorm,keep=0.4,prefill_every=30");
  EXPECT_EQ(cache().stats().compressed_bytes, 5 * bytes) << "each is there once";
  const auto length_of = [&](std::vector<TokenId> tokens) {
    const auto found = cache().find_compressed(kPolicy, tokens);
    return found ? found->num_tokens : 0;
  };
  std::vector<TokenId> tokens = ids_of(text);
  EXPECT_EQ(length_of(tokens), 150);
  EXPECT_EQ(length_of({tokens.begin(), tokens.begin() + 151}), 150);
  EXPECT_EQ(length_of({tokens.begin(), tokens.begin() + 150}), 100) << "a token is left to compute";
  EXPECT_EQ(length_of({tokens.begin(), tokens.begin() + 100}), 0);
  tokens[120] += 1;
  EXPECT_EQ(length_of(tokens), 100);
  tokens[0] += 1;
  EXPECT_EQ(length_of(tokens), 0);
  EXPECT_FALSE(cache().find_compressed("keydiff,keep=0.4,prefill_every=101", ids_of(text)));
}

TEST_F(KvCompressedTest, TheyGiveWayLeastRecentlyUsedFirstAfterPrefixBlocks) {
  open(config_of(40));
  std::vector<Tokens> texts;
  for (int32_t i = 0; i < 4; ++i) {
    texts.push_back(make_tokens(256, 10 + i));
    const SequenceId id = compressed(texts.back());
    ASSERT_TRUE(cache().save_compressed(id, kPolicy, ids_of(texts.back())));
    cache().release(id);
  }
  const auto is_there = [&](size_t i) {
    Tokens longer = texts[i];
    longer.push_back({1});
    return cache().find_compressed(kPolicy, ids_of(longer)).has_value();
  };
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(is_there(i));
  const SequenceId user = cache().create();  // of the oldest, which is the most recently used then
  Tokens longer = texts[0];
  longer.push_back({1});
  ASSERT_TRUE(cache().attach_compressed(user, cache().find_compressed(kPolicy, ids_of(longer))->id));
  cache().release(user);
  ASSERT_GT(cache().stats().block_bytes_cached, cache().stats().compressed_bytes) << "prefix blocks";

  const int64_t sets = static_cast<int64_t>(config_of(1).capacity_bytes);
  const int64_t compressed_sets = cache().stats().compressed_bytes / sets;  // 2 each
  ASSERT_EQ(compressed_sets, 8);
  const SequenceId big = cache().create();
  ASSERT_TRUE(cache().reserve(big, 32 * kKvBlockSize));
  EXPECT_EQ(cache().stats().block_bytes_cached, cache().stats().compressed_bytes) << "prefix blocks went first";
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(is_there(i));
  EXPECT_EQ(cache().available_bytes(), 8 * sets);
  ASSERT_TRUE(cache().reserve(big, 33 * kKvBlockSize));
  EXPECT_FALSE(is_there(1));
  for (const size_t i : {0, 2, 3}) EXPECT_TRUE(is_there(i));
  ASSERT_TRUE(cache().reserve(big, 38 * kKvBlockSize));
  EXPECT_TRUE(is_there(0));
  cache().check_integrity();

  // No room for the copy of the last one: it stays, and nothing changes.
  const SequenceId late = cache().create();
  ASSERT_TRUE(cache().reserve(big, 38 * kKvBlockSize));
  EXPECT_FALSE(cache().attach_compressed(late, cache().find_compressed(kPolicy, ids_of(longer))->id));
  EXPECT_EQ(cache().num_tokens(late), 0);
  EXPECT_TRUE(is_there(0));
  cache().check_integrity();
}

TEST_F(KvCompressedTest, TheyTakeAQuarterOfTheCapacityAtMost) {
  open(config_of(40));
  const int64_t most = static_cast<int64_t>(config_of(10).capacity_bytes);
  for (int32_t i = 0; i < 8; ++i) {
    const Tokens text = make_tokens(256, 10 + i);
    const SequenceId id = compressed(text);
    EXPECT_TRUE(cache().save_compressed(id, kPolicy, ids_of(text)));
    EXPECT_LE(cache().stats().compressed_bytes, most);
    cache().release(id);
  }
  EXPECT_EQ(cache().stats().compressed_bytes, most);
  open(config_of(12));
  const Tokens text = make_tokens(256, 1);
  const SequenceId half = compressed(text, 2);  // 4 blocks of each table
  EXPECT_FALSE(cache().save_compressed(half, kPolicy, ids_of(text))) << "more than a quarter";
  cache().release(half);
  const SequenceId quarter = compressed(text, 3);
  EXPECT_TRUE(cache().save_compressed(quarter, kPolicy, ids_of(text)));
  cache().check_integrity();
}

// Memory that copies of few bits lie in is there for other entries too, where they are all that is left to drop.
TEST_F(KvCompressedTest, MemoryOfOneTypeOfEntriesBecomesRoomForAnother) {
  MemoryPool memory(4 * MemoryPool::kFrameBytes);
  constexpr int64_t kSets = 341;  // in 1024 blocks of 8 KiB
  KvCache cache(memory, config_of(kSets));
  const Tokens text = make_tokens(96 * kKvBlockSize, 1);
  const SequenceId id = cache.create();
  ASSERT_TRUE(append(cache, id, {}, text));
  ThreadPool threads(1);
  const KvDemotion all{.codecs = kDemotion.codecs, .num_recent = 0};
  ASSERT_TRUE(cache.demote(id, all, Isa::kReference, threads));
  ASSERT_TRUE(cache.save_compressed(id, kPolicy, ids_of(text)));
  cache.release(id);
  ASSERT_GT(cache.stats().compressed_bytes, 0);
  const SequenceId dense = cache.create();
  EXPECT_TRUE(cache.reserve(dense, kSets * kKvBlockSize));
  EXPECT_EQ(cache.stats().compressed_bytes, 0);
  cache.check_integrity();
}

TEST_F(KvCompressedTest, NothingIsKeptWithoutThePrefixCacheOrOfATextAsItWasComputed) {
  KvCacheConfig config = config_of(40);
  config.prefix_cache = false;
  open(config);
  const Tokens text = make_tokens(100, 1);
  EXPECT_FALSE(cache().save_compressed(compressed(text), kPolicy, ids_of(text)));
  EXPECT_EQ(cache().stats().compressed_bytes, 0);

  open(config_of(40));
  const SequenceId dense = cache().create();
  ASSERT_TRUE(append(cache(), dense, {}, text));
  EXPECT_FALSE(cache().save_compressed(dense, kPolicy, ids_of(text)));
  EXPECT_EQ(cache().stats().compressed_bytes, 0);
}

TEST_F(KvCompressedTest, ASequenceWithoutThePolicyNeverFindsOne) {
  open(config_of(40));
  const Tokens text = make_tokens(200, 1);
  const SequenceId first = cache().create();
  ASSERT_TRUE(append(cache(), first, {}, text));
  cache().release(first);
  const SequenceId id = compressed(text);  // of the same prefix blocks
  ASSERT_TRUE(cache().save_compressed(id, kPolicy, ids_of(text)));
  cache().release(id);
  Tokens longer = text;
  longer.push_back({1});
  const SequenceId exact = cache().create();
  EXPECT_EQ(cache().attach_prefix(exact, ids_of(longer), roles_of(longer)), 192);
  EXPECT_TRUE(holds_entries(cache(), exact, Tokens(text.begin(), text.begin() + 192)));
}

}  // namespace
}  // namespace witan
