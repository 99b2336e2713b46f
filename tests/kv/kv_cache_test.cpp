#include "kv/kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "kv_test_support.h"

namespace witan {
namespace {

using test::append;
using test::holds_entries;
using test::ids_of;
using test::make_tokens;
using test::roles_of;
using test::Tokens;
using testing::HasSubstr;

constexpr size_t kFrame = MemoryPool::kFrameBytes;
constexpr int64_t kSmallSetBytes = 3 * 32 * (16 + 16) * 4;

// Three tables, with room for num_sets blocks in each.
KvCacheConfig small_config(int64_t num_sets) {
  KvCacheConfig config;
  config.layers = {{2, 16, 16}, {1, 16, 16}};
  config.codec = KvCodec::kF32;
  config.capacity_bytes = static_cast<size_t>(num_sets * kSmallSetBytes);
  return config;
}

Tokens first(const Tokens& tokens, int64_t count) { return {tokens.begin(), tokens.begin() + count}; }

Tokens join(Tokens tokens, const Tokens& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
  return tokens;
}

// Begins a sequence with what is cached of `tokens` and computes the rest.
SequenceId start(KvCache& cache, const Tokens& tokens) {
  const SequenceId id = cache.create();
  const int32_t num_cached = cache.attach_prefix(id, ids_of(tokens), roles_of(tokens));
  const Tokens rest(tokens.begin() + num_cached, tokens.end());
  EXPECT_TRUE(append(cache, id, first(tokens, num_cached), rest));
  EXPECT_TRUE(holds_entries(cache, id, tokens));
  cache.check_integrity();
  return id;
}

void start_and_release(KvCache& cache, const Tokens& tokens) {
  cache.release(start(cache, tokens));
  cache.check_integrity();
}

// How many tokens of this text are cached. Asking counts as use of them.
int32_t num_cached(KvCache& cache, const Tokens& tokens) {
  const Tokens asked = join(tokens, {{-1}});  // a token is always left to compute
  const SequenceId id = cache.create();
  const int32_t found = cache.attach_prefix(id, ids_of(asked), roles_of(asked));
  EXPECT_TRUE(holds_entries(cache, id, first(tokens, found)));
  cache.release(id);
  return found;
}

std::vector<const std::byte*> blocks_of(const KvCache& cache, SequenceId id, int32_t layer, int32_t head) {
  const KvView view = cache.view(id, layer, head, cache.num_entries(id, layer, head));
  return {view.blocks, view.blocks + (view.num_entries + kKvBlockSize - 1) / kKvBlockSize};
}

class KvCacheTest : public testing::Test {
 protected:
  MemoryPool pool_{size_t{256} << 20};
};

TEST_F(KvCacheTest, BytesAreThoseOfWholeBlocks) {
  KvCache cache(pool_, small_config(8));
  EXPECT_EQ(cache.bytes_per_token(), 3 * (16 + 16) * 4);
  EXPECT_EQ(cache.bytes_for_tokens(0), 0);
  EXPECT_EQ(cache.bytes_for_tokens(1), kSmallSetBytes);
  EXPECT_EQ(cache.bytes_for_tokens(32), kSmallSetBytes);
  EXPECT_EQ(cache.bytes_for_tokens(33), 2 * kSmallSetBytes);
  const SequenceId id = start(cache, make_tokens(33, 1));
  EXPECT_EQ(cache.held_bytes(id), 2 * kSmallSetBytes);
  EXPECT_EQ(cache.stats().block_bytes_held, 2 * kSmallSetBytes);
}

TEST_F(KvCacheTest, ASecondSequenceReadsTheSameBlocks) {
  KvCache cache(pool_, small_config(20));
  const Tokens tokens = make_tokens(100, 1);
  const SequenceId a = start(cache, tokens);
  const SequenceId b = start(cache, tokens);
  for (const auto& [layer, head] : {std::pair{0, 0}, {0, 1}, {1, 0}}) {
    const auto of_a = blocks_of(cache, a, layer, head);
    const auto of_b = blocks_of(cache, b, layer, head);
    ASSERT_EQ(of_b.size(), 4);
    EXPECT_TRUE(std::equal(of_a.begin(), of_a.begin() + 3, of_b.begin()));
    EXPECT_NE(of_a[3], of_b[3]);  // partial blocks are private
  }
  EXPECT_EQ(cache.stats().block_bytes_held, 5 * kSmallSetBytes);  // three shared, two partial
  EXPECT_EQ(cache.held_bytes(b), 4 * kSmallSetBytes);
  EXPECT_EQ(cache.stats().prefix_lookup_tokens, 200);
  EXPECT_EQ(cache.stats().prefix_hit_tokens, 96);
}

TEST_F(KvCacheTest, AttachingLeavesAtLeastOneTokenToCompute) {
  KvCache cache(pool_, small_config(20));
  const Tokens tokens = make_tokens(96, 1);
  start_and_release(cache, tokens);
  for (const auto& [count, expected] :
       {std::pair{0, 0}, {1, 0}, {32, 0}, {33, 32}, {64, 32}, {65, 64}, {95, 64}, {96, 64}}) {
    const SequenceId id = cache.create();
    EXPECT_EQ(cache.attach_prefix(id, ids_of(first(tokens, count)), roles_of(first(tokens, count))), expected) << count;
    cache.release(id);
  }
}

TEST_F(KvCacheTest, SharedBlocksAreNeverWrittenAgain) {
  KvCache cache(pool_, small_config(20));
  const Tokens common = make_tokens(64, 1);
  const SequenceId a = start(cache, common);
  const auto shared = blocks_of(cache, a, 0, 1);
  const auto block_bytes = static_cast<size_t>(cache.block_format(0).block_bytes());
  std::string before;
  for (const std::byte* block : shared) before.append(reinterpret_cast<const char*>(block), block_bytes);

  const SequenceId b = start(cache, join(common, make_tokens(70, 2)));
  ASSERT_TRUE(append(cache, a, common, make_tokens(70, 3)));
  std::string after;
  for (const std::byte* block : shared) after.append(reinterpret_cast<const char*>(block), block_bytes);
  EXPECT_EQ(before, after);
  for (SequenceId id : {a, b}) {
    ASSERT_TRUE(cache.reserve(id, 100));
    for (int32_t entry = cache.num_tokens(id); entry < cache.num_tokens(id) + 100; ++entry) {
      for (const std::byte* block : shared) EXPECT_NE(cache.slot(id, 0, 1, entry).block, block);
    }
  }
}

TEST_F(KvCacheTest, EqualBlocksComputedTwiceAreHeldOnce) {
  KvCache cache(pool_, small_config(20));
  const Tokens tokens = make_tokens(64, 1);
  const SequenceId a = cache.create();
  const SequenceId b = cache.create();
  ASSERT_TRUE(append(cache, a, {}, first(tokens, 40)));
  ASSERT_TRUE(append(cache, b, {}, first(tokens, 20)));
  EXPECT_EQ(cache.stats().block_bytes_held, 3 * kSmallSetBytes);
  const Tokens rest(tokens.begin() + 20, tokens.end());
  ASSERT_TRUE(append(cache, b, first(tokens, 20), rest));
  cache.check_integrity();
  EXPECT_EQ(blocks_of(cache, a, 1, 0)[0], blocks_of(cache, b, 1, 0)[0]);
  EXPECT_EQ(cache.stats().block_bytes_held, 3 * kSmallSetBytes);
  EXPECT_TRUE(holds_entries(cache, b, tokens));
}

TEST_F(KvCacheTest, RolesAreNotShared) {
  KvCache cache(pool_, small_config(20));
  const Tokens prompt = make_tokens(64, 1, TokenRole::kPrompt);
  Tokens mixed = prompt;
  mixed[63].role = TokenRole::kGenerated;
  start_and_release(cache, prompt);
  EXPECT_EQ(num_cached(cache, make_tokens(64, 1, TokenRole::kGenerated)), 0);
  EXPECT_EQ(num_cached(cache, mixed), 32);
  start_and_release(cache, mixed);
  EXPECT_EQ(num_cached(cache, mixed), 64);
  EXPECT_EQ(num_cached(cache, prompt), 64);
}

TEST_F(KvCacheTest, LeastRecentlyUsedTextsAreDroppedFirst) {
  KvCache cache(pool_, small_config(6));
  const std::vector<Tokens> texts = {make_tokens(64, 0), make_tokens(64, 1), make_tokens(64, 2)};
  for (const Tokens& text : texts) start_and_release(cache, text);
  EXPECT_EQ(cache.stats().block_bytes_cached, 6 * kSmallSetBytes);
  EXPECT_EQ(num_cached(cache, texts[0]), 64);  // now the last used
  start_and_release(cache, make_tokens(64, 3));
  EXPECT_EQ(cache.stats().prefix_evicted_blocks, 2);
  EXPECT_EQ(num_cached(cache, texts[1]), 0);
  EXPECT_EQ(num_cached(cache, texts[0]), 64);
  EXPECT_EQ(num_cached(cache, texts[2]), 64);
}

TEST_F(KvCacheTest, ATextIsDroppedFromItsTail) {
  KvCache cache(pool_, small_config(5));
  const Tokens text = make_tokens(5 * 32, 1);
  start_and_release(cache, text);
  std::vector<SequenceId> others;
  for (int i = 1; i <= 5; ++i) {
    const SequenceId id = cache.create();
    ASSERT_TRUE(cache.reserve(id, 32));
    others.push_back(id);
    EXPECT_EQ(num_cached(cache, text), 32 * (5 - i));
    cache.check_integrity();
  }
}

TEST_F(KvCacheTest, TextsInUseAndTheirBeginningsAreNotDropped) {
  KvCache cache(pool_, small_config(6));
  const Tokens text = make_tokens(64, 1);
  start_and_release(cache, join(text, make_tokens(64, 2)));  // four blocks, the first two shared with:
  const SequenceId user = start(cache, join(text, make_tokens(32, 3)));
  const SequenceId other = cache.create();
  EXPECT_TRUE(cache.reserve(other, 3 * 32));  // the free one and the two unused
  EXPECT_FALSE(cache.reserve(other, 4 * 32));
  EXPECT_EQ(cache.stats().prefix_evicted_blocks, 2);
  EXPECT_TRUE(holds_entries(cache, user, join(text, make_tokens(32, 3))));
  cache.check_integrity();
}

TEST_F(KvCacheTest, CapacityIsMetExactly) {
  for (int64_t spare_bytes : {int64_t{0}, kSmallSetBytes - 1}) {
    KvCacheConfig config = small_config(7);
    config.capacity_bytes += static_cast<size_t>(spare_bytes);
    KvCache cache(pool_, config);
    EXPECT_EQ(cache.available_bytes(), 7 * kSmallSetBytes);
    const SequenceId a = cache.create();
    const SequenceId b = cache.create();
    EXPECT_FALSE(cache.reserve(a, 7 * 32 + 1));
    EXPECT_TRUE(cache.reserve(a, 4 * 32));
    EXPECT_FALSE(cache.reserve(b, 3 * 32 + 1));
    EXPECT_TRUE(cache.reserve(b, 3 * 32));
    EXPECT_EQ(cache.stats().block_bytes_held, 7 * kSmallSetBytes);
    EXPECT_EQ(cache.available_bytes(), 0);
    EXPECT_FALSE(cache.reserve(a, 4 * 32 + 1));
    EXPECT_TRUE(cache.reserve(a, 4 * 32));
    cache.check_integrity();
  }
}

TEST_F(KvCacheTest, WithoutACapacityTheMemoryPoolIsTheBound) {
  MemoryPool pool(2 * kFrame);
  KvCacheConfig config = small_config(1);
  config.capacity_bytes = std::numeric_limits<size_t>::max();
  KvCache cache(pool, config);
  EXPECT_EQ(cache.available_bytes(), 1024 / 3 * kSmallSetBytes);
  const SequenceId id = cache.create();
  EXPECT_FALSE(cache.reserve(id, 342 * 32));
  EXPECT_TRUE(cache.reserve(id, 341 * 32));
  cache.check_integrity();
}

// What a caller can see of a cache and its sequences.
struct Snapshot {
  KvCacheStats stats;
  int64_t available_bytes;
  size_t pool_bytes;
  std::vector<const std::byte*> blocks;

