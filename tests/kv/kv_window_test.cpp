// Layers with a sliding window: what they hold, what they give back, and what the prefix cache makes of it.

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "kv/kv_cache.h"
#include "kv_test_support.h"

namespace witan {
namespace {

using test::append;
using test::entry_pattern;
using test::extend_chain;
using test::has_pattern;
using test::holds_entries;
using test::ids_of;
using test::make_tokens;
using test::roles_of;
using test::Tokens;
using test::write_entries;

constexpr int32_t kWindow = 40;
constexpr int64_t kBlockBytes = 32 * (16 + 16) * 4;
constexpr int64_t kFullSetBytes = 2 * kBlockBytes;
constexpr int64_t kWindowSetBytes = 3 * kBlockBytes;

// Two tables without a window and three with one, all in one pool of blocks.
KvCacheConfig config_of(bool prefix_cache, int64_t capacity_bytes = 1 << 24) {
  KvCacheConfig config;
  config.layers = {{.num_kv_heads = 2, .key_dim = 16, .value_dim = 16},
                   {.num_kv_heads = 3, .key_dim = 16, .value_dim = 16, .window = kWindow}};
  config.codec = KvCodec::kF32;
  config.capacity_bytes = static_cast<size_t>(capacity_bytes);
  config.prefix_cache = prefix_cache;
  return config;
}

// Places of a window table behind `num_tokens` entries: those that the next token sees.
int64_t window_places(int64_t num_tokens) {
  return (num_tokens + 31) / 32 - std::max<int64_t>(0, num_tokens + 1 - kWindow) / 32;
}

int64_t held_after(int64_t num_tokens) {
  return (num_tokens + 31) / 32 * kFullSetBytes + window_places(num_tokens) * kWindowSetBytes;
}

class KvWindowTest : public testing::Test {
 protected:
  // Computes tokens behind what the prefix cache has, in chunks.
  SequenceId start(KvCache& cache, const Tokens& tokens, int32_t chunk) {
    const SequenceId id = cache.create();
    num_found_ = cache.attach_prefix(id, ids_of(tokens), roles_of(tokens));
    for (auto at = tokens.begin() + num_found_; at != tokens.end();) {
      const auto end = at + std::min<int64_t>(chunk, tokens.end() - at);
      EXPECT_TRUE(append(cache, id, {tokens.begin(), at}, {at, end}));
      cache.check_integrity();
      at = end;
    }
    EXPECT_TRUE(holds_entries(cache, id, tokens));
    return id;
  }

