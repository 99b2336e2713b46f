#include "kv/block_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace witan {
namespace {

constexpr auto kFrame = static_cast<int64_t>(MemoryPool::kFrameBytes);

std::vector<BlockId> grow(BlockPool& pool, std::vector<BlockId>& table, int64_t count) {
  EXPECT_TRUE(pool.ensure_free(count));
  std::vector<BlockId> blocks(count);
  pool.allocate(table.empty() ? kNoBlock : table.back(), std::ssize(table), blocks);
  table.insert(table.end(), blocks.begin(), blocks.end());
  return blocks;
}

TEST(BlockPoolTest, SlabsWasteLittleOfTheirFrames) {
  struct Case {
    int64_t block_bytes;
    int64_t slab_frames;
    int64_t blocks_per_slab;
  };
  MemoryPool memory(size_t{1} << 30);
  for (const Case& c : std::vector<Case>{{64, 1, 32768},
                                         {9216, 1, 227},
                                         {16384, 1, 128},
                                         {36864, 2, 113},
                                         {73728, 3, 85},
                                         {kFrame / 16, 1, 16},
                                         {kFrame, 1, 1}}) {
    const BlockPool pool(memory, c.block_bytes);
    EXPECT_EQ(pool.blocks_per_slab(), pool.slab_bytes() / c.block_bytes);
    EXPECT_EQ(pool.slab_bytes() / kFrame, c.slab_frames) << c.block_bytes;
    EXPECT_EQ(pool.blocks_per_slab(), c.blocks_per_slab) << c.block_bytes;
  }
}

TEST(BlockPoolTest, FramesComeWhenNeededAndGoBackOnceUnused) {
  MemoryPool memory(4 * kFrame);
  BlockPool pool(memory, kFrame / 32);
  std::vector<BlockId> first;
  std::vector<BlockId> second;
  EXPECT_EQ(memory.held_bytes(), 0);
  grow(pool, first, 1);
  EXPECT_EQ(memory.held_bytes(MemoryTag::kKvCache), kFrame);
  grow(pool, second, 32);
  EXPECT_EQ(memory.held_bytes(), 2 * kFrame);
  for (BlockId block : second) pool.release(block);
  pool.trim();
  pool.check_integrity();
  EXPECT_EQ(memory.held_bytes(), kFrame);
  pool.release(first[0]);
  pool.trim();
  EXPECT_EQ(memory.held_bytes(), 0);
}

TEST(BlockPoolTest, AllBlocksOfTheBudgetCanBeUsedWhateverTheirRuns) {
  MemoryPool memory(3 * kFrame);
  BlockPool pool(memory, kFrame / 32);
  std::vector<std::vector<BlockId>> tables(7);
  std::set<BlockId> used;
  for (int i = 0; i < 96; ++i) {
    for (BlockId block : grow(pool, tables[i % 7], 1)) EXPECT_TRUE(used.insert(block).second);
  }
  EXPECT_FALSE(pool.ensure_free(1));
  EXPECT_EQ(pool.num_slabs(), 3);
  EXPECT_EQ(pool.num_used(), 96);
  pool.check_integrity();
}

TEST(BlockPoolTest, RefusalTakesNothing) {
  MemoryPool memory(3 * kFrame);
  BlockPool pool(memory, kFrame / 32);
  std::vector<BlockId> table;
  grow(pool, table, 5);
  EXPECT_FALSE(pool.ensure_free(3 * 32 - 4));
  EXPECT_EQ(pool.num_slabs(), 1);
  EXPECT_TRUE(pool.ensure_free(3 * 32 - 5));
}

// How many pieces of neighbouring blocks make up the runs of 16 entries of a table, on average.
double pieces_per_run(const std::vector<BlockId>& table) {
  int64_t num_pieces = 0;
  for (size_t i = 0; i < table.size(); ++i) {
    const bool continues = i % BlockPool::kRunBlocks != 0 && table[i] == table[i - 1] + 1;
    num_pieces += continues ? 0 : 1;
  }
  return static_cast<double>(num_pieces) * BlockPool::kRunBlocks / static_cast<double>(table.size());
}

TEST(BlockPoolTest, LongTablesLieInRuns) {
  struct Case {
    std::string name;
    int num_tables;
    int64_t step;  // blocks a table takes at a time, tables taking turns
    double most_pieces_per_run;
  };
  constexpr int64_t kTableBlocks = 128;  // 4096 entries
  for (const Case& c : std::vector<Case>{{"a prompt in chunks of 512 tokens", 64, 16, 1.0},
                                         {"a prompt in chunks of 128 tokens", 64, 4, 2.5},
                                         {"eight prompts in chunks of 512 tokens", 8 * 64, 16, 1.0},
                                         {"one sequence block by block", 64, 1, 4.5},
                                         {"eight sequences block by block", 8 * 64, 1, 4.5},
                                         {"a single table", 1, 1, 1.0}}) {
    MemoryPool memory(size_t{2} << 30);
    BlockPool pool(memory, 16384);
    std::vector<std::vector<BlockId>> tables(c.num_tables);
    double worst_overhead = 0.0;
    for (int64_t length = 0; length < kTableBlocks; length += c.step) {
      for (auto& table : tables) grow(pool, table, c.step);
      const auto unused = static_cast<double>(pool.num_free() - pool.blocks_per_slab());
      worst_overhead = std::max(worst_overhead, unused / static_cast<double>(pool.num_used()));
    }
    double pieces = 0.0;
    for (const auto& table : tables) pieces += pieces_per_run(table) / c.num_tables;
    double late_pieces = 0.0;
    for (const auto& table : tables) {
      late_pieces += pieces_per_run({table.begin() + kTableBlocks / 2, table.end()}) / c.num_tables;
    }
    RecordProperty(c.name + ": pieces per run", std::to_string(pieces));
    RecordProperty(c.name + ": unused blocks per used", std::to_string(worst_overhead));
    EXPECT_LE(pieces, c.most_pieces_per_run) << c.name;
    EXPECT_LE(late_pieces, 1.0) << c.name;
    EXPECT_LE(worst_overhead, 0.25) << c.name;
  }
}

TEST(BlockPoolTest, ShortTablesShareFramesTightly) {
  MemoryPool memory(size_t{1} << 30);
  BlockPool pool(memory, 16384);
  std::vector<std::vector<BlockId>> tables(1000);
  for (int round = 0; round < 3; ++round) {
    for (auto& table : tables) grow(pool, table, 1);
    EXPECT_LT(pool.num_free(), pool.blocks_per_slab());
  }
}

TEST(BlockPoolTest, ShortTablesLeaveTheRunsOfLongOnesAlone) {
  MemoryPool memory(size_t{1} << 30);
  BlockPool pool(memory, 16384);
  std::vector<BlockId> long_table;
  std::vector<std::vector<BlockId>> short_tables;
  grow(pool, long_table, 64);
  for (int i = 0; i < 64; ++i) {
    grow(pool, long_table, 1);
    for (int j = 0; j < 3; ++j) grow(pool, short_tables.emplace_back(), 1);
  }
  EXPECT_EQ(pieces_per_run(long_table), 1.0);
}

TEST(BlockPoolTest, HolesAreFilledBeforeMuchMoreMemoryIsTaken) {
  MemoryPool memory(size_t{1} << 30);
  BlockPool pool(memory, 16384);
  std::vector<std::vector<BlockId>> tables(100);
  for (auto& table : tables) grow(pool, table, 16);
  for (auto& table : tables) {
    for (int place = 15; place > 3; --place) pool.release(table[place]);
    table.resize(4);
  }
  pool.trim();
  const int64_t num_slabs = pool.num_slabs();
  while (pool.num_free() > pool.num_used() / 4 + pool.blocks_per_slab()) {
    grow(pool, tables.emplace_back(), 1);
    ASSERT_LE(pool.num_slabs(), num_slabs);
  }
  EXPECT_GT(tables.size(), 700);
  pool.check_integrity();
}

TEST(BlockPoolTest, RandomOperationsAgreeWithANaiveModel) {
  for (int64_t block_bytes : {kFrame / 32, kFrame / 30, kFrame / 3}) {
    MemoryPool memory(10 * kFrame);
    BlockPool pool(memory, block_bytes);
    const int64_t num_possible = 10 * kFrame / pool.slab_bytes() * pool.blocks_per_slab();
    std::mt19937 random(3);
    std::map<int, std::vector<BlockId>> tables;
    std::map<BlockId, uint32_t> contents;
    for (int step = 0; step < 3000; ++step) {
      std::vector<BlockId>& table = tables[static_cast<int>(random() % 12)];
      if (random() % 3 != 0) {
        const int64_t count = 1 + static_cast<int64_t>(random() % (random() % 8 == 0 ? 40 : 3));
        const bool fits = std::ssize(contents) + count <= num_possible;
        ASSERT_EQ(pool.ensure_free(count), fits);
        if (!fits) continue;
        for (BlockId block : grow(pool, table, count)) {
          const auto value = static_cast<uint32_t>(random());
          ASSERT_TRUE(contents.emplace(block, value).second) << "block " << block << " handed out twice";
          std::memcpy(pool.data(block), &value, sizeof(value));
          std::memcpy(pool.data(block) + block_bytes - sizeof(value), &value, sizeof(value));
        }
      } else {
        for (size_t count = random() % (table.size() + 1); count > 0; --count) {
          const auto at =
              table.begin() + static_cast<int64_t>(random() % 4 == 0 ? random() % table.size() : table.size() - 1);
          uint32_t first = 0;
          uint32_t last = 0;
          std::memcpy(&first, pool.data(*at), sizeof(first));
          std::memcpy(&last, pool.data(*at) + block_bytes - sizeof(last), sizeof(last));
          ASSERT_EQ(first, contents.at(*at));
          ASSERT_EQ(last, contents.at(*at));
          pool.release(*at);
          contents.erase(*at);
          table.erase(at);
        }
      }
      pool.trim();
      pool.check_integrity();
      ASSERT_EQ(pool.num_used(), std::ssize(contents));
      ASSERT_EQ(memory.held_bytes(), pool.num_slabs() * pool.slab_bytes());
    }
  }
}

TEST(BlockPoolDeathTest, AFreeBlockIsNotReleased) {
  MemoryPool memory(2 * kFrame);
  BlockPool pool(memory, 16384);
  std::vector<BlockId> table;
  grow(pool, table, 2);
  pool.release(table[1]);
  EXPECT_DEATH(pool.release(table[1]), "not in use");
  EXPECT_DEATH(pool.release(100000), "not in use");
  EXPECT_DEATH(pool.release(kNoBlock), "not in use");
}

}  // namespace
}  // namespace witan
