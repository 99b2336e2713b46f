// Entries that are demoted to fewer bits, or set aside: the room that a sequence is promised, and what is left in the
// end.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "kv/kv_cache.h"
#include "memory/memory_pool.h"
#include "sched/scheduler.h"
#include "sched_test_support.h"

namespace witan {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int32_t kDim = 32;
constexpr int32_t kHeads = 2;  // of the layer whose entries are demoted
constexpr int64_t kBlockBytes = int64_t{kKvBlockSize} * 2 * kDim * 4;
constexpr KvCodec kSmall = KvCodec::kHadamard4;
const int64_t kSmallBytes = KvBlockFormat{kSmall, kDim, kDim, false}.block_bytes();

// Of a sequence: blocks of each head of the first layer, demoted ones, and of the head that may have a window.
int64_t bytes_of(int64_t full, int64_t demoted, int64_t window) {
  return kHeads * (full * kBlockBytes + demoted * kSmallBytes) + window * kBlockBytes;
}

CompressionPlan plan_of(std::vector<KvCompressionPoint> points, int32_t num_recent) {
  return {.points = std::move(points),
          .demotion = KvDemotion{.codecs = {kSmall, KvCodec::kF32}, .num_recent = num_recent}};
}

// A scheduler over a KV cache of two layers, the second of which has a window of 40.
class Sequences {
 public:
  explicit Sequences(int64_t capacity_bytes, bool prefix_cache = false, int32_t max_step_tokens = 1)
      : kv_(pool_, {.layers = {{kHeads, kDim, kDim}, {1, kDim, kDim, false, 40}},
                    .codec = KvCodec::kF32,
                    .capacity_bytes = static_cast<size_t>(capacity_bytes),
                    .prefix_cache = prefix_cache,
                    .aside_directory = std::filesystem::temp_directory_path()}),
        scheduler_(kv_, {.max_step_tokens = max_step_tokens, .context_length = 1024}) {}

  // Returns what was wrong with it.
  std::string add(int32_t num_prompt_tokens, int32_t num_new, const CompressionPlan& plan, int32_t kind = 0) {
    try {
      const SequenceId id = scheduler_.add(
          {.prompt = make_prompt(num_prompt_tokens, kind), .max_new_tokens = num_new, .compression = plan});
      plans_[id] = plan;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
      return error.what();
    }
    return "";
  }

  // Heads keep their last entries.
  StepPlan step() {
    StepPlan plan = scheduler_.schedule();
    const auto num_sampled = std::ranges::count(plan.slices, true, &ScheduledSlice::samples);
    scheduler_.commit(plan, std::vector<TokenId>(static_cast<size_t>(num_sampled), 7));
    for (const ScheduledSlice& slice : plan.slices) {
      held_bytes_ = kv_.held_bytes(slice.kv_sequence);
      if (std::ssize(scheduler_.tokens(slice.sequence)) == scheduler_.max_tokens(slice.sequence)) {
        scheduler_.finish(slice.sequence);
      } else if (slice.compresses) {
        compress(slice);
      }
    }
    return plan;
  }

  const Scheduler& scheduler() const { return scheduler_; }
  int64_t held_bytes() const { return held_bytes_; }  // of the sequence that was computed last

 private:
  void compress(const ScheduledSlice& slice) {
    const CompressionPlan& plan = plans_.at(slice.sequence);
    const int32_t num_tokens = kv_.num_tokens(slice.kv_sequence);
    const int32_t num_entries = plan.aside ? num_tokens : kv_.num_entries(slice.kv_sequence, 0, 0);
    const auto point = std::ranges::find(plan.points, num_tokens, &KvCompressionPoint::num_tokens);
    std::vector<int32_t> kept(static_cast<size_t>(plan.may_keep_all ? num_entries : point->num_kept));
    std::iota(kept.begin(), kept.end(), num_entries - static_cast<int32_t>(kept.size()));
    std::vector<SequenceId> preempted;
    ThreadPool threads(1);
    scheduler_.compress(
        slice.sequence,
        [&](SequenceId kv_sequence) {
          if (plan.aside) return set_aside(kv_sequence, *plan.aside, *point, std::vector(kHeads + 1, kept));
          if (plan.demotes_others) {
            return kv_.demote_others(kv_sequence, std::vector(kHeads + 1, kept), *plan.demotion, Isa::kReference,
                                     threads);
          }
          return (!slice.judges || kv_.keep(kv_sequence, std::vector(kHeads + 1, kept))) &&
                 kv_.demote(kv_sequence, *plan.demotion, Isa::kReference, threads);
        },
        preempted);
    EXPECT_THAT(preempted, IsEmpty());
  }

