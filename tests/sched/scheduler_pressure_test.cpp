// Entries are judged where there is no room, before anybody is preempted; the harness sees to that in every step.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"
#include "base/error.h"
#include "sched/scheduler.h"
#include "sched_test_support.h"

namespace witan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Of all tokens so far.
Dropping pressed(double keep, int32_t every = 32) {
  return {.pressure = KvPressure{.budget = {.ratio = keep}, .every = every}};
}

// The first step that computes nothing.
StepPlan step_until_judged(SchedulerHarness& harness) {
  StepPlan plan = harness.step();
  while (!plan.empty() && plan.num_tokens > 0) plan = harness.step();
  WITAN_CHECK(!plan.empty(), "nothing is judged");
  return plan;
}

void expect_text(const SchedulerHarness& harness, SequenceId id, std::vector<TokenId> prompt, int32_t max_new_tokens) {
  EXPECT_EQ(harness.done().at(id), expected_text(std::move(prompt), max_new_tokens, 1024, harness.dropping(id))) << id;
}

// 8 rows; each of the three has 2 rows at first and wants a third after 64 entries.
TEST(SchedulerPressureTest, EntriesAreJudgedBeforeAnybodyIsPreempted) {
  SchedulerHarness harness(with_budget(512, 8));
  const SequenceId first = harness.add(make_prompt(20, 0), 70);
  const SequenceId second = harness.add(make_prompt(20, 1), 70, 0, pressed(0.25));
  const SequenceId third = harness.add(make_prompt(20, 2), 70);
  const StepPlan plan = step_until_judged(harness);
  ScheduledSlice judged{.sequence = second, .first_token = 64, .compresses = true, .judges = true};
  judged.kv_sequence = plan.slices[0].kv_sequence;
  EXPECT_THAT(plan.slices, ElementsAre(judged));
  EXPECT_EQ(harness.scheduler().stats().num_judged_for_room, 1);
  EXPECT_EQ(harness.scheduler().num_generated(first), 45) << "as many as the others, which wait";
  EXPECT_EQ(harness.scheduler().num_generated(second), 45);
  EXPECT_EQ(harness.kv().num_entries(judged.kv_sequence, 0, 0), 16);
  EXPECT_THAT(harness.step().slices,
              ElementsAre(IsSlice(first, 64, 1, true), IsSlice(second, 64, 1, true), IsSlice(third, 64, 1, true)));
  harness.run_to_end(200);
  EXPECT_EQ(harness.scheduler().stats().num_preemptions, 0);
  expect_text(harness, second, make_prompt(20, 1), 70);
  EXPECT_EQ(harness.done().at(first), expected_text(make_prompt(20, 0), 70, 1024));
  EXPECT_EQ(harness.done().at(third), expected_text(make_prompt(20, 2), 70, 1024));
}

TEST(SchedulerPressureTest, WithRoomNothingIsJudged) {
  SchedulerHarness harness(with_budget(512, 12));
  const SequenceId id = harness.add(make_prompt(20, 1), 108, 0, pressed(0.25));
  harness.add(make_prompt(20, 2), 200);
  harness.run_to_end(300);
  EXPECT_EQ(harness.scheduler().stats().num_judged_for_room, 0);
  EXPECT_EQ(harness.done().at(id), expected_text(make_prompt(20, 1), 108, 1024));
}

TEST(SchedulerPressureTest, FirstIsJudgedWhatFreesMost) {
  SchedulerHarness harness(with_budget(512, 12));
  harness.add(make_prompt(40, 1), 100, 0, pressed(0.5));
  const SequenceId longest = harness.add(make_prompt(160, 2), 100, 0, pressed(0.5));
  harness.add(make_prompt(70, 3), 100, 0, pressed(0.9));
  EXPECT_EQ(step_until_judged(harness).slices[0].sequence, longest);
  harness.run_to_end(300);
}

