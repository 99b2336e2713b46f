#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "sched/scheduler.h"
#include "sched_test_support.h"

namespace witan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(SchedulerSharingTest, SimultaneousEqualPromptsAreComputedOnce) {
  SchedulerHarness harness(with_budget(64));
  std::vector<SequenceId> ids;
  for (int i = 0; i < 6; ++i) ids.push_back(harness.add(make_prompt(100), 5));
  int64_t num_prefill_tokens = 0;
  // 64 tokens, then the rest of the prompt; the others are then admitted together, each with its last 4 tokens.
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(ids[0], 0, 64, false)));
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(ids[0], 64, 36, true)));
  const StepPlan plan = harness.step();
  EXPECT_THAT(plan.admitted, ElementsAre(ids[1], ids[2], ids[3], ids[4], ids[5]));
  for (const ScheduledSlice& slice : plan.slices) num_prefill_tokens += slice.num_tokens;
  EXPECT_EQ(num_prefill_tokens, 1 + 5 * 4);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(harness.scheduler().num_prefix_hit_tokens(ids[i]), i == 0 ? 0 : 96);
  harness.run_to_end(20);
  for (const auto& [id, text] : harness.done()) EXPECT_EQ(text, expected_text(make_prompt(100), 5, 1024));
}

TEST(SchedulerSharingTest, ASequenceWaitsForTheCommonPartOnly) {
  SchedulerHarness harness(with_budget(32));
  std::vector<TokenId> other = make_prompt(160);
  other[70] = 12345;  // blocks [0, 64) are common
  const SequenceId leader = harness.add(make_prompt(160), 5);
  const SequenceId follower = harness.add(other, 5, 0);
  harness.step();
  harness.step();
  EXPECT_THAT(harness.running(), ElementsAre(leader));
  // The common part is there, and the follower is admitted as soon as there are tokens for it.
  for (int i = 0; i < 3; ++i) harness.step();
  EXPECT_THAT(harness.step().admitted, ElementsAre(follower));
  EXPECT_EQ(harness.scheduler().num_prefix_hit_tokens(follower), 64);
  harness.run_to_end(50);
  EXPECT_EQ(harness.done().at(follower), expected_text(other, 5, 1024));
}

TEST(SchedulerSharingTest, APromptThatEndsWithTheBlockDoesNotWaitForIt) {
  // At least one token of a prompt is always computed, so [32, 64) of the second one would not be shared.
  SchedulerHarness harness(with_budget(300));
  const SequenceId first = harness.add(make_prompt(64), 3);
  harness.step();
  const SequenceId second = harness.add(make_prompt(64), 3);
  EXPECT_THAT(harness.step().admitted, ElementsAre(second));
  EXPECT_EQ(harness.scheduler().num_prefix_hit_tokens(second), 32);
  harness.finish(first);
  harness.finish(second);
  harness.kv().clear_prefix_cache();
  const SequenceId third = harness.add(make_prompt(32), 3);
  const SequenceId fourth = harness.add(make_prompt(32), 3);
  EXPECT_THAT(harness.step().admitted, ElementsAre(third, fourth));
}

TEST(SchedulerSharingTest, OthersPassTheSequencesThatWaitForALeader) {
  SchedulerHarness harness(with_budget(120));
  const SequenceId leader = harness.add(make_prompt(100), 5);
  const SequenceId follower = harness.add(make_prompt(100), 5);
  const SequenceId other = harness.add(make_prompt(10, 1), 5);
  EXPECT_THAT(harness.step().admitted, ElementsAre(leader, other));
  EXPECT_THAT(harness.step().admitted, ElementsAre(follower));
}

TEST(SchedulerSharingTest, FollowersGoOnWhenTheirLeaderIsFinishedEarly) {
  SchedulerHarness harness(with_budget(32));
  const SequenceId leader = harness.add(make_prompt(200), 5);
  const SequenceId second = harness.add(make_prompt(200), 5);
  const SequenceId third = harness.add(make_prompt(200), 5);
  harness.step();
  harness.step();
  harness.finish(leader);
  const StepPlan plan = harness.step();
  EXPECT_THAT(plan.slices, ElementsAre(IsSlice(second, 64, 32, false)));
  harness.finish(second);
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(third, 96, 32, false)));
  harness.run_to_end(50);
}

TEST(SchedulerSharingTest, FollowersGoOnWhenTheirLeaderIsPreempted) {
  SchedulerHarness harness(with_budget(64, 16));
  const SequenceId decoding = harness.add(make_prompt(20, 1), 100, 1);
  harness.step();
  const SequenceId leader = harness.add(make_prompt(200, 2), 10);
  const SequenceId follower = harness.add(make_prompt(200, 2), 10);
  harness.step();
  harness.step();
  harness.take_rows(11);
  while (harness.step().preempted.empty()) {
  }
  EXPECT_THAT(harness.running(), ElementsAre(decoding));
  harness.give_back_rows();
  EXPECT_THAT(harness.step().admitted, ElementsAre(leader));
  harness.run_to_end(200);
  EXPECT_EQ(harness.done().at(follower), expected_text(make_prompt(200, 2), 10, 1024));
}

TEST(SchedulerSharingTest, WithoutAPrefixCacheNobodyWaits) {
  TestConfig config = with_budget(300);
  config.prefix_cache = false;
  SchedulerHarness harness(config);
  const SequenceId a = harness.add(make_prompt(100), 5);
  const SequenceId b = harness.add(make_prompt(100), 5);
  EXPECT_THAT(harness.step().admitted, ElementsAre(a, b));
  EXPECT_EQ(harness.scheduler().num_prefix_hit_tokens(b), 0);
  harness.run_to_end(50);
}

TEST(SchedulerSharingTest, ASequenceWaitsForTheBlockThatADecodeCompletesNextUnlessItIsMoreValuable) {
  for (bool is_more_valuable : {false, true}) {
    SchedulerHarness harness(with_budget(64));
    const SequenceId decoding = harness.add(make_prompt(60), 20);
    for (int i = 0; i < 4; ++i) harness.step();
    const std::span<const TokenId> tokens = harness.scheduler().tokens(decoding);
    std::vector<TokenId> prompt(tokens.begin(), tokens.end());
    ASSERT_THAT(prompt, SizeIs(64));
    prompt.push_back(5);
    const SequenceId follower = harness.add(prompt, 5, is_more_valuable ? 1 : 0);
    if (!is_more_valuable) {
      EXPECT_THAT(harness.step().admitted, IsEmpty());
    }
    EXPECT_THAT(harness.step().admitted, ElementsAre(follower));
    EXPECT_EQ(harness.scheduler().num_prefix_hit_tokens(follower), is_more_valuable ? 32 : 64);
    harness.run_to_end(50);
    EXPECT_EQ(harness.done().at(follower), expected_text(prompt, 5, 1024));
  }
}

}  // namespace
}  // namespace witan
