#include "sched/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "base/error.h"
#include "sched_test_support.h"

namespace witan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST(SchedulerTest, WithoutSequencesThePlanIsEmpty) {
  SchedulerHarness harness({});
  EXPECT_FALSE(harness.scheduler().has_work());
  const StepPlan plan = harness.step();
  EXPECT_TRUE(plan.empty());
  EXPECT_EQ(plan.num_tokens, 0);
}

TEST(SchedulerTest, PromptIsComputedInChunksOfTheTokenBudget) {
  SchedulerHarness harness(with_budget(40));
  const SequenceId a = harness.add(make_prompt(100), 3);
  const StepPlan first = harness.step();
  EXPECT_THAT(first.slices, ElementsAre(IsSlice(a, 0, 40, false)));
  EXPECT_THAT(first.admitted, ElementsAre(a));
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(a, 40, 40, false)));
  EXPECT_EQ(harness.scheduler().num_generated(a), 0);
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(a, 80, 20, true)));
  EXPECT_EQ(harness.scheduler().num_generated(a), 1);
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(a, 100, 1, true)));
  // The third token is the last: it is sampled and never computed.
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(a, 101, 1, true)));
  EXPECT_EQ(harness.done().at(a), expected_text(make_prompt(100), 3, 1024));
  EXPECT_FALSE(harness.scheduler().has_work());
}

TEST(SchedulerTest, AStepServesDecodesThenPrefillsThenAdmissions) {
  SchedulerHarness harness(with_budget(40));
  const SequenceId decoding = harness.add(make_prompt(10, 1), 50);
  harness.step();
  const SequenceId prefilling = harness.add(make_prompt(60, 2), 50);
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(decoding, 10, 1, true), IsSlice(prefilling, 0, 39, false)));
  const SequenceId waiting = harness.add(make_prompt(60, 3), 50);
  const StepPlan plan = harness.step();
  EXPECT_THAT(plan.slices, ElementsAre(IsSlice(decoding, 11, 1, true), IsSlice(prefilling, 39, 21, true),
                                       IsSlice(waiting, 0, 18, false)));
  EXPECT_THAT(plan.admitted, ElementsAre(waiting));
  EXPECT_EQ(plan.num_tokens, 40);
}

TEST(SchedulerTest, WaitingSequencesAreAdmittedByPriorityThenArrival) {
  SchedulerHarness harness(with_budget(10));
  const SequenceId low = harness.add(make_prompt(5, 1), 1, -1);
  const SequenceId first = harness.add(make_prompt(5, 2), 1);
  const SequenceId second = harness.add(make_prompt(5, 3), 1);
  const SequenceId high = harness.add(make_prompt(5, 4), 1, 7);
  EXPECT_THAT(harness.step().admitted, ElementsAre(high, first));
  EXPECT_THAT(harness.step().admitted, ElementsAre(second, low));
}

TEST(SchedulerTest, RunningPrefillsAreServedByValueToo) {
  SchedulerHarness harness(with_budget(20));
  const SequenceId old = harness.add(make_prompt(64, 1), 1);
  harness.step();
  EXPECT_THAT(harness.running(), ElementsAre(old));
  // The old one takes every step's whole budget, so that the new one only comes in with its last chunk.
  const SequenceId high = harness.add(make_prompt(64, 2), 1, 1);
  harness.step();
  harness.step();
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(old, 60, 4, true), IsSlice(high, 0, 16, false)));
}

TEST(SchedulerTest, PromptsTakeLessOfAStepInWhichOthersDecode) {
  TestConfig config = with_budget(20);
  config.scheduler.max_mixed_prompt_tokens = 6;
  SchedulerHarness harness(config);
  const SequenceId decoding = harness.add(make_prompt(20, 1), 4);
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(decoding, 0, 20, true)));
  const SequenceId first = harness.add(make_prompt(64, 2), 1);
  const SequenceId second = harness.add(make_prompt(4, 3), 1, 1);
  const StepPlan both = harness.step();
  EXPECT_THAT(both.slices,
              ElementsAre(IsSlice(decoding, 20, 1, true), IsSlice(second, 0, 4, true), IsSlice(first, 0, 2, false)));
  EXPECT_EQ(both.num_tokens, 7);
  EXPECT_EQ(both.num_decodes, 1);
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(decoding, 21, 1, true), IsSlice(first, 2, 6, false)));
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(decoding, 22, 1, true), IsSlice(first, 8, 6, false)));
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(first, 14, 20, false))) << "alone again";
}

