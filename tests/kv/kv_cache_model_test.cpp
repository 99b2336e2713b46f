// Random operations on a KvCache against a naive model of what it promises.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "kv/kv_cache.h"
#include "kv_test_support.h"

namespace witan {
namespace {

using test::Token;
using test::Tokens;

// All prefix blocks by their whole text, in sets of one block per table.
class Model {
 public:
  struct Sequence {
    Tokens tokens;
    int64_t num_reserved = 0;
    int64_t num_prefix_blocks = 0;

    int64_t num_blocks() const { return (std::ssize(tokens) + num_reserved + kKvBlockSize - 1) / kKvBlockSize; }
    int64_t num_private_blocks() const { return num_blocks() - num_prefix_blocks; }
  };

  explicit Model(int64_t num_sets, bool prefix_cache) : num_sets_(num_sets), prefix_cache_(prefix_cache) {}

  void create(SequenceId id) { sequences_[id]; }
  const std::map<SequenceId, Sequence>& sequences() const { return sequences_; }

  int64_t attach_prefix(SequenceId id, const Tokens& tokens) {
    Sequence& sequence = sequences_.at(id);
    num_lookup_tokens += std::ssize(tokens);
    while ((sequence.num_prefix_blocks + 1) * kKvBlockSize < std::ssize(tokens)) {
      const auto entry = entries_.find(beginning(tokens, sequence.num_prefix_blocks + 1));
      if (entry == entries_.end()) break;
      ++entry->second.num_references;
      ++sequence.num_prefix_blocks;
    }
    sequence.tokens = beginning(tokens, sequence.num_prefix_blocks);
    num_hit_tokens += std::ssize(sequence.tokens);
    return std::ssize(sequence.tokens);
  }

  bool reserve(SequenceId id, int64_t num_tokens) {
    Sequence& sequence = sequences_.at(id);
    Sequence after = sequence;
    after.num_reserved = num_tokens;
    const int64_t num_new = after.num_blocks() - sequence.num_blocks();
    const int64_t num_evicted = num_new > 0 ? std::max<int64_t>(num_held() + num_new - num_sets_, 0) : 0;
    if (num_evicted > num_cached()) return false;
    for (int64_t i = 0; i < num_evicted; ++i) evict();
    num_evicted_blocks += num_evicted;
    sequence = after;
    peak_held = std::max(peak_held, num_held());
    return true;
  }

  void commit(SequenceId id, const Tokens& tokens) {
    Sequence& sequence = sequences_.at(id);
    sequence.tokens.insert(sequence.tokens.end(), tokens.begin(), tokens.end());
    sequence.num_reserved = 0;
    while (prefix_cache_ && (sequence.num_prefix_blocks + 1) * kKvBlockSize <= std::ssize(sequence.tokens)) {
      ++entries_[beginning(sequence.tokens, ++sequence.num_prefix_blocks)].num_references;
    }
  }

  void release(SequenceId id) {
    const Sequence& sequence = sequences_.at(id);
    for (int64_t n = sequence.num_prefix_blocks; n > 0; --n) {
      Entry& entry = entries_.at(beginning(sequence.tokens, n));
      --entry.num_references;
      entry.released_at = ++clock_;
    }
    sequences_.erase(id);
  }

  void clear_prefix_cache() {
    std::erase_if(entries_, [](const auto& entry) { return entry.second.num_references == 0; });
  }

  int64_t num_cached() const {
    return std::ranges::count_if(entries_, [](const auto& entry) { return entry.second.num_references == 0; });
  }
  int64_t num_held() const {
    int64_t held = std::ssize(entries_);
    for (const auto& [id, sequence] : sequences_) held += sequence.num_private_blocks();
    return held;
  }
  int64_t num_available() const { return num_sets_ - num_held() + num_cached(); }

  int64_t num_lookup_tokens = 0;
  int64_t num_hit_tokens = 0;
  int64_t num_evicted_blocks = 0;
  int64_t peak_held = 0;

 private:
  struct Entry {
    int64_t num_references = 0;
    int64_t released_at = 0;
  };

