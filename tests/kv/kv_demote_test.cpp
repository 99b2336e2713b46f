// Rounding older entries to fewer bits: what they are then, what stays, and what it frees.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "kernels/attention/kv_block.h"
#include "kv/kv_cache.h"
#include "naive_model_test_support.h"

namespace witan {
namespace {

using test::config_of;
using test::ids_of;
using test::kDim;
using test::kTables;
using test::make_tokens;
using test::Model;
using test::ModelEntry;
using test::range;
using test::roles_of;
using test::Tokens;

const KvDemotion kTo{.codecs = {KvCodec::kHadamard4, KvCodec::kHadamard8}, .num_recent = 40};
// The first layer's keys lose half of their components and those of the second, which are rounded, none.
const KvDemotion kToHalf{.codecs = {KvCodec::kF32, KvCodec::kHadamard8}, .num_recent = 40, .key_dims = {16, kDim}};
const std::vector<std::vector<int32_t>> kChannels = {
    {0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31},
    {1, 3, 4, 6, 7, 9, 10, 12, 15, 16, 18, 20, 22, 25, 28, 30},
    {},
};

KvBlockFormat format_of(KvCodec codec, int32_t key_dim = kDim) { return {codec, key_dim, kDim, false}; }

// Key (part 0) or value (1) as they are computed.
std::vector<float> component(const ModelEntry& entry, int32_t part) {
  std::vector<float> x(kDim);
  for (int32_t d = 0; d < kDim; ++d) {
    x[static_cast<size_t>(d)] =
        static_cast<float>(std::sin(0.37 * entry.position + 1.3 * d + 5.0 * entry.table + part));
  }
  return x;
}

// Key and value as they are read when stored so, the key with these components alone; all if there are none.
std::vector<float> rounded(KvCodec codec, const ModelEntry& entry, const std::vector<int32_t>& channels = {}) {
  std::vector<float> key = component(entry, 0);
  if (!channels.empty()) {
    std::vector<float> chosen;
    for (const int32_t channel : channels) chosen.push_back(key[static_cast<size_t>(channel)]);
    key = chosen;
  }
  const KvBlockFormat format = format_of(codec, static_cast<int32_t>(key.size()));
  std::vector<std::byte> storage(static_cast<size_t>(format.block_bytes()) + 64);
  auto* block = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(storage.data()) + 63) / 64 * 64);
  kv_store(format, block, 5, key.data(), component(entry, 1).data());
  std::vector<float> out(2 * kDim);
  kv_load(format, block, 5, key.data(), out.data() + kDim);
  for (size_t i = 0; i < key.size(); ++i) {
    out[channels.empty() ? i : static_cast<size_t>(channels[i])] = key[i];
  }
  return out;
}

class KvDemote : public test::NaiveModelTest {
 protected:
  void write(const KvBlockFormat& format, KvCache::Slot slot, const ModelEntry& entry) override {
    kv_store(format, slot.block, slot.slot, component(entry, 0).data(), component(entry, 1).data());
  }
  bool holds(const KvView& view, int32_t i, const ModelEntry& entry) override {
    std::vector<float> loaded(2 * kDim);
    view.load(i, loaded.data(), loaded.data() + kDim);
    if (!entry.is_demoted) return loaded == rounded(KvCodec::kF32, entry);
    return loaded == rounded(codec_of(entry.table), entry, channels_of(entry.table));
  }

  KvCodec codec_of(int32_t table) const { return to_.codecs[static_cast<size_t>(test::place_of(table).first)]; }
  std::vector<int32_t> channels_of(int32_t table) const {
    return to_.key_dims.empty() ? std::vector<int32_t>() : kChannels[static_cast<size_t>(table)];
  }
  int64_t demoted_block_bytes(int32_t table) const override {
    const std::vector<int32_t> channels = channels_of(table);
    return format_of(codec_of(table), channels.empty() ? kDim : static_cast<int32_t>(channels.size())).block_bytes();
  }