TEST(SchedulerTest, AStepOfDecodesAloneLeavesPrefillsOut) {
  SchedulerHarness harness(with_budget(20));
  const SequenceId decoding = harness.add(make_prompt(20, 1), 3);
  harness.step();
  const SequenceId prompt = harness.add(make_prompt(64, 2), 1);
  const StepPlan alone = harness.step(Prefills::kAlone);
  EXPECT_THAT(alone.slices, ElementsAre(IsSlice(decoding, 20, 1, true)));
  EXPECT_EQ(alone.num_decodes, 1);
  EXPECT_TRUE(alone.admitted.empty());
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(decoding, 21, 1, true), IsSlice(prompt, 0, 19, false)));
  EXPECT_THAT(harness.step(Prefills::kAlone).slices, ElementsAre(IsSlice(prompt, 19, 20, false)))
      << "where nobody decodes, nobody waits";
}

TEST(SchedulerTest, SequencesRunUpToTheirLimitAndTheTokenBudget) {
  struct Case {
    int32_t max_sequences;
    int32_t max_step_tokens;
    int64_t expected;
  };
  for (const Case& c : {Case{3, 64, 3}, Case{1, 64, 1}, Case{16, 4, 4}, Case{16, 1, 1}}) {
    TestConfig config = with_budget(c.max_step_tokens);
    config.scheduler.max_sequences = c.max_sequences;
    SchedulerHarness harness(config);
    for (int32_t kind = 0; kind < 8; ++kind) harness.add(make_prompt(3, kind), 40);
    int64_t most = 0;
    for (int i = 0; i < 30; ++i) {
      harness.step();
      most = std::max(most, harness.scheduler().stats().num_running);
    }
    EXPECT_EQ(most, c.expected) << c.max_sequences << " " << c.max_step_tokens;
    harness.run_to_end(1000);
  }
}

TEST(SchedulerTest, RequestsThatCannotRunAreRefusedWithTheNumbers) {
  TestConfig config;
  config.scheduler.context_length = 200;
  config.num_rows = 4;  // 128 tokens
  struct Case {
    SequenceRequest request;
    ErrorCode code;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases = {
      {{.prompt = {}, .max_new_tokens = 1}, ErrorCode::kInvalidArgument, {"prompt has no tokens"}},
      {{.prompt = {1}, .max_new_tokens = 0}, ErrorCode::kInvalidArgument, {"max_new_tokens", "not 0"}},
      {{.prompt = {1}, .max_new_tokens = -5}, ErrorCode::kInvalidArgument, {"max_new_tokens", "not -5"}},
      {{.prompt = make_prompt(200), .max_new_tokens = 1}, ErrorCode::kInvalidArgument, {"200 tokens", "no room"}},
      {{.prompt = make_prompt(300), .max_new_tokens = 1}, ErrorCode::kInvalidArgument, {"300", "200"}},
      {{.prompt = make_prompt(128), .max_new_tokens = 2},
       ErrorCode::kOutOfMemory,
       {"128", " 2 to generate", "1280", "1024"}},
      {{.prompt = make_prompt(1), .max_new_tokens = 129}, ErrorCode::kOutOfMemory, {"129 to generate", "bytes"}},
  };
  SchedulerHarness harness(config);
  for (const Case& c : cases) {
    try {
      harness.scheduler().add(c.request);
      ADD_FAILURE() << "accepted: " << c.words[0];
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), c.code) << error.what();
      for (const std::string& word : c.words) EXPECT_THAT(error.what(), HasSubstr(word));
    }
    EXPECT_FALSE(harness.scheduler().has_work());
  }
  // The last token is never computed, so this one fills the cache exactly.
  const SequenceId exact = harness.add(make_prompt(128), 1);
  harness.run_to_end(100);
  EXPECT_THAT(harness.done().at(exact), SizeIs(129));
}

TEST(SchedulerTest, ConfigurationsWithoutRoomAreRefused) {
  SchedulerHarness harness({});
  for (SchedulerConfig config : {SchedulerConfig{.max_step_tokens = 0, .max_sequences = 1, .context_length = 1},
                                 SchedulerConfig{.max_step_tokens = 1, .max_sequences = 0, .context_length = 1},
                                 SchedulerConfig{.max_step_tokens = 1, .max_sequences = 1, .context_length = 0},
                                 SchedulerConfig{.max_mixed_prompt_tokens = 0, .context_length = 1}}) {
    EXPECT_THROW(Scheduler(harness.kv(), config), Error);
  }
}