  Snapshot(const KvCache& cache, const MemoryPool& pool, SequenceId id)
      : stats(cache.stats()),
        available_bytes(cache.available_bytes()),
        pool_bytes(pool.held_bytes()),
        blocks(blocks_of(cache, id, 1, 0)) {}

  void expect_same(const Snapshot& other) const {
    EXPECT_EQ(stats.block_bytes_held, other.stats.block_bytes_held);
    EXPECT_EQ(stats.block_bytes_cached, other.stats.block_bytes_cached);
    EXPECT_EQ(stats.peak_block_bytes_held, other.stats.peak_block_bytes_held);
    EXPECT_EQ(stats.prefix_evicted_blocks, other.stats.prefix_evicted_blocks);
    EXPECT_EQ(available_bytes, other.available_bytes);
    EXPECT_EQ(pool_bytes, other.pool_bytes);
    EXPECT_EQ(blocks, other.blocks);
  }
};

TEST_F(KvCacheTest, AReserveThatFailsChangesNothing) {
  struct Case {
    std::string name;
    size_t pool_frames;
    int64_t num_sets;
  };
  // 170 blocks of three tables, each 4 KiB, fill a frame but for 2 blocks.
  for (const Case& c : {Case{"capacity", 10, 100}, Case{"frames", 1, 1000}}) {
    MemoryPool pool(c.pool_frames * kFrame);
    KvCache cache(pool, small_config(c.num_sets));
    const Tokens cached = make_tokens(50 * 32, 1);
    start_and_release(cache, cached);
    const Tokens tokens = make_tokens(40, 2);
    const SequenceId id = start(cache, tokens);
    ASSERT_TRUE(cache.reserve(id, 50));
    const Snapshot before(cache, pool, id);
    EXPECT_FALSE(cache.reserve(id, 200 * 32)) << c.name;
    cache.check_integrity();
    before.expect_same(Snapshot(cache, pool, id));
    // The earlier reservation still stands.
    test::write_entries(cache, id, 0, make_tokens(50, 4));
    EXPECT_TRUE(holds_entries(cache, id, tokens)) << c.name;
    EXPECT_EQ(num_cached(cache, cached), 50 * 32) << c.name;
    EXPECT_EQ(cache.available_bytes(), before.available_bytes);
    EXPECT_TRUE(cache.reserve(id, static_cast<int32_t>(before.available_bytes / kSmallSetBytes) * 32)) << c.name;
  }
}

TEST_F(KvCacheTest, PrefixBlocksMakeRoomWhenOthersTakeTheFrames) {
  MemoryPool pool(4 * kFrame);
  KvCache cache(pool, small_config(1000));
  start_and_release(cache, make_tokens(160 * 32, 1));  // nearly a frame
  const auto weights = pool.allocate(MemoryTag::kWeights, 3 * kFrame);
  ASSERT_TRUE(weights);
  EXPECT_EQ(cache.available_bytes(), 170 * kSmallSetBytes);
  const SequenceId id = cache.create();
  EXPECT_FALSE(cache.reserve(id, 171 * 32));
  EXPECT_EQ(cache.stats().prefix_evicted_blocks, 0);
  EXPECT_TRUE(cache.reserve(id, 20 * 32));
  EXPECT_EQ(cache.stats().prefix_evicted_blocks, 10);
  EXPECT_TRUE(cache.reserve(id, 170 * 32));
  EXPECT_EQ(cache.stats().prefix_evicted_blocks, 160);
  cache.check_integrity();
}

TEST_F(KvCacheTest, FreedBlocksAreFreeAtOnceAndTheirFramesGoBack) {
  KvCacheConfig config = small_config(1000);
  config.prefix_cache = false;
  KvCache cache(pool_, config);
  const SequenceId a = start(cache, make_tokens(200 * 32, 1));
  const SequenceId b = start(cache, make_tokens(10, 2));
  const size_t both = pool_.held_bytes(MemoryTag::kKvCache);
  EXPECT_GE(static_cast<int64_t>(both), cache.stats().block_bytes_held);
  cache.release(a);
  cache.check_integrity();
  EXPECT_EQ(cache.stats().block_bytes_held, kSmallSetBytes);
  EXPECT_EQ(pool_.held_bytes(), kFrame);
  cache.release(b);
  cache.check_integrity();
  EXPECT_EQ(cache.stats().block_bytes_held, 0);
  EXPECT_EQ(pool_.held_bytes(), 0);
  EXPECT_EQ(cache.stats().peak_block_bytes_held, 201 * kSmallSetBytes);
}

TEST_F(KvCacheTest, WithThePrefixCacheOffNothingIsSharedOrKept) {
  KvCacheConfig config = small_config(20);
  config.prefix_cache = false;
  KvCache cache(pool_, config);
  const SequenceId a = start(cache, make_tokens(64, 1));
  EXPECT_EQ(num_cached(cache, make_tokens(64, 1)), 0);
  const SequenceId b = start(cache, make_tokens(64, 1));
  EXPECT_NE(blocks_of(cache, a, 0, 0)[0], blocks_of(cache, b, 0, 0)[0]);
  EXPECT_EQ(cache.stats().block_bytes_held, 4 * kSmallSetBytes);
}

TEST_F(KvCacheTest, ReservingAgainReplacesTheReservation) {
  KvCache cache(pool_, small_config(20));
  const SequenceId id = cache.create();
  ASSERT_TRUE(cache.reserve(id, 40));
  std::byte* block = cache.slot(id, 0, 0, 0).block;
  for (const auto& [num_tokens, num_blocks] : {std::pair{100, 4}, {33, 2}, {32, 1}, {200, 7}, {0, 0}, {1, 1}}) {
    ASSERT_TRUE(cache.reserve(id, num_tokens));
    EXPECT_EQ(cache.held_bytes(id), num_blocks * kSmallSetBytes);
    if (num_tokens > 1) {
      EXPECT_EQ(cache.slot(id, 0, 0, 0).block, block);  // what was written stays
    }
    cache.check_integrity();
  }
}

TEST_F(KvCacheTest, WhatWasReservedButNotCommittedIsFreed) {
  KvCache cache(pool_, small_config(20));
  const SequenceId id = cache.create();
  ASSERT_TRUE(cache.reserve(id, 300));
  const Tokens tokens = make_tokens(33, 1);
  test::write_entries(cache, id, 0, tokens);
  cache.commit(id, ids_of(tokens), roles_of(tokens));
  cache.check_integrity();
  EXPECT_EQ(cache.held_bytes(id), 2 * kSmallSetBytes);
  EXPECT_TRUE(holds_entries(cache, id, tokens));
}

TEST_F(KvCacheTest, ViewsReachEntriesWrittenSinceTheLastCommit) {
  KvCache cache(pool_, small_config(20));
  const SequenceId id = start(cache, make_tokens(40, 1));
  ASSERT_TRUE(cache.reserve(id, 60));
  const KvCache::Slot slot = cache.slot(id, 0, 1, 99);
  EXPECT_EQ(slot.slot, 99 % 32);
  const KvView view = cache.view(id, 0, 1, 100);
  EXPECT_EQ(view.num_entries, 100);
  EXPECT_EQ(view.blocks[3], slot.block);
  EXPECT_EQ(view.positions, nullptr);
}

TEST_F(KvCacheTest, ClearingDropsWhatNoSequenceUses) {
  KvCache cache(pool_, small_config(20));
  const Tokens common = make_tokens(32, 1);
  start_and_release(cache, join(common, make_tokens(64, 2)));
  const SequenceId user = start(cache, join(common, make_tokens(32, 3)));
  cache.clear_prefix_cache();
  cache.check_integrity();
  EXPECT_EQ(cache.stats().block_bytes_cached, 0);
  EXPECT_EQ(cache.stats().block_bytes_held, 2 * kSmallSetBytes);
  EXPECT_EQ(cache.stats().prefix_evicted_blocks, 0);  // not for room
  EXPECT_EQ(num_cached(cache, join(common, make_tokens(32, 3))), 64);
  EXPECT_TRUE(holds_entries(cache, user, join(common, make_tokens(32, 3))));
}

TEST_F(KvCacheTest, LatentLayersStoreNoValues) {
  KvCacheConfig config;
  config.layers = {{1, 576, 512, true}, {1, 576, 512, true}};
  config.codec = KvCodec::kF16;
  config.capacity_bytes = size_t{8} << 20;
  KvCache cache(pool_, config);
  EXPECT_TRUE(cache.block_format(1).value_in_key);
  EXPECT_EQ(cache.block_format(1).block_bytes(), 576 * 32 * 2);
  EXPECT_EQ(cache.bytes_for_tokens(64), 2 * 2 * 576 * 32 * 2);
  EXPECT_EQ(cache.bytes_per_token(), 2 * 576 * 2);
}

TEST_F(KvCacheTest, LayersOfDifferentShapesKeepTheirOwnBlocks) {
  KvCacheConfig config;
  config.layers = {{4, 64, 64}, {1, 96, 80, true}, {2, 128, 32}, {4, 64, 64}, {2, 32, 128}};
  config.codec = KvCodec::kF32;
  config.capacity_bytes = size_t{32} << 20;
  KvCache cache(pool_, config);
  for (int i = 0; i < static_cast<int>(config.layers.size()); ++i) {
    EXPECT_EQ(cache.block_format(i).key_dim, config.layers[i].key_dim);
    EXPECT_EQ(cache.block_format(i).value_dim, config.layers[i].value_dim);
  }
  EXPECT_EQ(cache.bytes_for_tokens(1), 32 * 4 * (8 * 128 + 96 + 4 * 160));
  const SequenceId a = start(cache, make_tokens(200, 1));
  const SequenceId b = start(cache, join(make_tokens(100, 1), make_tokens(100, 2)));
  EXPECT_TRUE(holds_entries(cache, a, make_tokens(200, 1)));
  EXPECT_TRUE(holds_entries(cache, b, join(make_tokens(100, 1), make_tokens(100, 2))));
}

// A block's unwritten entries may be read by kernels and multiplied with zero: bytes of another format could be NaN.
TEST_F(KvCacheTest, BlocksOfEqualSizeButDifferentFormatNeverMix) {
  KvCacheConfig config;
  config.layers = {{1, 128, 32}, {1, 32, 128}};
  config.codec = KvCodec::kQ8;
  config.capacity_bytes = size_t{4} << 20;
  config.prefix_cache = false;
  KvCache cache(pool_, config);
  ASSERT_EQ(cache.block_format(0).block_bytes(), cache.block_format(1).block_bytes());
  const auto bytes = static_cast<size_t>(cache.block_format(0).block_bytes());
  const SequenceId stays = cache.create();  // so that frames are not given back
  ASSERT_TRUE(cache.reserve(stays, 1));
  for (int round = 0; round < 20; ++round) {
    const SequenceId id = cache.create();
    ASSERT_TRUE(cache.reserve(id, 32 * (1 + round % 5)));
    for (int32_t layer : {0, 1}) {
      for (int32_t entry = 0; entry < 32 * (1 + round % 5); entry += 32) {
        std::byte* block = cache.slot(id, layer, 0, entry).block;
        const std::byte mark{static_cast<uint8_t>(layer + 1)};
        EXPECT_TRUE(block[0] == std::byte{0} || block[0] == mark);
        std::memset(block, static_cast<int>(mark), bytes);
      }
    }
    cache.release(id);
  }
}

TEST_F(KvCacheTest, LongContextsLieInRunsOfASplit) {
  KvCacheConfig config = small_config(8 * 128);
  for (int32_t chunk : {512, 1}) {
    KvCache cache(pool_, config);
    std::vector<SequenceId> sequences(8);
    for (SequenceId& id : sequences) id = cache.create();
    for (int32_t length = 0; length < 4096; length += chunk) {
      for (SequenceId id : sequences) {
        ASSERT_TRUE(cache.reserve(id, chunk));
        const Tokens tokens(chunk, test::Token{static_cast<TokenId>(id)});
        cache.commit(id, ids_of(tokens), roles_of(tokens));
      }
    }
    // Grown token by token, runs have their full length from 2048 entries on.
    for (SequenceId id : sequences) {
      const auto blocks = blocks_of(cache, id, 0, 1);
      for (size_t i = chunk == 512 ? 0 : 64; i < blocks.size(); ++i) {
        if (i % 16 != 0) {
          ASSERT_EQ(blocks[i], blocks[i - 1] + cache.block_format(0).block_bytes());
        }
      }
    }
  }
}

TEST_F(KvCacheTest, ManySequencesComeAndGo) {
  KvCache cache(pool_, small_config(400));
  std::vector<SequenceId> sequences;
  for (int i = 0; i < 300; ++i) sequences.push_back(start(cache, make_tokens(20 + i % 30, i % 40)));
  for (SequenceId id : sequences) cache.release(id);
  const SequenceId next = cache.create();
  EXPECT_EQ(std::ranges::count(sequences, next), 0);  // ids are not used again
  cache.check_integrity();
}

TEST_F(KvCacheTest, UnusableConfigurationsAreErrorsThatSayWhy) {
  struct Case {
    std::vector<KvLayerSpec> layers;
    size_t capacity_bytes;
    ErrorCode code;
    std::string message;
    KvCodec codec = KvCodec::kF32;
  };
  constexpr ErrorCode kInvalid = ErrorCode::kInvalidArgument;
  for (const Case& c : std::vector<Case>{
           {{}, 1 << 20, kInvalid, "at least one layer"},
           {{{1, 16, 16}, {0, 16, 16}}, 1 << 20, kInvalid, "layer 1"},
           {{{1, 0, 16}}, 1 << 20, kInvalid, "keys of 0"},
           {{{1, 16, -3}}, 1 << 20, kInvalid, "values of -3"},
           {{{1, 16, 32, true}}, 1 << 20, kInvalid, "within the key"},
           {{{2, 16, 16}}, 2 * 4096 - 1, ErrorCode::kOutOfMemory, "8191"},
           {{{1, 40, 32, true}}, 1 << 20, kInvalid, "type int4-hadamard are not for models", KvCodec::kHadamard4},
           {{{1, 32, 32}}, 1 << 20, kInvalid, "type int4-latent are only for models", KvCodec::kLatent4},
           {{{1, 32, 32}}, 1 << 20, kInvalid, "int4-kivi: its entries are written in whole blocks", KvCodec::kKivi4},
       }) {
    try {
      KvCache cache(pool_, {c.layers, c.codec, c.capacity_bytes});
      ADD_FAILURE() << c.message;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), c.code);
      EXPECT_THAT(error.what(), HasSubstr(c.message));
    }
  }
  EXPECT_EQ(pool_.held_bytes(), 0);
}