TEST(SchedulerPressureTest, AgainIsJudgedWhenThereAreEnoughTokensMore) {
  SchedulerHarness harness(with_budget(512, 5));
  const SequenceId dense = harness.add(make_prompt(20, 1), 110);
  const SequenceId id = harness.add(make_prompt(20, 2), 110, 0, pressed(0.25, 50));
  harness.run_to_end(1000);
  const std::set<int32_t>& judged_at = harness.dropping(id).judged_at;
  ASSERT_GT(judged_at.size(), 0);
  EXPECT_GT(harness.scheduler().stats().num_preemptions, 0) << "between the times";
  for (auto at = std::next(judged_at.begin()); at != judged_at.end(); ++at) EXPECT_GE(*at - *std::prev(at), 50);
  expect_text(harness, id, make_prompt(20, 2), 110);
  EXPECT_EQ(harness.done().at(dense), expected_text(make_prompt(20, 1), 110, 1024));
}

TEST(SchedulerPressureTest, WhatIsComputedAgainIsJudgedWhereItWas) {
  for (const bool prefix_cache : {true, false}) {
    TestConfig config = with_budget(512, 8);
    config.prefix_cache = prefix_cache;
    SchedulerHarness harness(config);
    harness.add(make_prompt(20, 1), 235);
    const SequenceId id = harness.add(make_prompt(100, 2), 200, 0, pressed(0.25, 120));
    step_until_judged(harness);
    StepPlan plan;
    do plan = harness.step();
    while (plan.preempted.empty());
    EXPECT_THAT(plan.preempted, ElementsAre(id));
    const std::set<int32_t> judged_at = harness.dropping(id).judged_at;
    EXPECT_EQ(judged_at.size(), 1);
    harness.run_to_end(1000);
    EXPECT_EQ(harness.dropping(id).judged_at, judged_at);
    EXPECT_EQ(harness.scheduler().stats().num_judged_for_room, 1) << "what is judged again is not judged for room";
    expect_text(harness, id, make_prompt(100, 2), 200);
  }
}

TEST(SchedulerPressureTest, AWaitingSequenceIsAdmittedIntoTheRoomOfDroppedEntries) {
  SchedulerHarness harness(with_budget(512, 10));
  const SequenceId id = harness.add(make_prompt(200, 1), 60, 0, pressed(0.25));
  harness.step();
  const SequenceId waiting = harness.add(make_prompt(100, 2), 20);
  EXPECT_THAT(harness.step().admitted, IsEmpty());
  const StepPlan plan = harness.step();
  EXPECT_EQ(plan.num_tokens, 0);
  EXPECT_EQ(plan.slices[0].sequence, id);
  EXPECT_THAT(harness.step().admitted, ElementsAre(waiting));
  harness.run_to_end(100);
  expect_text(harness, id, make_prompt(200, 1), 60);
}

TEST(SchedulerPressureTest, NothingIsDroppedForAWaitingSequenceThatWouldWaitStill) {
  SchedulerHarness harness(with_budget(512, 10));
  const SequenceId id = harness.add(make_prompt(200, 1), 60, 0, pressed(0.75));
  harness.step();
  harness.add(make_prompt(250, 2), 20);
  harness.run_to_end(200);
  EXPECT_EQ(harness.dropping(id).judged_at, std::set<int32_t>());
}

