// Rounding older entries to fewer bits and leaving out components of their keys: what they are then, what stays, and
// what it frees.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "base/error.h"
#include "kernels/attention/kv_block.h"
#include "kv/kv_cache.h"
#include "kv_test_support.h"

namespace witan {
namespace {

using test::ids_of;
using test::make_tokens;
using test::roles_of;
using test::Tokens;

constexpr int32_t kDim = 32;
constexpr int32_t kTables = 3;
const KvDemotion kTo{.codecs = {KvCodec::kHadamard4, KvCodec::kHadamard8}, .num_recent = 40};
// The first layer's keys lose half of their components and those of the second, which are rounded, none.
const KvDemotion kToHalf{.codecs = {KvCodec::kF32, KvCodec::kHadamard8}, .num_recent = 40, .key_dims = {16, kDim}};
const std::vector<std::vector<int32_t>> kChannels = {
    {0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31},
    {1, 3, 4, 6, 7, 9, 10, 12, 15, 16, 18, 20, 22, 25, 28, 30},
    {},
};

// Three tables: two heads in layer 0 and one in layer 1.
KvCacheConfig config_of(int64_t num_sets, int32_t window = 0) {
  KvCacheConfig config;
  config.layers = {{2, kDim, kDim}, {1, kDim, kDim, false, window}};
  config.codec = KvCodec::kF32;
  config.capacity_bytes = static_cast<size_t>(num_sets * kTables * kKvBlockSize * 2 * kDim * 4);
  return config;
}

KvBlockFormat format_of(KvCodec codec, int32_t key_dim = kDim) { return {codec, key_dim, kDim, false}; }
int32_t layer_of(int32_t table) { return table < 2 ? 0 : 1; }
int32_t head_of(int32_t table) { return table < 2 ? table : 0; }

std::vector<float> component(int32_t token, int32_t table, int32_t part) {
  std::vector<float> x(kDim);
  for (int32_t d = 0; d < kDim; ++d) {
    x[static_cast<size_t>(d)] = static_cast<float>(std::sin(0.37 * token + 1.3 * d + 5.0 * table + part));
  }
  return x;
}

// Key and value as they are read when stored so, the key with these components alone; all if there are none.
std::vector<float> rounded(KvCodec codec, std::vector<float> key, const std::vector<float>& value,
                           const std::vector<int32_t>& channels = {}) {
  if (!channels.empty()) {
    std::vector<float> chosen;
    for (const int32_t channel : channels) chosen.push_back(key[static_cast<size_t>(channel)]);
    key = chosen;
  }
  const KvBlockFormat format = format_of(codec, static_cast<int32_t>(key.size()));
  std::vector<std::byte> storage(static_cast<size_t>(format.block_bytes()) + 64);
  auto* block = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(storage.data()) + 63) / 64 * 64);
  kv_store(format, block, 5, key.data(), value.data());
  std::vector<float> out(2 * kDim);
  kv_load(format, block, 5, key.data(), out.data() + kDim);
  for (size_t i = 0; i < key.size(); ++i) {
    out[channels.empty() ? i : static_cast<size_t>(channels[i])] = key[i];
  }
  return out;
}

// A sequence and what it should hold: positions by table, and how many of them are demoted.
struct Model {
  SequenceId id = 0;
  KvDemotion to = kTo;
  Tokens tokens;
  std::vector<std::vector<int32_t>> positions = std::vector<std::vector<int32_t>>(kTables);
  std::vector<int32_t> demoted = std::vector<int32_t>(kTables);