TEST(SchedulerTest, ASequenceEndsWithTheContext) {
  TestConfig config;
  config.scheduler.context_length = 50;
  SchedulerHarness harness(config);
  const SequenceId a = harness.add(make_prompt(40), std::numeric_limits<int32_t>::max());
  const SequenceId b = harness.add(make_prompt(40, 1), 3);
  EXPECT_EQ(harness.scheduler().max_tokens(a), 50);
  EXPECT_EQ(harness.scheduler().max_tokens(b), 43);
  harness.run_to_end(20);
  EXPECT_THAT(harness.done().at(a), SizeIs(50));
}

TEST(SchedulerTest, SampledTokensGoToTheirSequencesInTheSlicesOrder) {
  SchedulerHarness harness({});
  const SequenceId a = harness.add(make_prompt(3, 1), 10);
  const SequenceId b = harness.add(make_prompt(3, 2), 10, 1);
  const SequenceId c = harness.add(make_prompt(3, 3), 10);
  const StepPlan plan = harness.schedule();
  ASSERT_THAT(plan.slices, ElementsAre(IsSlice(b, 0, 3, true), IsSlice(a, 0, 3, true), IsSlice(c, 0, 3, true)));
  const StepPlan copy = plan;  // plain data
  harness.scheduler().commit(copy, std::vector<TokenId>{71, 72, 73});
  EXPECT_EQ(harness.scheduler().tokens(a).back(), 72);
  EXPECT_EQ(harness.scheduler().tokens(b).back(), 71);
  EXPECT_EQ(harness.scheduler().tokens(c).back(), 73);
  EXPECT_EQ(harness.scheduler().num_prompt_tokens(a), 3);
  EXPECT_EQ(harness.scheduler().num_generated(a), 1);
  EXPECT_EQ(harness.scheduler().role(a, 2), TokenRole::kPrompt);
  EXPECT_EQ(harness.scheduler().role(a, 3), TokenRole::kGenerated);
}

TEST(SchedulerTest, SchedulingTwiceTheSameStateGivesTheSamePlan) {
  const auto plan = [] {
    SchedulerHarness harness(with_budget(30));
    for (int32_t kind = 0; kind < 5; ++kind) harness.add(make_prompt(8 + kind, kind), 10, kind % 2);
    harness.step();
    return harness.schedule().slices;
  };
  EXPECT_EQ(plan(), plan());
}

TEST(SchedulerTest, ABlockOfGeneratedTextIsSharedWithPromptsUnlessItsEntriesDiffer) {
  for (bool differ : {false, true}) {
    TestConfig config;
    config.scheduler.generated_entries_differ = differ;
    SchedulerHarness harness(config);
    const SequenceId a = harness.add(make_prompt(40), 100);
    harness.run_to_end(200);
    std::vector<TokenId> next_turn = harness.done().at(a);  // 139 entries were computed: 4 whole blocks
    next_turn.push_back(1);
    const SequenceId b = harness.add(next_turn, 4);
    harness.step();
    EXPECT_EQ(harness.scheduler().num_prefix_hit_tokens(b), differ ? 32 : 128);
    EXPECT_EQ(harness.scheduler().role(b, 139), TokenRole::kPrompt);
    harness.run_to_end(100);
    EXPECT_EQ(harness.done().at(b), expected_text(next_turn, 4, 1024));
  }
}

TEST(SchedulerTest, ASequenceIsFinishedInAnyState) {
  enum class Place { kNew, kFollowing, kPrefilling, kWaitingPrefill, kDecoding, kPreempted };
  for (Place place : {Place::kNew, Place::kFollowing, Place::kPrefilling, Place::kWaitingPrefill, Place::kDecoding,
                      Place::kPreempted}) {
    SchedulerHarness harness(with_budget(64, 16));
    const SequenceId first = harness.add(make_prompt(20, 1), 100, 1);
    harness.step();
    SequenceId victim = 0;
    switch (place) {
      case Place::kNew:
        victim = harness.add(make_prompt(200, 2), 10);
        break;
      case Place::kFollowing:
        harness.add(make_prompt(200, 2), 10);
        victim = harness.add(make_prompt(200, 2), 10);
        for (int i = 0; i < 3; ++i) harness.step();
        break;
      case Place::kPrefilling:
        victim = harness.add(make_prompt(200, 2), 10);
        harness.step();
        break;
      case Place::kWaitingPrefill:
      case Place::kPreempted:
        victim = harness.add(make_prompt(200, 2), 10);
        harness.step();
        harness.take_rows(13);
        while (harness.step().preempted.empty() && place == Place::kPreempted) {
        }
        harness.give_back_rows();
        break;
      case Place::kDecoding:
        victim = harness.add(make_prompt(20, 2), 10);
        harness.step();
        break;
    }
    const bool runs = place == Place::kPrefilling || place == Place::kWaitingPrefill || place == Place::kDecoding;
    EXPECT_EQ(harness.running().contains(victim), runs);
    harness.finish(victim);
    EXPECT_EQ(harness.kv().stats().block_bytes_held - harness.kv().stats().block_bytes_cached,
              harness.kv().bytes_for_tokens(harness.scheduler().tokens(first).size() - 1) +
                  (place == Place::kFollowing ? harness.kv().bytes_for_tokens(3 * 63) : 0));
    harness.run_to_end(300);
    EXPECT_TRUE(harness.done().contains(first));
    EXPECT_FALSE(harness.done().contains(victim));
    EXPECT_EQ(harness.kv().stats().block_bytes_held, harness.kv().stats().block_bytes_cached);
  }
}

