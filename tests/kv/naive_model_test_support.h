#pragma once

// What the tests that compact a sequence share: a naive model of what it should hold, and random operations on both.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "kv/kv_cache.h"
#include "kv_test_support.h"

namespace witan::test {

inline constexpr int32_t kTables = 3;  // two heads of layer 0 and one of layer 1, which may have a window
inline constexpr int32_t kDim = 32;
inline constexpr int64_t kBlockBytes = kKvBlockSize * (kDim + kDim) * 4;

// The layer and head of a table.
inline std::pair<int32_t, int32_t> place_of(int32_t table) { return table < 2 ? std::pair(0, table) : std::pair(1, 0); }

// With room for num_sets blocks of each table.
inline KvCacheConfig config_of(int64_t num_sets, int32_t window = 0) {
  KvCacheConfig config;
  config.layers = {{2, kDim, kDim}, {1, kDim, kDim, false, window}};
  config.codec = KvCodec::kF32;
  config.capacity_bytes = static_cast<size_t>(num_sets * kTables * kBlockBytes);
  return config;
}

inline std::vector<int32_t> range(int32_t begin, int32_t end, int32_t step = 1) {
  std::vector<int32_t> entries;
  for (int32_t i = begin; i < end; i += step) entries.push_back(i);
  return entries;
}

// A sequence and what it should hold: positions by table, and how many of them are demoted.
struct Model {
  SequenceId id = 0;
  Tokens tokens;
  std::vector<std::vector<int32_t>> positions = std::vector<std::vector<int32_t>>(kTables);
  std::vector<int32_t> demoted = std::vector<int32_t>(kTables);

  void add(const Tokens& more) {
    for (size_t i = 0; i < more.size(); ++i) {
      for (auto& table : positions) table.push_back(static_cast<int32_t>(tokens.size() + i));
    }
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
};

// A table's entry of the token at `position`; `chain` stands for the text so far (extend_chain).
struct ModelEntry {
  int32_t table;
  int32_t position;
  uint32_t chain;
  bool is_demoted = false;
};

class NaiveModelTest : public testing::Test {
 protected:
  using Below = std::function<int32_t(int)>;  // a random number below one

  // What an entry is written as, and whether that is what a view has as its i-th.
  virtual void write(const KvBlockFormat& format, KvCache::Slot slot, const ModelEntry& entry) = 0;
  virtual bool holds(const KvView& view, int32_t i, const ModelEntry& entry) = 0;
  virtual int64_t demoted_block_bytes(int32_t /*table*/) const { return 0; }

  // Writes the entries of `tokens` behind those that each table has.
  bool extend(KvCache& cache, Model& model, const Tokens& tokens) {
    const auto count = static_cast<int32_t>(tokens.size());
    if (!cache.reserve(model.id, count)) return false;
    const auto first = static_cast<int32_t>(model.tokens.size());
    Tokens all = model.tokens;
    all.insert(all.end(), tokens.begin(), tokens.end());
    const std::vector<uint32_t> chains = chains_of(all);
    for (int32_t i = 0; i < count; ++i) {
      for (int32_t table = 0; table < kTables; ++table) {
        const auto [layer, head] = place_of(table);
        const int32_t entry = cache.num_entries(model.id, layer, head) + i;
        write(cache.block_format(layer), cache.slot(model.id, layer, head, entry),
              {.table = table, .position = first + i, .chain = chains[static_cast<size_t>(first + i)]});
        EXPECT_EQ(position_in(cache.view(model.id, layer, head, entry + 1), entry), first + i);
      }
    }
    cache.commit(model.id, ids_of(tokens), roles_of(tokens));
    model.add(tokens);
    return true;
  }

  Model start(KvCache& cache, const Tokens& tokens) {
    Model model;
    model.id = cache.create();
    EXPECT_TRUE(extend(cache, model, tokens));
    return model;
  }

  // With what the prefix cache has of the tokens.
  static Model attach(KvCache& cache, const Tokens& tokens) {
    Model model;
    model.id = cache.create();
    const int32_t num_cached = cache.attach_prefix(model.id, ids_of(tokens), roles_of(tokens));
    model.add(Tokens(tokens.begin(), tokens.begin() + num_cached));
    return model;
  }

  bool extend_to(KvCache& cache, Model& model, const Tokens& tokens) {
    return extend(cache, model, Tokens(tokens.begin() + std::ssize(model.tokens), tokens.end()));
  }

  static bool has_window(const KvCache& cache, int32_t table) {
    return cache.config().layers[static_cast<size_t>(place_of(table).first)].window > 0;
  }

  // Keeps these entries of every table.
  static bool keep(KvCache& cache, Model& model, const std::vector<std::vector<int32_t>>& kept) {
    if (!cache.keep(model.id, kept)) return false;
    for (int32_t table = 0; table < kTables; ++table) {
      if (has_window(cache, table)) continue;
      const auto i = static_cast<size_t>(table);
      std::vector<int32_t> positions;
      for (const int32_t entry : kept[i]) positions.push_back(model.positions[i][static_cast<size_t>(entry)]);
      model.positions[i] = positions;
      model.demoted[i] = static_cast<int32_t>(std::ranges::lower_bound(kept[i], model.demoted[i]) - kept[i].begin());
    }
    return true;
  }

