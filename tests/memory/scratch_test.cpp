#include "memory/scratch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include "base/error.h"

namespace witan {
namespace {

constexpr size_t kFrame = MemoryPool::kFrameBytes;

struct Buffer {
  int32_t* data;
  size_t count;
  int32_t value;

  bool intact() const {
    return std::all_of(data, data + count, [&](int32_t v) { return v == value; });
  }
};

Buffer allocate_filled(Scratch& scratch, size_t count, int32_t value) {
  Buffer buffer{scratch.allocate<int32_t>(count), count, value};
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data) % Scratch::kAlignment, 0);
  std::fill_n(buffer.data, count, value);
  return buffer;
}

TEST(ScratchTest, GrowingKeepsEarlierBuffersOfTheStep) {
  MemoryPool pool(128 * kFrame);
  Scratch scratch(pool);
  std::mt19937 random(3);
  for (int step = 0; step < 5; ++step) {
    std::vector<Buffer> buffers;
    for (int i = 0; i < 50; ++i) buffers.push_back(allocate_filled(scratch, random() % 200000, i));
    for (const Buffer& buffer : buffers) EXPECT_TRUE(buffer.intact());
    scratch.reset();
    EXPECT_EQ(scratch.bytes_used(), 0);
    EXPECT_EQ(scratch.bytes_held(), pool.held_bytes(MemoryTag::kActivations));
  }
}

TEST(ScratchTest, StepsOfASizeMetBeforeTakeNothingFromThePool) {
  MemoryPool pool(64 * kFrame);
  Scratch scratch(pool);
  const std::vector<size_t> counts = {100, kFrame / 4, 7, 3 * kFrame / 4, 1, kFrame / 8};
  const auto run_step = [&] {
    std::vector<const int32_t*> buffers;
    for (size_t count : counts) buffers.push_back(scratch.allocate<int32_t>(count));
    return buffers;
  };
  run_step();
  scratch.reset();
  const size_t held = pool.held_bytes();
  EXPECT_LE(held, scratch.bytes_peak() + kFrame);
  const auto first = run_step();
  scratch.reset();
  for (int step = 0; step < 3; ++step) {
    EXPECT_EQ(run_step(), first);
    EXPECT_EQ(pool.held_bytes(), held);
    scratch.reset();
  }
  EXPECT_EQ(pool.held_bytes(), held);
}

TEST(ScratchTest, ResetToAMarkDropsOnlyWhatCameAfterIt) {
  MemoryPool pool(64 * kFrame);
  Scratch scratch(pool);
  const Buffer before = allocate_filled(scratch, 1000, 1);
  const Scratch::Mark mark = scratch.mark();
  const size_t used = scratch.bytes_used();
  std::vector<int32_t*> places;
  for (int round = 0; round < 3; ++round) {
    places.push_back(allocate_filled(scratch, 10, 2).data);
    allocate_filled(scratch, kFrame, 3);  // chains a region in the first round
    scratch.reset(mark);
    EXPECT_EQ(scratch.bytes_used(), used);
  }
  EXPECT_EQ(places[1], places[0]);
  EXPECT_EQ(places[2], places[0]);
  EXPECT_TRUE(before.intact());
  EXPECT_EQ(pool.held_bytes(), scratch.bytes_held());
}

TEST(ScratchTest, NoRoomIsAnErrorAndEarlierBuffersStay) {
  MemoryPool pool(4 * kFrame);
  Scratch scratch(pool);
  const Buffer buffer = allocate_filled(scratch, kFrame / 2, 5);  // 2 frames
  for (size_t count : {kFrame, std::numeric_limits<size_t>::max() / 4, std::numeric_limits<size_t>::max()}) {
    try {
      scratch.allocate<int32_t>(count);
      FAIL() << count;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    }
  }
  EXPECT_TRUE(buffer.intact());
  allocate_filled(scratch, kFrame / 2, 6);  // the other two
  EXPECT_TRUE(buffer.intact());
}

TEST(ScratchTest, RegionsBecomeOneWithinABudgetThatHoldsOnlyOne) {
  MemoryPool pool(4 * kFrame);
  Scratch scratch(pool);
  for (int i = 0; i < 4; ++i) scratch.allocate<int32_t>(kFrame / 4);
  EXPECT_EQ(pool.free_bytes(), 0);
  scratch.reset();
  EXPECT_EQ(scratch.bytes_held(), 4 * kFrame);
  const Buffer whole = allocate_filled(scratch, kFrame, 1);  // 4 frames in one piece
  EXPECT_TRUE(whole.intact());
}

TEST(ScratchTest, EmptyBuffersAreDistinctAndAligned) {
  MemoryPool pool(kFrame);
  Scratch scratch(pool);
  const auto* a = scratch.allocate<float>(0);
  const auto* b = scratch.allocate<float>(0);
  EXPECT_NE(a, nullptr);
  EXPECT_NE(a, b);
}

TEST(ScratchDeathTest, AMarkOfAnEarlierStepIsRefused) {
  MemoryPool pool(kFrame);
  Scratch scratch(pool);
  scratch.allocate<float>(100);
  const Scratch::Mark mark = scratch.mark();
  scratch.reset();
  EXPECT_DEATH(scratch.reset(mark), "newer");
}

}  // namespace
}  // namespace witan