  std::vector<int32_t> channels(int32_t table) const {
    return to.key_dims.empty() ? std::vector<int32_t>() : kChannels[static_cast<size_t>(table)];
  }
  void add(const Tokens& more) {
    for (size_t i = 0; i < more.size(); ++i) {
      for (auto& table : positions) table.push_back(static_cast<int32_t>(tokens.size() + i));
    }
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
};

bool extend(KvCache& cache, Model& model, const Tokens& tokens) {
  const auto count = static_cast<int32_t>(tokens.size());
  if (!cache.reserve(model.id, count)) return false;
  for (int32_t i = 0; i < count; ++i) {
    const auto token = static_cast<int32_t>(model.tokens.size()) + i;
    for (int32_t table = 0; table < kTables; ++table) {
      const int32_t entry = cache.num_entries(model.id, layer_of(table), head_of(table)) + i;
      const KvCache::Slot slot = cache.slot(model.id, layer_of(table), head_of(table), entry);
      kv_store(cache.block_format(layer_of(table)), slot.block, slot.slot, component(token, table, 0).data(),
               component(token, table, 1).data());
    }
  }
  cache.commit(model.id, ids_of(tokens), roles_of(tokens));
  model.add(tokens);
  return true;
}

bool demote(KvCache& cache, Model& model) {
  ThreadPool threads(2);
  const KvDemotion& to = model.to;
  if (!to.key_dims.empty() && !cache.has_channels(model.id)) cache.choose_channels(model.id, kChannels);
  if (!cache.demote(model.id, to, Isa::kReference, threads)) return false;
  for (int32_t table = 0; table < kTables; ++table) {
    if (cache.config().layers[static_cast<size_t>(layer_of(table))].window > 0) continue;
    const auto i = static_cast<size_t>(table);
    const auto older = static_cast<int32_t>(model.positions[i].size()) - model.demoted[i] - to.num_recent;
    if (older > 0) model.demoted[i] += older / kKvBlockSize * kKvBlockSize;
  }
  return true;
}

bool keep(KvCache& cache, Model& model, const std::vector<std::vector<int32_t>>& kept) {
  if (!cache.keep(model.id, kept)) return false;
  for (int32_t table = 0; table < kTables; ++table) {
    if (cache.config().layers[static_cast<size_t>(layer_of(table))].window > 0) continue;
    const auto i = static_cast<size_t>(table);
    std::vector<int32_t> positions;
    for (const int32_t entry : kept[i]) positions.push_back(model.positions[i][static_cast<size_t>(entry)]);
    model.positions[i] = positions;
    model.demoted[i] = static_cast<int32_t>(std::ranges::lower_bound(kept[i], model.demoted[i]) - kept[i].begin());
  }
  return true;
}

void check(const KvCache& cache, const Model& model) {
  cache.check_integrity();
  ASSERT_EQ(cache.num_tokens(model.id), std::ssize(model.tokens));
  int64_t bytes = 0;
  bool has_windows = false;
  for (int32_t table = 0; table < kTables; ++table) {
    const auto i = static_cast<size_t>(table);
    const int32_t layer = layer_of(table);
    const auto count = static_cast<int32_t>(model.positions[i].size());
    ASSERT_EQ(cache.num_entries(model.id, layer, head_of(table)), count);
    ASSERT_EQ(cache.num_demoted(model.id, layer, head_of(table)), model.demoted[i]) << "table " << table;
    const KvView view = cache.view(model.id, layer, head_of(table), count);
    const KvCodec codec = model.to.codecs[static_cast<size_t>(layer)];
    const std::vector<int32_t> channels = model.channels(table);
    const auto key_dim = channels.empty() ? kDim : static_cast<int32_t>(channels.size());
    bytes += (model.demoted[i] + 31) / 32 * format_of(codec, key_dim).block_bytes() +
             (count - model.demoted[i] + 31) / 32 * format_of(KvCodec::kF32).block_bytes();
    const int32_t window = cache.config().layers[static_cast<size_t>(layer)].window;
    has_windows |= window > 0;
    for (int32_t entry = 0; entry < count; ++entry) {
      const int32_t position = model.positions[i][static_cast<size_t>(entry)];
      ASSERT_EQ(view.positions == nullptr ? entry : view.positions[entry], position);
      if (window > 0 && position < std::ssize(model.tokens) + 1 - window) continue;
      std::vector<float> loaded(2 * kDim);
      view.load(entry, loaded.data(), loaded.data() + kDim);
      const bool is_demoted = entry < model.demoted[i];
      ASSERT_EQ(loaded, rounded(is_demoted ? codec : KvCodec::kF32, component(position, table, 0),
                                component(position, table, 1), is_demoted ? channels : std::vector<int32_t>()))
          << "table " << table << ", entry " << entry;
    }
  }
  if (!has_windows) {
    EXPECT_EQ(cache.held_bytes(model.id), bytes);
  }
}

Model start(KvCache& cache, const Tokens& tokens, const KvDemotion& to = kTo) {
  Model model;
  model.to = to;
  model.id = cache.create();
  EXPECT_TRUE(extend(cache, model, tokens));
  return model;
}

std::vector<int32_t> range(int32_t begin, int32_t end, int32_t step = 1) {
  std::vector<int32_t> entries;
  for (int32_t i = begin; i < end; i += step) entries.push_back(i);
  return entries;
}

TEST(KvDemote, OlderEntriesAreRoundedInWholeBlocksAndTheRestStays) {
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

TEST(KvDemote, OlderKeysLoseTheSameComponentsEachTimeAndTheirBytesAreFree) {
  MemoryPool pool(size_t{64} << 20);
  KvCacheConfig config = config_of(100);
  config.prefix_cache = false;
  KvCache cache(pool, config);
  Model model = start(cache, make_tokens(200, 1), kToHalf);
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

TEST(KvDemote, WhatIsKeptOfDemotedEntriesMovesTogetherAndMoreGoBehind) {
  for (const KvDemotion& to : {kTo, kToHalf}) {
    MemoryPool pool(size_t{64} << 20);
    KvCache cache(pool, config_of(100));
    Model model = start(cache, make_tokens(320, 1), to);
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

TEST(KvDemote, SharedBlocksStayForOthersAsTheyWere) {
  MemoryPool pool(size_t{64} << 20);
  KvCache cache(pool, config_of(100));
  const Tokens tokens = make_tokens(200, 1);
  Model dense = start(cache, tokens);
  Model model;
  model.id = cache.create();
  ASSERT_EQ(cache.attach_prefix(model.id, ids_of(tokens), roles_of(tokens)), 192);
  model.add(Tokens(tokens.begin(), tokens.begin() + 192));
  ASSERT_TRUE(extend(cache, model, Tokens(tokens.begin() + 192, tokens.end())));
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

TEST(KvDemote, WithoutRoomNothingChanges) {
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

TEST(KvDemote, LayersWithAWindowKeepWhatTheyHave) {
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

TEST(KvDemote, WrongTypesAreRefusedByName) {
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

TEST(KvDemote, KeysThatCannotLoseComponentsAreRefusedByName) {
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

TEST(KvDemote, RandomOperationsAgreeWithANaiveModel) {
  struct Case {
    int32_t window;
    const KvDemotion& to;
  };
  for (const auto& [window, to] : {Case{0, kTo}, Case{50, kTo}, Case{0, kToHalf}}) {
    MemoryPool pool(size_t{64} << 20);
    KvCache cache(pool, config_of(14, window));
    std::mt19937 random(17);
    const auto below = [&](int n) { return static_cast<int32_t>(random() % static_cast<unsigned>(n)); };
    std::vector<Model> models;
    int num_demoted = 0;
    int num_refused = 0;
    for (int step = 0; step < 500; ++step) {
      const int what = below(10);
      if (what < 2 && models.size() < 5) {
        Model model;
        model.to = to;
        model.id = cache.create();
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
      } else {
        const int32_t chosen = below(static_cast<int>(models.size()));
        Model& model = models[static_cast<size_t>(chosen)];
        if (what < 5) {
          extend(cache, model, make_tokens(1 + below(60), 100 + step));
        } else if (what < 7) {
          (demote(cache, model) ? num_demoted : num_refused) += 1;
        } else if (what < 9) {
          std::vector<std::vector<int32_t>> kept(kTables);
          for (size_t table = 0; table < kTables; ++table) {
            for (int32_t i = 0; i < std::ssize(model.positions[table]); ++i) {
              if (below(5) > 0) kept[table].push_back(i);
            }
          }
          keep(cache, model, kept);
        } else {
          cache.release(model.id);
          models.erase(models.begin() + chosen);
        }
      }
      for (const Model& model : models) check(cache, model);
      if (HasFatalFailure()) FAIL() << "step " << step;
    }
    EXPECT_GT(num_demoted, 30);
    EXPECT_GT(num_refused, 0);
  }
}

}  // namespace
}  // namespace witan
