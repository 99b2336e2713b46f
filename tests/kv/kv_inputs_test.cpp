// Encoded inputs: shared by exact tokens, counted, kept until their room is needed.

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "kv/kv_cache.h"
#include "kv_test_support.h"

namespace witan {
namespace {

using test::append;
using test::make_tokens;

constexpr int64_t kTextSetBytes = 2 * 32 * (16 + 16) * 4;
constexpr int64_t kInputSetBytes = 3 * 32 * (16 + 16) * 4;

KvCacheConfig config_of(int64_t capacity_bytes, bool prefix_cache = true) {
  KvCacheConfig config;
  config.layers = {{.num_kv_heads = 2, .key_dim = 16, .value_dim = 16}};
  config.input_layers = {{.num_kv_heads = 1, .key_dim = 16, .value_dim = 16},
                         {.num_kv_heads = 2, .key_dim = 16, .value_dim = 16}};
  config.codec = KvCodec::kF32;
  config.capacity_bytes = static_cast<size_t>(capacity_bytes);
  config.prefix_cache = prefix_cache;
  return config;
}

uint32_t pattern_of(const std::vector<TokenId>& input, int32_t layer, int32_t head, int32_t entry) {
  return test::entry_pattern(static_cast<uint32_t>(input.front()) * 31 + static_cast<uint32_t>(input.size()), layer,
                             head, entry);
}

class KvInputsTest : public testing::Test {
 protected:
  static std::vector<TokenId> input_of(int32_t length, int32_t seed) { return test::ids_of(make_tokens(length, seed)); }

  template <typename Visit>
  static void for_entries(const std::vector<TokenId>& input, Visit visit) {
    for (const auto& [layer, head] : {std::pair{0, 0}, {1, 0}, {1, 1}}) {
      for (int32_t entry = 0; entry < std::ssize(input); ++entry) visit(layer, head, entry);
    }
  }

  // Attaches an input and encodes it where nobody has yet. False when there is no room.
  static bool attach(KvCache& cache, SequenceId id, const std::vector<TokenId>& input) {
    const int64_t needed = cache.bytes_for_input(input);
    const bool attached = cache.attach_input(id, input);
    cache.check_integrity();
    if (!attached) {
      EXPECT_GT(needed, 0);
      EXPECT_EQ(cache.input_of(id), kNoInput);
      return false;
    }
    EXPECT_EQ(cache.bytes_for_input(input), 0);
    if (cache.input_is_encoded(id)) return true;
    for_entries(input, [&](int32_t layer, int32_t head, int32_t entry) {
      test::write_pattern(cache.input_view(id, layer, head).format, cache.input_slot(id, layer, head, entry),
                          pattern_of(input, layer, head, entry));
    });
    cache.commit_input(id);
    return true;
  }

  static void expect_input(const KvCache& cache, SequenceId id, const std::vector<TokenId>& input) {
    for_entries(input, [&](int32_t layer, int32_t head, int32_t entry) {
      const KvView view = cache.input_view(id, layer, head);
      ASSERT_EQ(view.num_entries, std::ssize(input));
      ASSERT_TRUE(test::has_pattern(view, entry, pattern_of(input, layer, head, entry)));
    });
  }