  bool demote(KvCache& cache, Model& model) const {
    ThreadPool threads(2);
    if (!to_.key_dims.empty() && !cache.has_channels(model.id)) cache.choose_channels(model.id, kChannels);
    if (!cache.demote(model.id, to_, Isa::kReference, threads)) return false;
    for (int32_t table = 0; table < kTables; ++table) {
      if (has_window(cache, table)) continue;
      const auto i = static_cast<size_t>(table);
      const auto older = static_cast<int32_t>(model.positions[i].size()) - model.demoted[i] - to_.num_recent;
      if (older > 0) model.demoted[i] += older / kKvBlockSize * kKvBlockSize;
    }
    return true;
  }

  bool demote_others(KvCache& cache, Model& model, const std::vector<std::vector<int32_t>>& kept) const {
    ThreadPool threads(2);
    if (!to_.key_dims.empty() && !cache.has_channels(model.id)) cache.choose_channels(model.id, kChannels);
    if (!cache.demote_others(model.id, kept, to_, Isa::kReference, threads)) return false;
    for (int32_t table = 0; table < kTables; ++table) {
      const auto i = static_cast<size_t>(table);
      if (has_window(cache, table) || (codec_of(table) == KvCodec::kF32 && channels_of(table).empty())) continue;
      std::vector<int32_t>& positions = model.positions[i];
      const auto is_other = [&](int32_t position) { return !std::ranges::binary_search(kept[i], position); };
      std::ranges::stable_partition(positions, is_other);
      model.demoted[i] = static_cast<int32_t>(positions.size() - kept[i].size());
    }
    return true;
  }

  KvDemotion to_ = kTo;
};

// A sequence of which nothing stays as it was has no block that its next one could follow, only demoted ones, which
// are counted by themselves.
TEST_F(KvDemote, EntriesGoOnWhereAllAreRounded) {
  to_.num_recent = 0;
  MemoryPool pool(size_t{64} << 20);
  KvCacheConfig config = config_of(2048);
  config.prefix_cache = false;
  KvCache cache(pool, config);
  std::vector<Model> models;
  for (int32_t i = 0; i < 6; ++i) {
    models.push_back(start(cache, make_tokens(2048 - 32, i)));
    ASSERT_TRUE(demote(cache, models.back()));
    ASSERT_EQ(models.back().demoted, std::vector<int32_t>(kTables, 2048 - 32));
    ASSERT_TRUE(extend(cache, models.back(), make_tokens(3, i)));
    cache.check_integrity();
  }
  for (const Model& model : models) check(cache, model);
}

TEST_F(KvDemote, OlderEntriesAreRoundedInWholeBlocksAndTheRestStays) {
  MemoryPool pool(size_t{64} << 20);
  KvCacheConfig config = config_of(100);
  config.prefix_cache = false;
  KvCache cache(pool, config);
  Model model = start(cache, make_tokens(71, 1));
  ASSERT_TRUE(demote(cache, model));
  EXPECT_EQ(model.demoted, std::vector<int32_t>(kTables, 0)) << "31 older entries are no block";
  check(cache, model);
  ASSERT_TRUE(extend(cache, model, make_tokens(130, 2)));
  ASSERT_TRUE(demote(cache, model));
  EXPECT_EQ(model.demoted, std::vector<int32_t>(kTables, 160));
  check(cache, model);
  // Again, and with more behind them.
  ASSERT_TRUE(demote(cache, model));
  check(cache, model);
  ASSERT_TRUE(extend(cache, model, make_tokens(64, 3)));
  check(cache, model);
  ASSERT_TRUE(demote(cache, model));
  check(cache, model);
  cache.release(model.id);
  cache.check_integrity();
  EXPECT_EQ(cache.stats().block_bytes_held, 0);
}

