// Rounding older entries to fewer bits: what they are then, what stays, and what it frees.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

KvBlockFormat format_of(KvCodec codec) { return {codec, kDim, kDim, false}; }
KvCodec codec_of(int32_t table) { return kTo.codecs[static_cast<size_t>(test::place_of(table).first)]; }

// Key (part 0) or value (1) as they are computed.
std::vector<float> component(const ModelEntry& entry, int32_t part) {
  std::vector<float> x(kDim);
  for (int32_t d = 0; d < kDim; ++d) {
    x[static_cast<size_t>(d)] =
        static_cast<float>(std::sin(0.37 * entry.position + 1.3 * d + 5.0 * entry.table + part));
  }
  return x;
}

// Key and value as a block of the codec has them.
std::vector<float> rounded(KvCodec codec, const ModelEntry& entry) {
  const KvBlockFormat format = format_of(codec);
  std::vector<std::byte> storage(static_cast<size_t>(format.block_bytes()) + 64);
  auto* block = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(storage.data()) + 63) / 64 * 64);
  kv_store(format, block, 5, component(entry, 0).data(), component(entry, 1).data());
  std::vector<float> out(2 * kDim);
  kv_load(format, block, 5, out.data(), out.data() + kDim);
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
    return loaded == rounded(entry.is_demoted ? codec_of(entry.table) : KvCodec::kF32, entry);
  }

  int64_t demoted_block_bytes(int32_t table) const override { return format_of(codec_of(table)).block_bytes(); }

  static bool demote(KvCache& cache, Model& model) {
    ThreadPool threads(2);
    if (!cache.demote(model.id, kTo, Isa::kReference, threads)) return false;
    for (int32_t table = 0; table < kTables; ++table) {
      if (has_window(cache, table)) continue;
      const auto i = static_cast<size_t>(table);
      const auto older = static_cast<int32_t>(model.positions[i].size()) - model.demoted[i] - kTo.num_recent;
      if (older > 0) model.demoted[i] += older / kKvBlockSize * kKvBlockSize;
    }
    return true;
  }
};

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

TEST_F(KvDemote, WhatIsKeptOfDemotedEntriesMovesTogetherAndMoreGoBehind) {
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

TEST_F(KvDemote, RandomOperationsAgreeWithANaiveModel) {
  for (const int32_t window : {0, 50}) {
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

}  // namespace
}  // namespace witan