  // Checks every entry of every table, but for those that a window has passed.
  void check(const KvCache& cache, const Model& model) {
    cache.check_integrity();
    ASSERT_EQ(cache.num_tokens(model.id), std::ssize(model.tokens));
    const std::vector<uint32_t> chains = chains_of(model.tokens);
    int64_t bytes = 0;
    bool has_windows = false;
    for (int32_t table = 0; table < kTables; ++table) {
      const auto [layer, head] = place_of(table);
      const std::vector<int32_t>& positions = model.positions[static_cast<size_t>(table)];
      const auto count = static_cast<int32_t>(positions.size());
      const int32_t num_demoted = model.demoted[static_cast<size_t>(table)];
      ASSERT_EQ(cache.num_entries(model.id, layer, head), count);
      ASSERT_EQ(cache.num_demoted(model.id, layer, head), num_demoted) << "table " << table;
      const KvView view = cache.view(model.id, layer, head, count);
      bytes +=
          num_blocks_of(num_demoted) * demoted_block_bytes(table) + num_blocks_of(count - num_demoted) * kBlockBytes;
      const int32_t window = cache.config().layers[static_cast<size_t>(layer)].window;
      has_windows |= window > 0;
      for (int32_t i = 0; i < count; ++i) {
        const int32_t position = positions[static_cast<size_t>(i)];
        ASSERT_EQ(position_in(view, i), position);
        if (window > 0 && position < std::ssize(model.tokens) + 1 - window) continue;
        ASSERT_TRUE(holds(view, i,
                          {.table = table,
                           .position = position,
                           .chain = chains[static_cast<size_t>(position)],
                           .is_demoted = i < num_demoted}))
            << "table " << table << ", entry " << i;
      }
    }
    if (!has_windows) {
      EXPECT_EQ(cache.held_bytes(model.id) - cache.aside_block_bytes(model.id), bytes);
    }
  }

  // Sequences begin, go on, change and end at random; what all hold is checked each time. Few beginnings, so that
  // they meet in the prefix cache. `change` is called for 4 of 10 steps, with a random number below 4.
  void operate_at_random(KvCache& cache, int num_steps, size_t most_sequences,
                         const std::function<void(Model&, int32_t, const Below&)>& change) {
    std::mt19937 random(17);
    const Below below = [&](int n) { return static_cast<int32_t>(random() % static_cast<unsigned>(n)); };
    std::vector<Model> models;
    for (int step = 0; step < num_steps; ++step) {
      const int32_t what = below(10);
      if (what < 2 && models.size() < most_sequences) {
        const Tokens tokens = make_tokens(40 + below(200), below(3));
        Model model = attach(cache, tokens);
        if (!extend_to(cache, model, tokens)) {
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
        } else if (what < 9) {
          change(model, what - 5, below);
        } else {
          cache.release(model.id);
          models.erase(models.begin() + chosen);
        }
      }
      for (const Model& model : models) check(cache, model);
      if (HasFatalFailure()) FAIL() << "step " << step;
    }
  }

  // Of every table, entries of which each stays with the same chance.
  static std::vector<std::vector<int32_t>> random_entries(const Model& model, const Below& below) {
    std::vector<std::vector<int32_t>> entries(kTables);
    for (size_t table = 0; table < kTables; ++table) {
      const int32_t share = below(4);
      for (int32_t i = 0; i < std::ssize(model.positions[table]); ++i) {
        if (below(3) < share) entries[table].push_back(i);
      }
    }
    return entries;
  }

 private:
  static int64_t num_blocks_of(int32_t num_entries) { return (num_entries + kKvBlockSize - 1) / kKvBlockSize; }

  static int32_t position_in(const KvView& view, int32_t entry) {
    return view.positions == nullptr ? entry : view.positions[entry];
  }

  static std::vector<uint32_t> chains_of(const Tokens& tokens) {
    std::vector<uint32_t> chains;
    for (const Token& token : tokens) chains.push_back(extend_chain(chains.empty() ? 0 : chains.back(), token));
    return chains;
  }
};

// Entries are what they stand for, as a pattern of bits.
class PatternModelTest : public NaiveModelTest {
 protected:
  void write(const KvBlockFormat& format, KvCache::Slot slot, const ModelEntry& entry) override {
    write_pattern(format, slot, pattern_of(entry));
  }
  bool holds(const KvView& view, int32_t i, const ModelEntry& entry) override {
    return has_pattern(view, i, pattern_of(entry));
  }

 private:
  static uint32_t pattern_of(const ModelEntry& entry) {
    const auto [layer, head] = place_of(entry.table);
    return entry_pattern(entry.chain, layer, head, entry.position);
  }
};

}  // namespace witan::test