  static Tokens beginning(const Tokens& tokens, int64_t num_blocks) {
    return {tokens.begin(), tokens.begin() + num_blocks * kKvBlockSize};
  }

  void evict() {
    auto oldest = entries_.end();
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->second.num_references > 0) continue;
      if (oldest == entries_.end() || entry->second.released_at < oldest->second.released_at) oldest = entry;
    }
    entries_.erase(oldest);
  }

  int64_t num_sets_;
  bool prefix_cache_;
  int64_t clock_ = 0;
  std::map<SequenceId, Sequence> sequences_;
  std::map<Tokens, Entry> entries_;
};

struct Scenario {
  std::string name;
  std::vector<KvLayerSpec> layers;
  int64_t num_sets;      // that capacity allows
  int64_t num_frames;    // of the memory pool
  int64_t num_possible;  // sets that both allow
  bool prefix_cache = true;

  friend void PrintTo(const Scenario& scenario, std::ostream* out) { *out << scenario.name; }
};

// A frame holds 32 blocks of 64 KiB, (256 + 256) components of 32 entries in f32.
const std::vector<Scenario> kScenarios = {
    {"one_table", {{1, 256, 256}}, 40, 100, 40},
    {"capacity_binds", {{2, 256, 256}, {1, 256, 256}}, 30, 100, 30},
    // 4 frames have room for 128 blocks: 42 sets of three.
    {"frames_bind", {{2, 256, 256}, {1, 256, 256}}, 1000, 4, 42},
    {"prefix_cache_off", {{2, 256, 256}}, 20, 100, 20, false},
    {"mixed_shapes", {{2, 256, 256}, {1, 96, 32, true}, {1, 16, 48}}, 35, 100, 35},
};

class KvCacheModelTest : public testing::TestWithParam<Scenario> {
 protected:
  KvCacheModelTest()
      : pool_(GetParam().num_frames * MemoryPool::kFrameBytes),
        model_(GetParam().num_possible, GetParam().prefix_cache) {
    KvCacheConfig config{GetParam().layers, KvCodec::kF32, size_t{1} << 40, GetParam().prefix_cache};
    config.capacity_bytes = static_cast<size_t>(KvCache(pool_, config).bytes_for_tokens(kKvBlockSize)) *
                                static_cast<size_t>(GetParam().num_sets) +
                            17;
    cache_.emplace(pool_, config);
  }

  // Tokens behind `before`. Texts recur: a block begins in one of two ways, which settle the rest of it but for rare
  // changes of role.
  Tokens random_tokens(const Tokens& before, int64_t count) {
    Tokens text = before;
    for (int64_t i = 0; i < count; ++i) {
      if (std::ssize(text) % kKvBlockSize == 0) {
        const auto role = random_() % 8 == 0 ? TokenRole::kGenerated : TokenRole::kPrompt;
        text.push_back({random_() % 3 == 0 ? 100 : 0, role});
      } else {
        const auto role = random_() % 500 == 0 ? TokenRole::kGenerated : text.back().role;
        text.push_back({text.back().id + 1, role});
      }
    }
    return {text.begin() + std::ssize(before), text.end()};
  }

  SequenceId random_sequence() {
    return std::next(model_.sequences().begin(), static_cast<int64_t>(random_() % model_.sequences().size()))->first;
  }

  void start_sequence() {
    const SequenceId id = cache_->create();
    ASSERT_FALSE(model_.sequences().contains(id));
    model_.create(id);
    if (random_() % 4 == 0) return;
    const Tokens tokens = random_tokens({}, random_() % 300);
    ASSERT_EQ(cache_->attach_prefix(id, test::ids_of(tokens), test::roles_of(tokens)),
              model_.attach_prefix(id, tokens));
  }

