// Sequences that go on from what a KV policy left of the beginning of another's prompt.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "sched_test_support.h"

namespace witan {
namespace {

// The same `num_common` tokens, then others.
std::vector<TokenId> prompt_of(int32_t num_common, int32_t kind) {
  std::vector<TokenId> prompt = make_prompt(num_common);
  const std::vector<TokenId> question = make_prompt(20, kind);
  prompt.insert(prompt.end(), question.begin(), question.end());
  return prompt;
}

TEST(SchedulerCompressedTest, ALaterSequenceIsAdmittedBehindThem) {
  SchedulerHarness harness(with_budget(64, 64));
  const Dropping dropping{.prefill_every = 40};
  harness.add(prompt_of(150, 1), 5, 0, dropping);
  harness.run_to_end(100);
  EXPECT_GT(harness.kv().stats().compressed_bytes, 0);
  const SequenceId second = harness.add(prompt_of(150, 2), 5, 0, dropping);
  const StepPlan plan = harness.step();
  ASSERT_EQ(plan.slices.size(), 1);
  EXPECT_EQ(plan.slices[0].first_token, 120);
  EXPECT_EQ(plan.slices[0].num_tokens, 40);
  EXPECT_TRUE(plan.slices[0].compresses);
  EXPECT_EQ(harness.scheduler().num_prefix_hit_tokens(second), 120);
  harness.run_to_end(100);
  EXPECT_EQ(harness.done().at(second), expected_text(prompt_of(150, 2), 5, 1024, dropping));

  const Dropping other{.prefill_every = 50};
  const SequenceId third = harness.add(prompt_of(150, 2), 5, 0, other);
  harness.step();
  EXPECT_LT(harness.scheduler().num_prefix_hit_tokens(third), 50);
  harness.run_to_end(100);
  EXPECT_EQ(harness.done().at(third), expected_text(prompt_of(150, 2), 5, 1024, other));
}

TEST(SchedulerCompressedTest, OneWithoutRoomWaits) {
  SchedulerHarness harness(with_budget(64, 20));
  const Dropping dropping{.prefill_every = 32};
  harness.add(prompt_of(256, 1), 5, 0, dropping);
  harness.run_to_end(100);
  const SequenceId long_one = harness.add(make_prompt(32 * 17, 3), 5);
  harness.step();
  const SequenceId second = harness.add(prompt_of(256, 2), 5, 0, dropping);
  for (int i = 0; i < 8; ++i) {
    EXPECT_TRUE(harness.step().admitted.empty());
  }
  EXPECT_FALSE(harness.running().contains(second));
  harness.run_to_end(200);
  EXPECT_EQ(harness.done().at(long_one), expected_text(make_prompt(32 * 17, 3), 5, 1024));
  EXPECT_EQ(harness.done().at(second), expected_text(prompt_of(256, 2), 5, 1024, dropping));
  EXPECT_EQ(harness.scheduler().stats().num_preemptions, 0);
}

}  // namespace
}  // namespace witan
