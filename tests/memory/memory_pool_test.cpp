#include "memory/memory_pool.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>
#include <thread>
#include <vector>

namespace witan {
namespace {

constexpr size_t kFrame = MemoryPool::kFrameBytes;

size_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  size_t total_pages = 0;
  size_t resident_pages = 0;
  statm >> total_pages >> resident_pages;
  return resident_pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

bool all_zero(const MemoryRegion& region) {
  return std::all_of(region.data(), region.data() + region.size_bytes(), [](std::byte b) { return b == std::byte{0}; });
}

TEST(MemoryPoolTest, BudgetIsRoundedDownToWholeFrames) {
  for (const auto& [asked, expected] :
       {std::pair<size_t, size_t>{0, 0}, {kFrame - 1, 0}, {kFrame, kFrame}, {3 * kFrame + 5, 3 * kFrame}}) {
    const MemoryPool pool(asked);
    EXPECT_EQ(pool.budget_bytes(), expected);
    EXPECT_EQ(pool.free_bytes(), expected);
  }
}

TEST(MemoryPoolTest, RegionsAreWholeFramesOfZerosAtAFrameBoundary) {
  MemoryPool pool(64 * kFrame);
  std::vector<MemoryRegion> regions;
  for (size_t bytes : {size_t{1}, kFrame - 1, kFrame, kFrame + 1, 5 * kFrame}) {
    auto region = pool.allocate(MemoryTag::kWeights, bytes);
    ASSERT_TRUE(region);
    EXPECT_EQ(region->size_bytes(), (bytes + kFrame - 1) / kFrame * kFrame);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(region->data()) % kFrame, 0);
    EXPECT_TRUE(all_zero(*region));
    std::memset(region->data(), 0xff, region->size_bytes());
    regions.push_back(std::move(*region));
  }
}

TEST(MemoryPoolTest, MemoryTakenAgainIsZeroAgain) {
  MemoryPool pool(kFrame);
  for (int round = 0; round < 3; ++round) {
    auto region = pool.allocate(MemoryTag::kExperts, kFrame);
    ASSERT_TRUE(region);
    EXPECT_TRUE(all_zero(*region));
    std::memset(region->data(), 0xff, region->size_bytes());
  }
}

TEST(MemoryPoolTest, BudgetIsMetExactlyAndNeverExceeded) {
  MemoryPool pool(4 * kFrame);
  auto three = pool.allocate(MemoryTag::kWeights, 3 * kFrame);
  ASSERT_TRUE(three);
  EXPECT_FALSE(pool.allocate(MemoryTag::kKvCache, kFrame + 1));
  auto one = pool.allocate(MemoryTag::kKvCache, kFrame);
  ASSERT_TRUE(one);
  EXPECT_FALSE(pool.allocate(MemoryTag::kKvCache, 1));
  EXPECT_EQ(pool.free_bytes(), 0);
  EXPECT_EQ(pool.held_bytes(), 4 * kFrame);
  EXPECT_EQ(pool.held_bytes(MemoryTag::kWeights), 3 * kFrame);
  EXPECT_EQ(pool.held_bytes(MemoryTag::kKvCache), kFrame);
  three.reset();
  EXPECT_EQ(pool.free_bytes(), 3 * kFrame);
  EXPECT_EQ(pool.peak_bytes(), 4 * kFrame);
}

TEST(MemoryPoolTest, NothingIsHeldForARequestThatIsRefused) {
  // The last one fits the budget, but no address space.
  MemoryPool pool(size_t{1} << 60);
  for (size_t bytes : {std::numeric_limits<size_t>::max(), (size_t{1} << 60) + 1, size_t{1} << 59}) {
    EXPECT_FALSE(pool.allocate(MemoryTag::kWeights, bytes)) << bytes;
    EXPECT_EQ(pool.held_bytes(), 0);
    EXPECT_EQ(pool.peak_bytes(), 0);
  }
}

TEST(MemoryPoolTest, ZeroBytesAreAnEmptyRegion) {
  MemoryPool pool(0);
  const auto region = pool.allocate(MemoryTag::kActivations, 0);
  ASSERT_TRUE(region);
  EXPECT_FALSE(*region);
  EXPECT_EQ(region->size_bytes(), 0);
}

TEST(MemoryPoolTest, ReleasedBytesGoBackToTheSystem) {
  constexpr size_t kBytes = 64 * kFrame;
  MemoryPool pool(kBytes);
  const size_t before = resident_bytes();
  auto region = pool.allocate(MemoryTag::kActivations, kBytes);
  ASSERT_TRUE(region);
  std::memset(region->data(), 1, kBytes);
  const size_t written = resident_bytes();
  region.reset();
  const size_t after = resident_bytes();
  EXPECT_GE(written, before + kBytes / 10 * 9);
  EXPECT_LE(after, written - kBytes / 10 * 9);
}

TEST(MemoryPoolTest, MovedRegionsAreHeldOnceAndReleasedOnce) {
  MemoryPool pool(2 * kFrame);
  MemoryRegion first = std::move(*pool.allocate(MemoryTag::kWeights, kFrame));
  MemoryRegion second = std::move(first);
  EXPECT_FALSE(first);  // NOLINT(bugprone-use-after-move): what a move leaves is part of the contract
  EXPECT_TRUE(second);
  EXPECT_EQ(pool.held_bytes(), kFrame);
  second = MemoryRegion();
  EXPECT_EQ(pool.held_bytes(), 0);
}

TEST(MemoryPoolTest, EveryTagHasItsName) {
  EXPECT_EQ(memory_tag_name(MemoryTag::kWeights), "weights");
  EXPECT_EQ(memory_tag_name(MemoryTag::kExperts), "experts");
  EXPECT_EQ(memory_tag_name(MemoryTag::kKvCache), "kv_cache");
  EXPECT_EQ(memory_tag_name(MemoryTag::kActivations), "activations");
}

// Writes a pattern over a region's first and last bytes of each frame; equal patterns mean no other region lies there.
void write_pattern(const MemoryRegion& region, uint8_t pattern) {
  for (size_t at = 0; at < region.size_bytes(); at += kFrame) {
    region.data()[at] = std::byte{pattern};
    region.data()[at + kFrame - 1] = std::byte{pattern};
  }
}

bool has_pattern(const MemoryRegion& region, uint8_t pattern) {
  for (size_t at = 0; at < region.size_bytes(); at += kFrame) {
    if (region.data()[at] != std::byte{pattern} || region.data()[at + kFrame - 1] != std::byte{pattern}) return false;
  }
  return true;
}

struct HeldRegion {
  MemoryRegion region;
  MemoryTag tag;
  uint8_t pattern;
};

TEST(MemoryPoolTest, RandomOperationsAgreeWithANaiveModel) {
  constexpr size_t kBudget = 30 * kFrame;
  MemoryPool pool(kBudget);
  std::mt19937 random(7);
  std::vector<HeldRegion> held;
  size_t peak = 0;
  int num_refused = 0;
  for (int step = 0; step < 1500; ++step) {
    if (random() % 2 == 0 || held.empty()) {
      const auto tag = static_cast<MemoryTag>(random() % kNumMemoryTags);
      const size_t bytes = 1 + random() % (8 * kFrame);
      size_t total = 0;
      for (const HeldRegion& h : held) total += h.region.size_bytes();
      auto region = pool.allocate(tag, bytes);
      ASSERT_EQ(region.has_value(), total + (bytes + kFrame - 1) / kFrame * kFrame <= kBudget);
      if (region) {
        const auto pattern = static_cast<uint8_t>(1 + random() % 255);
        ASSERT_TRUE(has_pattern(*region, 0));
        write_pattern(*region, pattern);
        held.push_back({std::move(*region), tag, pattern});
      } else {
        ++num_refused;
      }
    } else {
      const size_t i = random() % held.size();
      ASSERT_TRUE(has_pattern(held[i].region, held[i].pattern));
      std::swap(held[i], held.back());
      held.pop_back();
    }
    std::array<size_t, kNumMemoryTags> by_tag{};
    size_t total = 0;
    for (const HeldRegion& h : held) {
      by_tag[static_cast<size_t>(h.tag)] += h.region.size_bytes();
      total += h.region.size_bytes();
    }
    peak = std::max(peak, total);
    pool.check_integrity();
    ASSERT_EQ(pool.held_bytes(), total);
    ASSERT_EQ(pool.free_bytes(), kBudget - total);
    ASSERT_EQ(pool.peak_bytes(), peak);
    for (int tag = 0; tag < kNumMemoryTags; ++tag) {
      ASSERT_EQ(pool.held_bytes(static_cast<MemoryTag>(tag)), by_tag[tag]);
    }
  }
  EXPECT_GT(num_refused, 100);
}

TEST(MemoryPoolTest, ManyThreadsShareTheBudget) {
  constexpr size_t kBudget = 24 * kFrame;
  MemoryPool pool(kBudget);
  std::vector<std::thread> threads;
  for (uint8_t thread = 1; thread <= 8; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937 random(thread);
      std::vector<MemoryRegion> held;
      for (int step = 0; step < 400; ++step) {
        if (random() % 3 != 0) {
          auto region = pool.allocate(static_cast<MemoryTag>(thread % kNumMemoryTags), 1 + random() % (3 * kFrame));
          if (region) {
            EXPECT_TRUE(has_pattern(*region, 0));
            write_pattern(*region, thread);
            held.push_back(std::move(*region));
          }
        } else if (!held.empty()) {
          EXPECT_TRUE(has_pattern(held.front(), thread));
          held.erase(held.begin());
        }
        EXPECT_LE(pool.held_bytes(), kBudget);
        pool.check_integrity();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool.held_bytes(), 0);
  EXPECT_LE(pool.peak_bytes(), kBudget);
  EXPECT_GT(pool.peak_bytes(), kBudget / 2);
}

TEST(MemoryPoolDeathTest, APoolThatEndsBeforeItsRegionsAborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        MemoryRegion region;
        MemoryPool pool(kFrame);
        region = std::move(*pool.allocate(MemoryTag::kWeights, 1));
      },
      "ended before its regions");
}

}  // namespace
}  // namespace witan