  void extend_sequence() {
    const SequenceId id = random_sequence();
    const Tokens before = model_.sequences().at(id).tokens;
    Tokens tokens = random_tokens(before, random_() % 2 == 0 ? random_() % 3 : random_() % 120);
    const int64_t num_reserved = std::ssize(tokens) + random_() % 40;
    const bool fits = model_.reserve(id, num_reserved);
    ASSERT_EQ(cache_->reserve(id, static_cast<int32_t>(num_reserved)), fits);
    if (!fits) {
      ++num_refused_;
      return;
    }
    uint32_t chain = 0;
    for (const Token& token : before) chain = test::extend_chain(chain, token);
    test::write_entries(*cache_, id, chain, tokens);
    if (random_() % 10 == 0) return;                                                  // reserves again, or is released
    if (random_() % 3 == 0) tokens.resize(random_() % (tokens.size() + 1), Token());  // some were written in vain
    cache_->commit(id, test::ids_of(tokens), test::roles_of(tokens));
    model_.commit(id, tokens);
  }

  void release_sequence() {
    const SequenceId id = random_sequence();
    cache_->release(id);
    model_.release(id);
  }

  void step() {
    const auto choice = random_() % 1000;
    if (model_.sequences().empty() || (choice < 150 && model_.sequences().size() < 8)) {
      start_sequence();
    } else if (choice < 300) {
      release_sequence();
    } else if (choice < 303) {
      cache_->clear_prefix_cache();
      model_.clear_prefix_cache();
    } else {
      extend_sequence();
    }
  }

  void compare_counts() {
    const int64_t set_bytes = cache_->bytes_for_tokens(1);
    const KvCacheStats stats = cache_->stats();
    ASSERT_EQ(stats.block_bytes_held, model_.num_held() * set_bytes);
    ASSERT_EQ(stats.block_bytes_cached, model_.num_cached() * set_bytes);
    ASSERT_EQ(stats.peak_block_bytes_held, model_.peak_held * set_bytes);
    ASSERT_EQ(stats.prefix_lookup_tokens, model_.num_lookup_tokens);
    ASSERT_EQ(stats.prefix_hit_tokens, model_.num_hit_tokens);
    ASSERT_EQ(stats.prefix_evicted_blocks, model_.num_evicted_blocks);
    ASSERT_EQ(cache_->available_bytes(), model_.num_available() * set_bytes);
    ASSERT_LE(stats.block_bytes_held, pool_.held_bytes(MemoryTag::kKvCache));
    for (const auto& [id, sequence] : model_.sequences()) {
      ASSERT_EQ(cache_->num_tokens(id), std::ssize(sequence.tokens));
      ASSERT_EQ(cache_->held_bytes(id), sequence.num_blocks() * set_bytes);
    }
  }

  void compare_entries(SequenceId id) {
    ASSERT_TRUE(test::holds_entries(*cache_, id, model_.sequences().at(id).tokens)) << "sequence " << id;
  }

  MemoryPool pool_;
  std::optional<KvCache> cache_;
  Model model_;
  std::mt19937 random_{11};
  int num_refused_ = 0;
};

TEST_P(KvCacheModelTest, RandomOperationsAgreeWithANaiveModel) {
  for (int i = 0; i < 6000; ++i) {
    SCOPED_TRACE(i);
    ASSERT_NO_FATAL_FAILURE(step());
    cache_->check_integrity();
    ASSERT_NO_FATAL_FAILURE(compare_counts());
    if (i % 10 == 0) {
      for (const auto& [id, sequence] : model_.sequences()) ASSERT_NO_FATAL_FAILURE(compare_entries(id));
    } else if (!model_.sequences().empty()) {
      ASSERT_NO_FATAL_FAILURE(compare_entries(random_sequence()));
    }
  }
  // Otherwise the run has shown less than it seems to.
  EXPECT_GT(num_refused_, 20);
  if (GetParam().prefix_cache) {
    EXPECT_GT(model_.num_hit_tokens, 5000);
    EXPECT_GT(model_.num_evicted_blocks, 50);
  }

  while (!model_.sequences().empty()) release_sequence();
  cache_->clear_prefix_cache();
  cache_->check_integrity();
  EXPECT_EQ(cache_->stats().block_bytes_held, 0);
  EXPECT_EQ(pool_.held_bytes(), 0);
}

INSTANTIATE_TEST_SUITE_P(Scenarios, KvCacheModelTest, testing::ValuesIn(kScenarios),
                         [](const auto& scenario) { return scenario.param.name; });

}  // namespace
}  // namespace witan