TEST_F(KvDemote, OlderKeysLoseTheSameComponentsEachTimeAndTheirBytesAreFree) {
  to_ = kToHalf;
  MemoryPool pool(size_t{64} << 20);
  KvCacheConfig config = config_of(100);
  config.prefix_cache = false;
  KvCache cache(pool, config);
  Model model = start(cache, make_tokens(200, 1));
  const int64_t bytes = cache.held_bytes(model.id);
  ASSERT_TRUE(demote(cache, model));
  EXPECT_EQ(model.demoted, std::vector<int32_t>(kTables, 160));
  EXPECT_LT(cache.held_bytes(model.id), bytes);
  check(cache, model);
  const int64_t lost_bytes = int64_t{2} * 5 * kKvBlockSize * (kDim - 16) * 4;  // of 160 keys of two heads
  EXPECT_EQ(cache.demoted_bytes({.codecs = kToHalf.codecs, .num_recent = 40}, 160) - cache.demoted_bytes(kToHalf, 160),
            lost_bytes);
  EXPECT_TRUE(cache.has_channels(model.id));
  ASSERT_TRUE(extend(cache, model, make_tokens(64, 3)));
  ASSERT_TRUE(demote(cache, model));
  EXPECT_EQ(model.demoted, std::vector<int32_t>(kTables, 224));
  check(cache, model);
}

TEST_F(KvDemote, WhatIsKeptOfDemotedEntriesMovesTogetherAndMoreGoBehind) {
  for (const KvDemotion& to : {kTo, kToHalf}) {
    to_ = to;
    MemoryPool pool(size_t{64} << 20);
    KvCache cache(pool, config_of(100));
    Model model = start(cache, make_tokens(320, 1));
    ASSERT_TRUE(demote(cache, model));
    check(cache, model);
    ASSERT_TRUE(keep(cache, model, {range(0, 320, 3), range(270, 300), range(1, 320, 2)}));
    check(cache, model);
    ASSERT_TRUE(extend(cache, model, make_tokens(100, 2)));
    ASSERT_TRUE(demote(cache, model));  // into the blocks that the first ones have left partly empty
    check(cache, model);
    ASSERT_TRUE(keep(cache, model, {range(0, 100), {}, range(0, 10)}));
    check(cache, model);
    ASSERT_TRUE(extend(cache, model, make_tokens(5, 3)));
    check(cache, model);
  }
}

TEST_F(KvDemote, SharedBlocksStayForOthersAsTheyWere) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(100));
  const Tokens tokens = make_tokens(200, 1);
  Model dense = start(cache, tokens);
  Model model = attach(cache, tokens);
  ASSERT_EQ(model.tokens.size(), 192);
  ASSERT_TRUE(extend_to(cache, model, tokens));
  ASSERT_TRUE(demote(cache, model));
  check(cache, model);
  check(cache, dense);
  cache.release(dense.id);
  check(cache, model);
  ASSERT_TRUE(extend(cache, model, make_tokens(100, 3)));
  ASSERT_TRUE(demote(cache, model));
  check(cache, model);
  // What it computed after that is no prefix of anything.
  cache.release(model.id);
  const SequenceId other = cache.create();
  EXPECT_EQ(cache.attach_prefix(other, ids_of(model.tokens), roles_of(model.tokens)), 192);
  cache.check_integrity();
}

TEST_F(KvDemote, WithoutRoomNothingChanges) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(10));
  Model model = start(cache, make_tokens(320, 1));  // every block is held
  EXPECT_FALSE(demote(cache, model));
  check(cache, model);
  cache.release(model.id);
  Model shorter = start(cache, make_tokens(200, 2));
  EXPECT_TRUE(demote(cache, shorter));
  check(cache, shorter);
}

TEST_F(KvDemote, LayersWithAWindowKeepWhatTheyHave) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(100, 70));
  Model model = start(cache, make_tokens(300, 1));
  ASSERT_TRUE(demote(cache, model));
  EXPECT_EQ(model.demoted, (std::vector<int32_t>{256, 256, 0}));
  check(cache, model);
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(extend(cache, model, make_tokens(33, 10 + i)));
    ASSERT_TRUE(demote(cache, model));
    check(cache, model);
  }
  cache.release(model.id);
  cache.check_integrity();
}