TEST(SchedulerPressureTest, ATextMayBeLongerThanTheCacheAsLongAsWhatIsLeftFits) {
  for (const bool prefix_cache : {true, false}) {
    TestConfig config = with_budget(512, 4);
    config.prefix_cache = prefix_cache;
    const Dropping few{.pressure = KvPressure{.budget = {.tokens = 40}, .every = 64}};
    SchedulerHarness harness(config);
    const SequenceId id = harness.add(make_prompt(100, 1), 400, 0, few);
    harness.run_to_end(500);
    EXPECT_GE(harness.dropping(id).judged_at.size(), 4);
    expect_text(harness, id, make_prompt(100, 1), 400);
    EXPECT_EQ(harness.scheduler().stats().num_preemptions, 0);
    const auto error_of = [&](int32_t num_prompt_tokens, const KvPressure& pressure) {
      try {
        harness.add(make_prompt(num_prompt_tokens, 2), 400, 0, Dropping{.pressure = pressure});
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
        return true;
      }
      return false;
    };
    EXPECT_TRUE(error_of(129, {.budget = {.tokens = 40}, .every = 64})) << "the prompt does not";
    EXPECT_TRUE(error_of(100, {.budget = {.tokens = 65}, .every = 64})) << "what is left and comes then does not";
    EXPECT_TRUE(error_of(100, {.budget = {.tokens = 97}, .every = 1})) << "nothing would be free";
    EXPECT_FALSE(error_of(100, {.budget = {.tokens = 64}, .every = 64}));
    EXPECT_FALSE(error_of(100, {.budget = {.tokens = 96}, .every = 1}));
    harness.run_to_end(2000);
  }
}

// 5 in this test: of 100 tokens 95 may be found, which are 2 blocks.
TEST(SchedulerPressureTest, TheLastTokensAreComputedForTheirQueries) {
  SchedulerHarness harness(with_budget(512));
  harness.add(make_prompt(100, 1), 3);
  harness.run_to_end(10);
  const SequenceId dense = harness.add(make_prompt(100, 1), 3);
  const SequenceId id = harness.add(make_prompt(100, 1), 3, 0, pressed(0.5));
  harness.step();
  EXPECT_EQ(harness.scheduler().num_prefix_hit_tokens(dense), 96);
  EXPECT_EQ(harness.scheduler().num_prefix_hit_tokens(id), 64);
  harness.run_to_end(10);
}

TEST(SchedulerPressureTest, AnAbandonedJudgementIsPlannedAgain) {
  SchedulerHarness harness(with_budget(512, 4));
  const Dropping few{.pressure = KvPressure{.budget = {.tokens = 40}, .every = 64}};
  const SequenceId id = harness.add(make_prompt(100, 1), 100, 0, few);
  StepPlan plan;
  for (plan = harness.schedule(); plan.num_tokens > 0; plan = harness.schedule()) harness.commit(plan);
  harness.abandon(plan);
  EXPECT_EQ(harness.schedule().slices, plan.slices);
  harness.commit(plan);
  EXPECT_EQ(harness.dropping(id).judged_at, std::set<int32_t>{128});
  harness.run_to_end(500);
  expect_text(harness, id, make_prompt(100, 1), 100);
}

// The prompt's 3 blocks are also another's. With 4 more of its own one of them would be free, but 3 are to be
// copied, and there is no room.
TEST(SchedulerPressureTest, WhereThereIsNoRoomForCopiesEntriesStayAndTheLeastValuableIsPreempted) {
  SchedulerHarness harness(with_budget(512, 11));
  const SequenceId dense = harness.add(make_prompt(100, 1), 200);
  harness.step();
  std::vector<TokenId> prompt = make_prompt(100, 1);
  prompt.back() = 55555;
  const SequenceId id = harness.add(prompt, 200, 0, pressed(0.4));
  StepPlan plan = step_until_judged(harness);
  EXPECT_EQ(plan.slices[0].sequence, id);
  do plan = harness.step();
  while (plan.preempted.empty());
  EXPECT_THAT(plan.preempted, ElementsAre(id));
  EXPECT_EQ(harness.dropping(id).judged_at, std::set<int32_t>());
  EXPECT_EQ(harness.scheduler().stats().num_judged_for_room, 0);
  harness.run_to_end(500);
  expect_text(harness, id, prompt, 200);
  EXPECT_EQ(harness.done().at(dense), expected_text(make_prompt(100, 1), 200, 1024));
}

}  // namespace
}  // namespace witan