  MemoryPool pool_{size_t{256} << 20};
  int32_t num_found_ = 0;
};

TEST_F(KvWindowTest, PassedBlocksAreFreeAtOnceWithoutThePrefixCache) {
  KvCache cache(pool_, config_of(false));
  const Tokens tokens = make_tokens(400, 1);
  const SequenceId id = cache.create();
  for (int32_t n = 0; n < 400; ++n) {
    ASSERT_TRUE(append(cache, id, {tokens.begin(), tokens.begin() + n}, {tokens[n]}));
    cache.check_integrity();
    ASSERT_EQ(cache.held_bytes(id), held_after(n + 1)) << n;
    ASSERT_EQ(cache.stats().block_bytes_held, held_after(n + 1)) << n;
  }
  EXPECT_TRUE(holds_entries(cache, id, tokens));
  // A full table has 13 blocks by now, a window table 2: without the window it would be 13 too.
  EXPECT_EQ(cache.stats().block_bytes_held, 13 * kFullSetBytes + 2 * kWindowSetBytes);
  const KvView view = cache.view(id, 1, 0, 400);
  EXPECT_EQ(view.blocks[0], nullptr);
  EXPECT_NE(view.blocks[12], nullptr);
  cache.release(id);
  EXPECT_EQ(cache.stats().block_bytes_held, 0);
}

TEST_F(KvWindowTest, AChunkNeedsItsOwnBlocksUntilItIsCommitted) {
  KvCache cache(pool_, config_of(false));
  const SequenceId id = start(cache, make_tokens(320, 1), 320);
  EXPECT_EQ(cache.held_bytes(id), held_after(320));
  EXPECT_EQ(cache.stats().peak_block_bytes_held, 10 * (kFullSetBytes + kWindowSetBytes));
  cache.release(id);
  cache.check_integrity();
}

TEST_F(KvWindowTest, EntriesThatAreNotCommittedStayWhileTheirReservationGrowsAndThenAreGone) {
  for (const bool prefix_cache : {false, true}) {
    KvCache cache(pool_, config_of(prefix_cache));
    const Tokens tokens = make_tokens(150, 1);
    const Tokens uncommitted = make_tokens(70, 2);
    const SequenceId id = start(cache, tokens, 50);
    const int64_t held = cache.held_bytes(id);
    uint32_t chain = 0;
    for (const test::Token& token : tokens) chain = extend_chain(chain, token);
    ASSERT_TRUE(cache.reserve(id, 70));
    write_entries(cache, id, chain, uncommitted);
    ASSERT_TRUE(cache.reserve(id, 300));
    cache.check_integrity();
    for (int32_t entry = 150; entry < 220; ++entry) {
      chain = extend_chain(chain, uncommitted[static_cast<size_t>(entry - 150)]);
      for (const int32_t layer : {0, 1}) {
        EXPECT_TRUE(has_pattern(cache.view(id, layer, 1, 220), entry, entry_pattern(chain, layer, 1, entry))) << entry;
      }
    }
    EXPECT_TRUE(holds_entries(cache, id, tokens)) << "the window of the next token included";
    ASSERT_TRUE(cache.reserve(id, 0));
    EXPECT_EQ(cache.held_bytes(id), held);
    const Tokens more = make_tokens(30, 3);
    ASSERT_TRUE(append(cache, id, tokens, more));
    Tokens all = tokens;
    all.insert(all.end(), more.begin(), more.end());
    EXPECT_TRUE(holds_entries(cache, id, all));
    Tokens repeated = tokens;
    repeated.insert(repeated.end(), uncommitted.begin(), uncommitted.end());
    EXPECT_EQ(cache.attach_prefix(cache.create(), ids_of(repeated), roles_of(repeated)), prefix_cache ? 128 : 0);
    cache.check_integrity();
  }
}

TEST_F(KvWindowTest, PlannedBytesSufficeForEveryLengthAndChunk) {
  for (const int32_t chunk : {1, 7, 32, 50, 100}) {
    for (const int32_t length : {1, 31, 40, 72, 73, 200, 333}) {
      KvCache cache(pool_, config_of(false));
      const SequenceId id = start(cache, make_tokens(length, 1), chunk);
      const int64_t planned = cache.bytes_for_tokens(length, chunk);
      EXPECT_LE(cache.stats().peak_block_bytes_held, planned) << length << " by " << chunk;
      EXPECT_LE(planned, cache.stats().peak_block_bytes_held + 2 * kWindowSetBytes) << length << " by " << chunk;
      EXPECT_EQ(planned, kv_bytes_for_tokens(cache.config().layers, KvCodec::kF32, length, chunk));
      cache.release(id);
    }
  }
}

TEST_F(KvWindowTest, PassedPrefixBlocksAreCachedAndGoBeforeAnyWholeOne) {
  KvCache cache(pool_, config_of(true, 20 * kFullSetBytes + 12 * kWindowSetBytes));
  const Tokens tokens = make_tokens(320, 1);
  const SequenceId id = start(cache, tokens, 32);
  EXPECT_EQ(cache.held_bytes(id), held_after(320));
  const int64_t passed = 10 - window_places(320);
  EXPECT_EQ(cache.stats().block_bytes_cached, passed * kWindowSetBytes);
  // Another text that needs more than what is free: the passed window blocks make room, no prefix block is dropped.
  const SequenceId other = start(cache, make_tokens(320, 2), 32);
  EXPECT_LT(cache.stats().block_bytes_cached, 2 * passed * kWindowSetBytes);
  EXPECT_EQ(cache.stats().prefix_evicted_blocks, 0);
  EXPECT_TRUE(holds_entries(cache, id, tokens));
  cache.release(id);
  cache.release(other);
  cache.check_integrity();
}

TEST_F(KvWindowTest, APrefixIsFoundOnlyWhereItsLastWindowIsThere) {
  KvCache cache(pool_, config_of(true));
  const Tokens tokens = make_tokens(330, 1);
  cache.release(start(cache, tokens, 64));
  Tokens longer = tokens;
  longer.resize(400, {7});
  const Tokens beginning(tokens.begin(), tokens.begin() + 200);

  // Nothing was dropped yet: any beginning is found.
  cache.release(start(cache, longer, 64));
  EXPECT_EQ(num_found_, 320);
  cache.release(start(cache, beginning, 64));
  EXPECT_EQ(num_found_, 192);

  // A sequence as large as the cache drops what was passed. The text's end is found still, its middle is computed
  // again, and gives its window blocks back to the prefix blocks that lack them.
  KvCache small(pool_, config_of(true, 20 * kFullSetBytes + 7 * kWindowSetBytes));
  small.release(start(small, tokens, 64));
  const SequenceId other = start(small, make_tokens(200, 5), 64);
  small.check_integrity();
  EXPECT_EQ(small.stats().prefix_evicted_blocks, 0);
  small.release(start(small, beginning, 64));
  EXPECT_LT(num_found_, 192);
  small.release(start(small, beginning, 64));
  EXPECT_EQ(num_found_, 192);
  small.release(other);
  small.check_integrity();
}

// Sequences of a few texts come, grow and go in a cache that is too small for all; at every moment each reads its own
// entries, and every block has exactly the owners that are counted.
TEST_F(KvWindowTest, RandomOperationsKeepEveryWindowAndEveryCount) {
  for (const bool prefix_cache : {true, false}) {
    KvCache cache(pool_, config_of(prefix_cache, 18 * kFullSetBytes + 12 * kWindowSetBytes));
    std::mt19937 random(5);
    std::map<SequenceId, Tokens> sequences;
    int num_refused = 0;
    for (int i = 0; i < 4000; ++i) {
      const auto choice = random() % 100;
      if (sequences.empty() || (choice < 15 && sequences.size() < 6)) {
        Tokens text = make_tokens(static_cast<int>(random() % 300 + 1), static_cast<int>(random() % 3));
        const SequenceId id = cache.create();
        text.resize(static_cast<size_t>(cache.attach_prefix(id, ids_of(text), roles_of(text))));
        sequences[id] = text;
      } else {
        const auto at = std::next(sequences.begin(), static_cast<std::ptrdiff_t>(random() % sequences.size()));
        auto& [id, text] = *at;
        if (choice < 28) {
          cache.release(id);
          sequences.erase(at);
        } else if (choice == 28) {
          cache.clear_prefix_cache();
        } else {
          const Tokens whole =
              make_tokens(static_cast<int>(text.size() + random() % 90), text.empty() ? 1 : text.front().id / 1000003);
          const Tokens more(whole.begin() + std::ssize(text), whole.end());
          if (append(cache, id, text, more)) {
            text = whole;
          } else {
            ++num_refused;
            cache.release(id);
            sequences.erase(at);
          }
        }
      }
      cache.check_integrity();
      ASSERT_LE(cache.stats().block_bytes_cached, cache.stats().block_bytes_held);
      for (const auto& [id, text] : sequences) {
        ASSERT_TRUE(holds_entries(cache, id, text)) << "operation " << i;
        ASSERT_LE(cache.held_bytes(id), held_after(std::ssize(text)));
      }
    }
    EXPECT_GT(num_refused, 5);
    EXPECT_EQ(prefix_cache, cache.stats().prefix_hit_tokens > 5000);
    for (const auto& [id, text] : sequences) cache.release(id);
    cache.clear_prefix_cache();
    cache.check_integrity();
    EXPECT_EQ(cache.stats().block_bytes_held, 0);
  }
}

}  // namespace
}  // namespace witan
