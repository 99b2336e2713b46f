// Repetitions of a prompt: computed behind it before its entries are judged, and never committed.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "sched/scheduler.h"
#include "sched_test_support.h"

namespace witan {
namespace {

using ::testing::ElementsAre;

ScheduledSlice repeated(SequenceId sequence, const StepPlan& plan, int32_t repetition, int32_t num_uncommitted,
                        int32_t num_tokens, bool compresses) {
  const auto found = std::ranges::find(plan.slices, sequence, &ScheduledSlice::sequence);
  return {.sequence = sequence,
          .kv_sequence = found == plan.slices.end() ? -1 : found->kv_sequence,
          .first_token = 100 + num_uncommitted,  // behind the prompt of these tests
          .num_tokens = num_tokens,
          .compresses = compresses,
          .judges = compresses,
          .repetition = repetition,
          .num_uncommitted = num_uncommitted};
}

TEST(SchedulerRepetitionTest, RepetitionsAreComputedInChunksBesideDecodesBeforeEntriesAreJudged) {
  SchedulerHarness harness(with_budget(50));
  const SequenceId decoding = harness.add(make_prompt(10, 1), 50);
  harness.step();
  const SequenceId a = harness.add(make_prompt(100, 2), 3, 0, Dropping{.repetitions = {70, 1}});
  harness.step();
  harness.step();
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(decoding, 12, 1, true), IsSlice(a, 98, 2, true)));
  EXPECT_EQ(harness.scheduler().num_generated(a), 1) << "the next token is there before the prompt is repeated";
  StepPlan plan = harness.step();
  EXPECT_THAT(plan.slices, ElementsAre(IsSlice(decoding, 13, 1, true), repeated(a, plan, 0, 0, 49, false)));
  EXPECT_EQ(plan.num_decodes, 1);
  EXPECT_THAT(harness.step(Prefills::kAlone).slices, ElementsAre(IsSlice(decoding, 14, 1, true)));
  plan = harness.step();
  EXPECT_THAT(plan.slices, ElementsAre(IsSlice(decoding, 15, 1, true), repeated(a, plan, 0, 49, 21, false)));
  EXPECT_EQ(harness.kv().num_tokens(plan.slices[1].kv_sequence), 100);
  plan = harness.step();
  EXPECT_THAT(plan.slices, ElementsAre(IsSlice(decoding, 16, 1, true), repeated(a, plan, 1, 0, 1, true)));
  EXPECT_EQ(harness.kv().num_entries(plan.slices[1].kv_sequence, 0, 0), 67) << "two thirds of the prompt";
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(decoding, 17, 1, true), IsSlice(a, 100, 1, true)));
  harness.run_to_end(100);
  EXPECT_EQ(harness.done().at(a), expected_text(make_prompt(100, 2), 3, 1024, Dropping()));
}

TEST(SchedulerRepetitionTest, AnotherSequenceFindsThePromptAndNothingOfItsRepetition) {
  SchedulerHarness harness(with_budget(200));
  harness.add(make_prompt(64, 1), 3, 0, Dropping{.repetitions = {64}});
  harness.step();
  harness.step();
  std::vector<TokenId> longer = make_prompt(64, 1);
  for (int32_t i = 0; i < 64; ++i) longer.push_back(200000 + i);  // as the repetition's
  const SequenceId b = harness.add(longer, 3);
  harness.step();
  EXPECT_EQ(harness.scheduler().num_prefix_hit_tokens(b), 64);
  harness.run_to_end(100);
  EXPECT_EQ(harness.done().at(b), expected_text(longer, 3, 1024));
}

// 4 blocks of a prompt, 2 of its repetition, and those that decoding takes.
TEST(SchedulerRepetitionTest, ASequenceNeedsTheRoomOfItsLongestRepetition) {
  const auto add = [](int64_t num_rows, std::vector<int32_t> repetitions) {
    TestConfig config = with_budget(200, num_rows);
    config.prefix_cache = false;
    SchedulerHarness harness(config);
    harness.add(make_prompt(128, 1), 3, 0, Dropping{.repetitions = std::move(repetitions)});
    harness.run_to_end(100);
  };
  add(6, {64, 64, 3});
  try {
    add(6, {64, 65, 3});
    FAIL() << "65 tokens take a block more";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    EXPECT_THAT(error.what(),
                testing::HasSubstr("a prompt of 128 tokens, 65 that repeat it at once and 3 to generate"));
  }
}

TEST(SchedulerRepetitionTest, NobodyIsAdmittedIntoTheRoomThatARepetitionWillTake) {
  TestConfig config = with_budget(200, 14);
  config.prefix_cache = false;
  SchedulerHarness harness(config);
  const Dropping twice{.repetitions = {130}};
  const SequenceId first = harness.add(make_prompt(128, 1), 40, 0, twice);  // 4 blocks, then 9
  const SequenceId second = harness.add(make_prompt(128, 2), 40, 0, twice);
  EXPECT_THAT(harness.step().admitted, ElementsAre(first)) << "without repetitions there would be room for both";
  int num_steps = 1;
  while (harness.step().admitted.empty()) ++num_steps;
  EXPECT_GT(num_steps, 1);
  EXPECT_TRUE(harness.is_live(first)) << "its repetition is over";
  harness.run_to_end(200);
  EXPECT_EQ(harness.scheduler().stats().num_preemptions, 0);
  EXPECT_EQ(harness.done().at(second), expected_text(make_prompt(128, 2), 40, 1024, Dropping()));
}

TEST(SchedulerRepetitionTest, ASequenceThatIsPreemptedWhileItRepeatsBeginsAgain) {
  SchedulerHarness harness(with_budget(64, 14));
  const SequenceId decoding = harness.add(make_prompt(20, 1), 100);
  harness.step();
  const Dropping twice{.repetitions = {30, 100}};
  const SequenceId repeating = harness.add(make_prompt(100, 2), 10, 0, twice);
  StepPlan plan;
  do plan = harness.step();
  while (plan.slices.back().num_uncommitted == 0);
  harness.take_rows(static_cast<int32_t>(harness.kv().available_bytes() / harness.kv().bytes_for_tokens(1)));
  do plan = harness.step();
  while (plan.preempted.empty());
  EXPECT_THAT(plan.preempted, ElementsAre(repeating));
  harness.give_back_rows();
  harness.run_to_end(200);
  EXPECT_EQ(harness.done().at(repeating), expected_text(make_prompt(100, 2), 10, 1024, Dropping()));
  EXPECT_EQ(harness.done().at(decoding), expected_text(make_prompt(20, 1), 100, 1024));
}

TEST(SchedulerRepetitionTest, WhatIsCancelledOrAbandonedWhileItRepeatsLeavesNothing) {
  SchedulerHarness harness(with_budget(64));
  const SequenceId a = harness.add(make_prompt(20, 1), 10, 0, Dropping{.repetitions = {100}});
  harness.step();
  harness.step();
  harness.abandon(harness.schedule());
  EXPECT_EQ(harness.step().slices[0].num_uncommitted, 64) << "what was computed before is there still";
  harness.run_to_end(100);
  EXPECT_EQ(harness.done().at(a), expected_text(make_prompt(20, 1), 10, 1024, Dropping()));
  const SequenceId b = harness.add(make_prompt(20, 2), 10, 0, Dropping{.repetitions = {100}});
  harness.step();
  harness.step();
  harness.finish(b);
  EXPECT_EQ(harness.kv().stats().block_bytes_held, harness.kv().stats().block_bytes_cached);
}

}  // namespace
}  // namespace witan