  MemoryPool pool_{size_t{256} << 20};
};

TEST_F(KvInputsTest, SequencesOfTheSameInputShareItsBlocks) {
  KvCache cache(pool_, config_of(1 << 22));
  const std::vector<TokenId> input = input_of(70, 1);
  EXPECT_EQ(cache.bytes_for_input(input), 3 * kInputSetBytes);
  const SequenceId a = cache.create();
  ASSERT_TRUE(cache.attach_input(a, input));
  EXPECT_FALSE(cache.input_is_encoded(a));
  cache.release(a);  // not encoded: nobody can use it
  EXPECT_EQ(cache.stats().block_bytes_held, 0);

  const SequenceId b = cache.create();
  ASSERT_TRUE(attach(cache, b, input));
  const SequenceId c = cache.create();
  ASSERT_TRUE(attach(cache, c, input));
  EXPECT_EQ(cache.input_of(b), cache.input_of(c));
  EXPECT_EQ(cache.stats().block_bytes_held, 3 * kInputSetBytes);
  EXPECT_EQ(cache.stats().prefix_hit_tokens, 70);
  std::vector<TokenId> longer = input;
  longer.push_back(5);
  const SequenceId d = cache.create();
  ASSERT_TRUE(attach(cache, d, longer));  // all of an input's entries depend on all of it
  EXPECT_NE(cache.input_of(d), cache.input_of(b));
  EXPECT_EQ(cache.stats().block_bytes_held, 6 * kInputSetBytes);
  for (const SequenceId id : {b, c, d}) cache.release(id);
  cache.check_integrity();
  EXPECT_EQ(cache.stats().block_bytes_cached, 6 * kInputSetBytes);
  cache.clear_prefix_cache();
  EXPECT_EQ(cache.stats().block_bytes_held, 0);
}

TEST_F(KvInputsTest, TheOldestUnusedInputGivesWayToATextOrANewInput) {
  KvCache cache(pool_, config_of(3 * kInputSetBytes + kTextSetBytes));
  const std::vector<TokenId> inputs[] = {input_of(32, 1), input_of(32, 2), input_of(32, 3), input_of(32, 4)};
  for (int i : {0, 1, 2}) {
    const SequenceId id = cache.create();
    ASSERT_TRUE(attach(cache, id, inputs[i]));
    cache.release(id);
  }
  const SequenceId id = cache.create();
  ASSERT_TRUE(attach(cache, id, inputs[0]));  // the oldest now in use
  ASSERT_TRUE(append(cache, id, {}, make_tokens(64, 1)));
  cache.check_integrity();
  EXPECT_GT(cache.bytes_for_input(inputs[1]), 0);
  EXPECT_EQ(cache.bytes_for_input(inputs[2]), 0);
  const SequenceId other = cache.create();
  ASSERT_TRUE(attach(cache, other, inputs[3]));
  EXPECT_GT(cache.bytes_for_input(inputs[2]), 0);
  EXPECT_FALSE(cache.reserve(other, 32));
  expect_input(cache, id, inputs[0]);
  cache.release(id);
  cache.release(other);
  cache.check_integrity();
}

TEST_F(KvInputsTest, WithoutThePrefixCacheAnInputGoesWithItsLastSequence) {
  KvCache cache(pool_, config_of(1 << 22, false));
  const SequenceId a = cache.create();
  const SequenceId b = cache.create();
  ASSERT_TRUE(attach(cache, a, input_of(40, 1)));
  ASSERT_TRUE(attach(cache, b, input_of(40, 1)));
  cache.release(a);
  expect_input(cache, b, input_of(40, 1));
  cache.release(b);
  EXPECT_EQ(cache.stats().block_bytes_held, 0);
  cache.check_integrity();
}

TEST_F(KvInputsTest, RandomOperationsKeepEveryInputAndEveryCount) {
  KvCache cache(pool_, config_of(12 * kInputSetBytes + 12 * kTextSetBytes));
  struct Held {
    std::vector<TokenId> input;
    test::Tokens text;
  };
  std::map<SequenceId, Held> sequences;
  std::mt19937 random(3);
  int num_refused = 0;
  for (int i = 0; i < 3000; ++i) {
    const auto choice = random() % 100;
    if (sequences.empty() || (choice < 30 && sequences.size() < 7)) {
      const std::vector<TokenId> input =
          input_of(static_cast<int32_t>(20 + 40 * (random() % 4)), static_cast<int32_t>(random() % 3));
      const SequenceId id = cache.create();
      if (attach(cache, id, input)) {
        sequences[id] = {input, {}};
      } else {
        ++num_refused;
        cache.release(id);
      }
    } else {
      const auto at = std::next(sequences.begin(), static_cast<std::ptrdiff_t>(random() % sequences.size()));
      if (choice < 60) {
        cache.release(at->first);
        sequences.erase(at);
      } else {
        const test::Tokens more = make_tokens(static_cast<int>(random() % 40), i);
        if (append(cache, at->first, at->second.text, more)) {
          at->second.text.insert(at->second.text.end(), more.begin(), more.end());
        } else {
          ++num_refused;
        }
      }
    }
    cache.check_integrity();
    for (const auto& [id, held] : sequences) {
      ASSERT_NO_FATAL_FAILURE(expect_input(cache, id, held.input)) << i;
      ASSERT_TRUE(test::holds_entries(cache, id, held.text)) << i;
    }
  }
  EXPECT_GT(num_refused, 5);
  EXPECT_GT(cache.stats().prefix_hit_tokens, 1000);
}

}  // namespace
}  // namespace witan