using KvCacheDeathTest = KvCacheTest;

TEST_F(KvCacheDeathTest, MisuseAborts) {
  KvCache cache(pool_, small_config(20));
  const SequenceId id = start(cache, make_tokens(40, 1));
  ASSERT_TRUE(cache.reserve(id, 3));
  EXPECT_DEATH(cache.slot(id, 0, 0, 39), "entry 39 to write");
  EXPECT_DEATH(cache.slot(id, 0, 0, 43), "entry 43 to write");
  EXPECT_DEATH(cache.slot(id, 0, 2, 41), "kv head 2 of 2");
  EXPECT_DEATH((void)cache.view(id, 2, 0, 1), "layer 2 of 2");
  EXPECT_DEATH((void)cache.view(id, 0, 0, 44), "44 entries to view");
  const Tokens four = make_tokens(4, 2);
  EXPECT_DEATH(cache.commit(id, ids_of(four), roles_of(four)), "4 tokens committed, 3 reserved");
  EXPECT_DEATH(cache.attach_prefix(id, ids_of(four), roles_of(four)), "is not empty");
  cache.release(id);
  EXPECT_DEATH(cache.release(id), "does not exist");
  EXPECT_DEATH((void)cache.num_tokens(-1), "does not exist");
}

}  // namespace
}  // namespace witan