TEST_F(KvDemote, OthersAreRoundedAndComeBeforeWhatStays) {
  for (const KvDemotion& to : {kTo, kToHalf}) {
    to_ = to;
    MemoryPool pool(size_t{64} << 20);
    KvCache cache(pool, config_of(100));
    Model model = start(cache, make_tokens(321, 1));
    const int64_t bytes = cache.held_bytes(model.id);
    ASSERT_TRUE(demote_others(cache, model, {range(0, 321, 3), range(270, 300), {}}));
    EXPECT_EQ(model.demoted, (std::vector<int32_t>{214, 291, 321}));
    EXPECT_LT(cache.held_bytes(model.id), bytes);
    check(cache, model);
    ASSERT_TRUE(extend(cache, model, make_tokens(100, 2)));
    check(cache, model);
    cache.release(model.id);
    cache.check_integrity();
  }
}

// 31 rounded entries and 33 that stay are three blocks where there were two.
TEST_F(KvDemote, OthersMayTakeABlockMoreThanThereWas) {
  to_ = {.codecs = {KvCodec::kHadamard4, KvCodec::kF32}};
  MemoryPool pool(size_t{64} << 20);
  KvCacheConfig config = config_of(100);
  config.prefix_cache = false;
  KvCache cache(pool, config);
  Model model = start(cache, make_tokens(64, 1));
  ASSERT_TRUE(demote_others(cache, model, {range(31, 64), range(0, 64), range(0, 10)}));
  EXPECT_EQ(model.demoted, (std::vector<int32_t>{31, 0, 0})) << "entries of the second layer have that type already";
  check(cache, model);
  ASSERT_TRUE(extend(cache, model, make_tokens(40, 2)));
  check(cache, model);
}

TEST_F(KvDemote, WithoutOthersNothingChanges) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(100));
  const Tokens tokens = make_tokens(100, 1);
  Model model = start(cache, tokens);
  ASSERT_TRUE(demote_others(cache, model, {range(0, 100), range(0, 100), range(0, 100)}));
  EXPECT_EQ(cache.view(model.id, 0, 0, 100).positions, nullptr);
  check(cache, model);
  ASSERT_TRUE(extend(cache, model, make_tokens(30, 2)));
  Model other = attach(cache, model.tokens);
  EXPECT_EQ(other.tokens.size(), 128) << "its blocks still become prefix blocks";
}

TEST_F(KvDemote, OthersOfSharedBlocksStayAsTheyWere) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(100));
  const Tokens tokens = make_tokens(200, 1);
  Model dense = start(cache, tokens);
  Model model = attach(cache, tokens);
  ASSERT_TRUE(extend_to(cache, model, tokens));
  ASSERT_TRUE(demote_others(cache, model, {range(0, 200, 2), range(150, 200), range(3, 60)}));
  check(cache, model);
  check(cache, dense);
  cache.release(dense.id);
  check(cache, model);
  ASSERT_TRUE(extend(cache, model, make_tokens(100, 3)));
  check(cache, model);
  cache.release(model.id);
  const SequenceId other = cache.create();
  EXPECT_EQ(cache.attach_prefix(other, ids_of(model.tokens), roles_of(model.tokens)), 192);
  cache.check_integrity();
}

TEST_F(KvDemote, WithoutRoomForOthersNothingChanges) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(10));
  Model model = start(cache, make_tokens(320, 1));  // every block is held
  const std::vector<std::vector<int32_t>> kept(kTables, range(0, 320, 2));
  EXPECT_FALSE(demote_others(cache, model, kept));
  check(cache, model);
  cache.release(model.id);
  Model shorter = start(cache, make_tokens(200, 2));
  EXPECT_TRUE(demote_others(cache, shorter, std::vector<std::vector<int32_t>>(kTables, range(0, 200, 2))));
  check(cache, shorter);
}

TEST_F(KvDemote, LayersWithAWindowKeepOthersToo) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(100, 70));
  Model model = start(cache, make_tokens(300, 1));
  ASSERT_TRUE(demote_others(cache, model, {range(0, 100), range(200, 300), {}}));
  EXPECT_EQ(model.demoted, (std::vector<int32_t>{200, 200, 0}));
  check(cache, model);
  ASSERT_TRUE(extend(cache, model, make_tokens(133, 10)));
  check(cache, model);
}