  bool set_aside(SequenceId kv_sequence, KvAside where, const KvCompressionPoint& point,
                 const std::vector<std::vector<int32_t>>& kept) {
    kv_.gather_aside(kv_sequence);
    if (!kv_.set_aside(kv_sequence, kept, where, std::max(point.num_tokens, point.num_aside))) return false;
    if (point.num_aside == 0) kv_.drop_aside(kv_sequence);
    return true;
  }

  MemoryPool pool_{size_t{64} << 20};
  KvCache kv_;
  Scheduler scheduler_;
  std::map<SequenceId, CompressionPlan> plans_;
  int64_t held_bytes_ = 0;
};

struct Case {
  const char* name;
  int32_t num_prompt_tokens;
  int32_t num_new;
  CompressionPlan plan;
  int64_t peak_bytes;
  int64_t final_bytes;
  bool prefix_cache = false;
  int64_t counted_bytes = final_bytes;  // by Scheduler::final_bytes
};

CompressionPlan guarded(CompressionPlan plan) {
  plan.may_keep_all = true;
  return plan;
}

// What is not kept is demoted.
CompressionPlan others_plan(std::vector<KvCompressionPoint> points) {
  CompressionPlan plan = plan_of(std::move(points), 0);
  plan.demotes_others = true;
  return plan;
}

// What is not kept at 200 and 232 tokens lies aside from the first to the second.
CompressionPlan aside_plan(KvAside where) {
  return {.points = {{.num_tokens = 200, .num_kept = 100, .num_aside = 232}, {.num_tokens = 232, .num_kept = 116}},
          .aside = where};
}

std::vector<Case> cases() {
  // A window of 40 takes 3 blocks at most where tokens are computed one by one.
  return {
      // 160 of 200 entries go to 5 blocks while their 7 are held.
      {"the_prompt", 200, 20, plan_of({{200, 200, false}}, 40), bytes_of(7, 5, 3), bytes_of(2, 5, 3)},
      // The last of its 289 entries are more than what was demoted 25 tokens before them.
      {"a_long_answer", 40, 250,
       plan_of({{40, 40, false},
                {72, 72, false},
                {104, 104, false},
                {136, 136, false},
                {168, 168, false},
                {200, 200, false},
                {232, 232, false},
                {264, 264, false}},
               150),
       bytes_of(7, 3, 3), bytes_of(7, 3, 3)},
      // 100 of 200 are dropped first; that their blocks are free by then is not counted on.
      {"what_is_kept", 200, 20, plan_of({{200, 100}}, 40), bytes_of(7, 1, 3), bytes_of(3, 1, 3)},
      // 185 entries in the end, after the last point.
      {"never", 100, 86, plan_of({}, 150), bytes_of(6, 0, 3), bytes_of(6, 0, 3)},
      // With a guard all may stay, and is demoted as if nothing had been asked to go.
      {"a_guard", 200, 20, guarded(plan_of({{200, 100}}, 40)), bytes_of(7, 5, 3), bytes_of(2, 5, 3)},
      {"a_guard_while_generating", 200, 60, guarded(plan_of({{200, 100}, {232, 132, false}}, 40)), bytes_of(7, 5, 3),
       bytes_of(3, 6, 3)},
      // What stays of shared blocks is copied beside them.
      {"shared_blocks", 200, 20, plan_of({{200, 200, false}}, 40), bytes_of(7, 0, 3) + bytes_of(2, 5, 3),
       bytes_of(2, 5, 3), true},
      // 120 of 200 entries go to 4 blocks while their 7 are held; 99 are as they were in the end.
      {"others", 200, 20, others_plan({{200, 80}}), bytes_of(7, 4, 3), bytes_of(4, 4, 3)},
      {"others_of_shared_blocks", 200, 20, others_plan({{200, 80}}), bytes_of(7 + 3, 4, 6), bytes_of(4, 4, 3), true},
      {"others_with_a_guard", 200, 20, guarded(others_plan({{200, 80}})), bytes_of(7, 4, 3), bytes_of(7, 0, 3)},
      // 232 entries in 8 blocks aside, beside 132 that are read by then; 143 are left in the end.
      {"hidden", 200, 60, aside_plan(KvAside::kBlocks), bytes_of(8 + 5, 0, 3), bytes_of(5, 0, 3), false,
       bytes_of(8 + 5, 0, 3)},
      // Windows' blocks are copied beside the shared ones.
      {"hidden_shared_blocks", 200, 60, aside_plan(KvAside::kBlocks), bytes_of(8 + 4, 0, 6), bytes_of(5, 0, 3), true,
       bytes_of(8 + 4, 0, 6)},
      // Room for what comes is had when fewer are read, not before.
      {"hidden_in_a_prompt",
       200,
       40,
       {.points = {{.num_tokens = 96, .num_kept = 64, .num_aside = 200},
                   {.num_tokens = 200, .num_kept = 64, .num_aside = 232},
                   {.num_tokens = 232, .num_kept = 64}},
        .aside = KvAside::kBlocks},
       bytes_of(7 + 6, 0, 3),
       bytes_of(3, 0, 3),
       false,
       bytes_of(7 + 6, 0, 3)},
      {"offloaded", 200, 60, aside_plan(KvAside::kFile), bytes_of(7, 0, 3), bytes_of(5, 0, 3)},
  };
}

class SchedulerPromiseTest : public testing::TestWithParam<Case> {};

TEST_P(SchedulerPromiseTest, TheRoomThatASequenceIsPromisedSuffices) {
  const Case& c = GetParam();
  EXPECT_THAT(Sequences(c.peak_bytes - 1, c.prefix_cache).add(c.num_prompt_tokens, c.num_new, c.plan),
              HasSubstr("need " + std::to_string(c.peak_bytes) + " bytes"));
  Sequences sequences(c.peak_bytes, c.prefix_cache);
  ASSERT_EQ(sequences.add(c.num_prompt_tokens, c.num_new, c.plan), "");
  EXPECT_EQ(sequences.scheduler().final_bytes(), c.counted_bytes);
  while (sequences.scheduler().has_work()) sequences.step();  // throws without room
  EXPECT_LE(sequences.held_bytes(), c.final_bytes);
  EXPECT_GE(sequences.held_bytes(), c.final_bytes - kBlockBytes) << "the window may take one less";
}

INSTANTIATE_TEST_SUITE_P(Entries, SchedulerPromiseTest, testing::ValuesIn(cases()),
                         [](const auto& c) { return c.param.name; });

// Of its 219 entries in the end 160 are demoted: that leaves room for the 4 blocks of each head of another.
TEST(SchedulerDemotionTest, WhatIsDemotedMakesRoomForOthers) {
  Sequences sequences(bytes_of(2, 5, 3) + bytes_of(5, 0, 6), false, 256);
  ASSERT_EQ(sequences.add(200, 20, plan_of({{200, 200, false}}, 40)), "");
  sequences.step();
  ASSERT_EQ(sequences.add(96, 10, {}, 1), "");
  EXPECT_THAT(sequences.step().admitted, SizeIs(1));
  while (sequences.scheduler().has_work()) sequences.step();
  EXPECT_EQ(sequences.scheduler().stats().num_preemptions, 0);
}

}  // namespace
}  // namespace witan