TEST(SchedulerTest, AnAbandonedPlanLeavesNoTraceInItsSequences) {
  SchedulerHarness harness(with_budget(40));
  const SequenceId decoding = harness.add(make_prompt(10, 1), 30);
  harness.step();
  const SequenceId prefilling = harness.add(make_prompt(60, 2), 5);
  harness.step();
  const StepPlan plan = harness.schedule();
  EXPECT_THAT(plan.slices, ElementsAre(IsSlice(decoding, 11, 1, true), IsSlice(prefilling, 39, 21, true)));
  harness.abandon(plan);
  EXPECT_EQ(harness.scheduler().num_generated(decoding), 2);
  const StepPlan again = harness.schedule();
  EXPECT_EQ(again.slices, plan.slices);
  EXPECT_THAT(again.admitted, SizeIs(0));
  harness.abandon(again);
  harness.finish(decoding);
  harness.run_to_end(50);
  EXPECT_EQ(harness.done().at(prefilling), expected_text(make_prompt(60, 2), 5, 1024));
  EXPECT_EQ(harness.kv().stats().block_bytes_held, harness.kv().stats().block_bytes_cached);
}

TEST(SchedulerTest, ASchedulerGivesItsKvSequencesBack) {
  MemoryPool pool(size_t{8} << 20);
  KvCache kv(pool, {.layers = {{.num_kv_heads = 1, .key_dim = 1, .value_dim = 1}}, .capacity_bytes = 4096});
  {
    Scheduler scheduler(kv, {.context_length = 100});
    scheduler.add({.prompt = make_prompt(50), .max_new_tokens = 5});
    const StepPlan plan = scheduler.schedule();
    EXPECT_GT(kv.stats().block_bytes_held, 0);
  }
  EXPECT_EQ(kv.stats().block_bytes_held, 0);
  kv.check_integrity();
}

TEST(SchedulerDeathTest, WrongUseAborts) {
  const auto with_open_plan = [](auto use) {
    SchedulerHarness harness({});
    const SequenceId a = harness.add(make_prompt(3), 1);
    const StepPlan plan = harness.schedule();
    use(harness, a, plan);
  };
  EXPECT_DEATH(with_open_plan([](auto& h, SequenceId, const StepPlan&) { h.scheduler().schedule(); }),
               "neither committed nor abandoned");
  EXPECT_DEATH(with_open_plan([](auto& h, SequenceId a, const StepPlan&) { h.scheduler().finish(a); }), "committed");
  EXPECT_DEATH(with_open_plan([](auto& h, SequenceId, const StepPlan& plan) { h.scheduler().commit(plan, {}); }),
               "do not suffice");
  EXPECT_DEATH(with_open_plan([](auto& h, SequenceId, const StepPlan& plan) {
                 h.scheduler().commit(plan, std::vector<TokenId>{1, 2});
               }),
               "2 tokens sampled, 1 slices sample");
  EXPECT_DEATH(with_open_plan([](auto& h, SequenceId, const StepPlan& plan) {
                 StepPlan wrong = plan;
                 wrong.slices[0].num_tokens = 2;
                 h.scheduler().commit(wrong, std::vector<TokenId>{1});
               }),
               "were planned");
  EXPECT_DEATH(with_open_plan([](auto& h, SequenceId, const StepPlan& plan) {
                 h.commit(plan);
                 h.scheduler().schedule();
               }),
               "all its 4 tokens");
  EXPECT_DEATH(with_open_plan([](auto& h, SequenceId a, const StepPlan&) { h.scheduler().tokens(a + 1); }),
               "does not exist");
}

}  // namespace
}  // namespace witan
