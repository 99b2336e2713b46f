#include "memory/arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"

namespace witan {
namespace {

constexpr size_t kFrame = MemoryPool::kFrameBytes;

TEST(ArenaTest, PiecesAreAlignedZeroAndApart) {
  MemoryPool pool(64 * kFrame);
  Arena arena(pool, MemoryTag::kWeights);
  struct Piece {
    std::byte* data;
    size_t bytes;
    uint8_t pattern;
  };
  std::vector<Piece> pieces;
  std::mt19937 random(1);
  size_t used = 0;
  for (int i = 0; i < 200; ++i) {
    const size_t bytes = random() % (i % 10 == 0 ? kFrame : 5000);
    std::byte* data = arena.allocate(bytes);
    ASSERT_EQ(reinterpret_cast<uintptr_t>(data) % Arena::kAlignment, 0);
    ASSERT_TRUE(std::all_of(data, data + bytes, [](std::byte b) { return b == std::byte{0}; }));
    const auto pattern = static_cast<uint8_t>(i + 1);
    std::memset(data, pattern, bytes);
    pieces.push_back({data, bytes, pattern});
    used += (bytes + 63) / 64 * 64;
    ASSERT_EQ(arena.bytes_used(), used);
    ASSERT_EQ(arena.bytes_held(), pool.held_bytes(MemoryTag::kWeights));
  }
  for (const Piece& piece : pieces) {
    EXPECT_TRUE(
        std::all_of(piece.data, piece.data + piece.bytes, [&](std::byte b) { return b == std::byte{piece.pattern}; }));
  }
  EXPECT_LE(arena.bytes_held(), 2 * used + 2 * kFrame);
}

TEST(ArenaTest, RegionsGrowFromOneFrameToTheLimit) {
  MemoryPool pool(size_t{1} << 30);
  Arena arena(pool, MemoryTag::kWeights);
  arena.allocate(1);
  EXPECT_EQ(arena.bytes_held(), kFrame);
  size_t largest_growth = 0;
  size_t held = arena.bytes_held();
  for (int i = 0; i < 300; ++i) {
    arena.allocate(kFrame - 64);
    largest_growth = std::max(largest_growth, arena.bytes_held() - held);
    held = arena.bytes_held();
  }
  EXPECT_EQ(largest_growth, Arena::kMaxGrowthBytes);
}

TEST(ArenaTest, ALargePieceLeavesTheRoomBeforeItUsable) {
  MemoryPool pool(64 * kFrame);
  Arena arena(pool, MemoryTag::kWeights);
  const std::byte* small = arena.allocate(64);
  arena.allocate(20 * kFrame);
  EXPECT_EQ(arena.bytes_held(), 21 * kFrame);
  EXPECT_EQ(arena.allocate(64), small + 64);
}

TEST(ArenaTest, TheLastFramesOfABudgetAreUsedUp) {
  // Doubling would ask for 4 frames when 1 is left.
  MemoryPool pool(5 * kFrame);
  Arena arena(pool, MemoryTag::kWeights);
  for (int i = 0; i < 5; ++i) arena.allocate(kFrame);
  EXPECT_EQ(pool.free_bytes(), 0);
}

TEST(ArenaTest, NoRoomIsAnErrorWithTheNumbers) {
  MemoryPool pool(4 * kFrame);
  Arena arena(pool, MemoryTag::kWeights);
  arena.allocate(3 * kFrame);
  for (size_t bytes : {2 * kFrame, std::numeric_limits<size_t>::max()}) {
    try {
      arena.allocate(bytes);
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
      EXPECT_THAT(error.what(), testing::HasSubstr(std::to_string(bytes)));
    }
  }
  try {
    arena.allocate(2 * kFrame);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("weights"));
    EXPECT_THAT(error.what(), testing::HasSubstr(std::to_string(3 * kFrame)));  // held
    EXPECT_THAT(error.what(), testing::HasSubstr(std::to_string(4 * kFrame)));  // budget
  }
  EXPECT_EQ(arena.bytes_used(), 3 * kFrame);
  arena.allocate(kFrame);  // what fits still does
}

TEST(ArenaTest, EverythingGoesBackWhenItEnds) {
  MemoryPool pool(64 * kFrame);
  {
    Arena arena(pool, MemoryTag::kWeights);
    for (int i = 0; i < 20; ++i) arena.allocate(kFrame / 2 + 64);
    EXPECT_GT(pool.held_bytes(), 0);
  }
  EXPECT_EQ(pool.held_bytes(), 0);
}

}  // namespace
}  // namespace witan