TEST_F(KvDemote, WrongTypesAreRefusedByName) {
  MemoryPool pool(size_t{64} << 20);
  KvCacheConfig config = config_of(10);
  config.codec = KvCodec::kHadamard8;
  const KvCache cache(pool, config);
  const auto message = [&](const KvDemotion& demotion) {
    try {
      cache.check_demotion(demotion);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(message({.codecs = {KvCodec::kHadamard8, KvCodec::kHadamard2}}), "");
  EXPECT_THAT(message({.codecs = {KvCodec::kHadamard4}}), testing::HasSubstr("1 layers; the model has 2"));
  EXPECT_THAT(
      message({.codecs = {KvCodec::kHadamard4, KvCodec::kBF16}}),
      testing::HasSubstr("layer 1: KV entries of type bf16 are not smaller than the cache's own, of type int8"));
  config.codec = KvCodec::kBF16;
  config.layers = {{1, 96, 64, true}};
  MemoryPool other(size_t{64} << 20);
  const KvCache latents(other, config);
  EXPECT_THROW(latents.check_demotion({.codecs = {KvCodec::kHadamard4}}), Error);
  latents.check_demotion({.codecs = {KvCodec::kQ8}});
}

TEST_F(KvDemote, KeysThatCannotLoseComponentsAreRefusedByName) {
  const auto message = [](const KvCacheConfig& config, const KvDemotion& demotion) {
    MemoryPool pool(size_t{64} << 20);
    const KvCache cache(pool, config);
    try {
      cache.check_demotion(demotion);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
      return std::string(error.what());
    }
    return std::string();
  };
  KvCacheConfig config = config_of(10);
  EXPECT_EQ(message(config, kToHalf), "");
  config.codec = KvCodec::kHadamard8;
  EXPECT_THAT(message(config, {.codecs = {KvCodec::kHadamard8, KvCodec::kHadamard8}, .key_dims = {16, 32}}),
              testing::HasSubstr("layer 0: the KV cache is of type int8-hadamard, whose keys are turned"));
  EXPECT_EQ(message(config, {.codecs = {KvCodec::kHadamard4, KvCodec::kHadamard8}, .key_dims = {16, 32}}), "");
  config.codec = KvCodec::kBF16;
  config.layers = {{1, 96, 64, true}};
  EXPECT_THAT(message(config, {.codecs = {KvCodec::kBF16}, .key_dims = {64}}), testing::HasSubstr("(MLA)"));
}

TEST_F(KvDemote, RandomOperationsAgreeWithANaiveModel) {
  struct Case {
    int32_t window;
    const KvDemotion& to;
  };
  for (const auto& [window, to] : {Case{0, kTo}, Case{50, kTo}, Case{0, kToHalf}}) {
    to_ = to;
    MemoryPool pool(size_t{64} << 20);
    KvCache cache(pool, config_of(14, window));
    int num_demoted = 0;
    int num_refused = 0;
    operate_at_random(cache, 500, 5, [&](Model& model, int32_t what, const Below& below) {
      if (what < 2) {
        (demote(cache, model) ? num_demoted : num_refused) += 1;
      } else {
        keep(cache, model, random_entries(model, below));
      }
    });
    EXPECT_GT(num_demoted, 30);
    EXPECT_GT(num_refused, 0);
  }
}

TEST_F(KvDemote, RandomOperationsWithOthersAgreeWithANaiveModel) {
  struct Case {
    int32_t window;
    const KvDemotion& to;
  };
  for (const auto& [window, to] : {Case{0, kTo}, Case{50, kTo}, Case{0, kToHalf}}) {
    to_ = to;
    MemoryPool pool(size_t{64} << 20);
    KvCache cache(pool, config_of(14, window));
    int num_demoted = 0;
    int num_refused = 0;
    operate_at_random(cache, 500, 5, [&](Model& model, int32_t, const Below& below) {
      if (model.demoted != std::vector<int32_t>(kTables, 0)) return;
      (demote_others(cache, model, random_entries(model, below)) ? num_demoted : num_refused) += 1;
    });
    EXPECT_GT(num_demoted, 15);  // each sequence once
    EXPECT_GT(num_refused, 0);
  }
}

}  // namespace
}  // namespace witan
