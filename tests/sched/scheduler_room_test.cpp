#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <string>

#include "base/error.h"
#include "sched/scheduler.h"
#include "sched_test_support.h"

namespace witan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// 8 rows; each of the three has 2 rows at first and wants a third after 65 tokens.
class PreemptionTest : public ::testing::TestWithParam<std::array<int32_t, 3>> {};

TEST_P(PreemptionTest, TheLeastValuableGoesAndIsRecomputedWhereItWas) {
  TestConfig config = with_budget(512, 8);
  SchedulerHarness harness(config);
  std::vector<SequenceId> ids;
  std::map<SequenceId, int32_t> priorities;
  for (int32_t kind = 0; kind < 3; ++kind) {
    ids.push_back(harness.add(make_prompt(20, kind), 108, GetParam()[kind]));  // 4 rows alone
  }
  std::ranges::sort(ids, [&](SequenceId a, SequenceId b) { return harness.more_valuable(a, b); });
  harness.step();
  ASSERT_THAT(harness.running(), SizeIs(3));

  StepPlan plan;
  do plan = harness.step();
  while (plan.preempted.empty());
  EXPECT_THAT(plan.preempted, ElementsAre(ids[2]));
  // 8 rows are 2 each and 2 more; the third that wants one finds none.
  EXPECT_EQ(harness.scheduler().tokens(ids[2]).size(), 65);
  EXPECT_EQ(harness.scheduler().tokens(ids[0]).size(), 66);
  EXPECT_EQ(harness.scheduler().stats().num_preemptions, 1);
  EXPECT_EQ(harness.scheduler().stats().num_waiting, 1);

  do plan = harness.step();
  while (plan.admitted.empty());
  EXPECT_THAT(plan.admitted, ElementsAre(ids[2]));
  // Its first blocks were dropped for the others or are still cached; the rest of its 65 tokens is computed again,
  // and the last of them gives the next token.
  const ScheduledSlice& slice = plan.slices.back();
  EXPECT_EQ(slice.first_token % kKvBlockSize, 0);
  EXPECT_EQ(slice.first_token + slice.num_tokens, 65);
  EXPECT_TRUE(slice.samples);
  EXPECT_EQ(harness.scheduler().stats().num_recomputed_tokens, 64 - slice.first_token);

  harness.run_to_end(1000);
  for (const auto& [id, text] : harness.done()) {
    EXPECT_EQ(text, expected_text(make_prompt(20, static_cast<int32_t>(id - 1)), 108, 1024)) << id;
  }
  EXPECT_EQ(harness.done().size(), 3);
}

INSTANTIATE_TEST_SUITE_P(Priorities, PreemptionTest,
                         ::testing::Values(std::array{0, 0, 0}, std::array{0, 1, 2}, std::array{5, 0, 5},
                                           std::array{0, 0, 1}));

TEST(SchedulerRoomTest, APreemptedSequenceFindsItsOwnGeneratedBlocks) {
  for (bool differ : {false, true}) {
    TestConfig config = with_budget(512, 8);
    config.scheduler.generated_entries_differ = differ;
    SchedulerHarness harness(config);
    const SequenceId a = harness.add(make_prompt(10, 1), 140);
    harness.step();
    const SequenceId b = harness.add(make_prompt(10, 2), 140);
    while (harness.step().preempted.empty()) {
    }
    // 127 entries in 4 blocks; the first one wants a fifth.
    ASSERT_EQ(harness.scheduler().tokens(b).size(), 128);
    harness.finish(a);
    const StepPlan plan = harness.step();
    ASSERT_THAT(plan.slices, SizeIs(1));
    EXPECT_EQ(plan.slices[0].sequence, b);
    EXPECT_EQ(plan.slices[0].first_token, 96);
  }
}

// Two sequences of 3 rows each in 4 rows. Were the second one admitted as soon as a row is free, it would be preempted
// when the first one grows, and again and again.
TEST(SchedulerRoomTest, NobodyIsAdmittedToBePreemptedAtOnce) {
  SchedulerHarness harness(with_budget(64, 4));
  harness.add(make_prompt(60, 1), 30);
  const SequenceId second = harness.add(make_prompt(60, 2), 30);
  int num_steps = 0;
  for (; !harness.running().contains(second); ++num_steps) harness.step();
  EXPECT_EQ(num_steps, 31);  // when the first has ended
  harness.run_to_end(100);
  EXPECT_EQ(harness.scheduler().stats().num_preemptions, 0);
}

TEST(SchedulerRoomTest, AnAdmittedSequenceFinishesItsPrefillAndABlockOfDecodingUnderFullLoad) {
  // Prompts take 6 steps each beside the decoding ones, which grow all the time.
  SchedulerHarness harness(with_budget(32, 40));
  for (int32_t kind = 0; kind < 24; ++kind) harness.add(make_prompt(150 + kind, kind), 250);
  std::map<SequenceId, int32_t> tokens_at_admission;
  int64_t num_preempted = 0;
  for (int i = 0; i < 20000 && harness.scheduler().has_work(); ++i) {
    const StepPlan plan = harness.schedule();
    for (SequenceId id : plan.preempted) {
      ++num_preempted;
      EXPECT_GE(std::ssize(harness.scheduler().tokens(id)), tokens_at_admission.at(id) + kKvBlockSize) << id;
    }
    for (SequenceId id : plan.admitted) {
      tokens_at_admission[id] = static_cast<int32_t>(harness.scheduler().tokens(id).size());
    }
    harness.commit(plan);
    harness.finish_complete(plan);
  }
  EXPECT_EQ(harness.done().size(), 24);
  EXPECT_GT(num_preempted, 0);
  // What preemptions cost stays small beside the work itself.
  EXPECT_LT(harness.scheduler().stats().num_recomputed_tokens, 24 * 400 / 4);
}

TEST(SchedulerRoomTest, NobodyPassesTheMostValuableThatWaitsForRoom) {
  SchedulerHarness harness(with_budget(256, 8));
  harness.add(make_prompt(100, 1), 60);
  harness.step();
  const SequenceId large = harness.add(make_prompt(200, 2), 10);
  const SequenceId small = harness.add(make_prompt(10, 3), 10);
  while (!harness.running().contains(large)) {
    EXPECT_FALSE(harness.running().contains(small));
    harness.step();
  }
  harness.run_to_end(100);
  // One of higher priority is the most valuable itself.
  harness.add(make_prompt(100, 1), 60);
  harness.step();
  harness.add(make_prompt(200, 2), 10);
  const SequenceId urgent = harness.add(make_prompt(10, 3), 10, 1);
  EXPECT_THAT(harness.step().admitted, ElementsAre(urgent));
}

TEST(SchedulerRoomTest, ARefusedSequenceIsAskedAgainWhenOthersEnd) {
  SchedulerHarness harness(with_budget(150, 10));
  harness.add(make_prompt(20, 1), 4);                                    // 1 row
  const SequenceId long_running = harness.add(make_prompt(200, 2), 90);  // 7 rows, then more
  harness.step();
  // Refused: of its 7 rows 4 are cached, and of 2 others one is to be kept for the long one. When the short one ends,
  // that makes 2 for 3; but by then 6 rows are cached.
  const SequenceId urgent = harness.add(make_prompt(200, 2), 10, 1);
  EXPECT_THAT(harness.step().admitted, IsEmpty());
  EXPECT_THAT(harness.step().admitted, IsEmpty());
  EXPECT_THAT(harness.step().admitted, IsEmpty());
  EXPECT_THAT(harness.step().admitted, ElementsAre(urgent));
  EXPECT_EQ(harness.scheduler().num_prefix_hit_tokens(urgent), 192);
  EXPECT_TRUE(harness.is_live(long_running));
  harness.run_to_end(200);
}

TEST(SchedulerRoomTest, APrefillTakesWhatFitsAndThenWaitsWithIt) {
  SchedulerHarness harness(with_budget(64, 16));
  const SequenceId decoding = harness.add(make_prompt(20, 1), 100);
  harness.step();
  const SequenceId prefilling = harness.add(make_prompt(200, 2), 10);
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(decoding, 20, 1, true), IsSlice(prefilling, 0, 63, false)));
  harness.take_rows(12);  // 1 of 16 rows left, and a slot in the prefill's second block
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(decoding, 21, 1, true), IsSlice(prefilling, 63, 33, false)));
  const StepPlan plan = harness.step();
  EXPECT_THAT(plan.slices, ElementsAre(IsSlice(decoding, 22, 1, true)));
  EXPECT_THAT(plan.preempted, IsEmpty());
  harness.give_back_rows();
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(decoding, 23, 1, true), IsSlice(prefilling, 96, 63, false)));
  harness.run_to_end(200);
  EXPECT_EQ(harness.scheduler().stats().num_preemptions, 0);
}

TEST(SchedulerRoomTest, AWaitingPrefillIsPreemptedForADecode) {
  SchedulerHarness harness(with_budget(64, 16));
  const SequenceId decoding = harness.add(make_prompt(20, 1), 100);
  harness.step();
  const SequenceId prefilling = harness.add(make_prompt(200, 2), 10);
  harness.step();
  harness.take_rows(13);
  StepPlan plan;
  do plan = harness.step();
  while (plan.preempted.empty());
  EXPECT_THAT(plan.preempted, ElementsAre(prefilling));
  EXPECT_THAT(plan.slices, ElementsAre(IsSlice(decoding, 32, 1, true)));
  harness.give_back_rows();
  harness.run_to_end(200);
}

TEST(SchedulerRoomTest, AMoreValuablePrefillTakesRoomFromADecodeThatIsPlannedAlready) {
  SchedulerHarness harness(with_budget(34, 16));
  const SequenceId decoding = harness.add(make_prompt(32, 1), 100);
  harness.step();
  const SequenceId urgent = harness.add(make_prompt(200, 2), 10, 1);
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(decoding, 32, 1, true), IsSlice(urgent, 0, 33, false)));
  harness.take_rows(12);  // all that is left
  EXPECT_THAT(harness.step().slices, ElementsAre(IsSlice(decoding, 33, 1, true), IsSlice(urgent, 33, 31, false)));
  const StepPlan plan = harness.step();
  EXPECT_THAT(plan.preempted, ElementsAre(decoding));
  EXPECT_THAT(plan.slices, ElementsAre(IsSlice(urgent, 64, 34, false)));
  EXPECT_THAT(plan.admitted, IsEmpty());
  harness.give_back_rows();
  harness.run_to_end(200);
  EXPECT_EQ(harness.done().at(decoding), expected_text(make_prompt(32, 1), 100, 1024));
}

TEST(SchedulerRoomTest, WithoutTheMemoryThatTheCacheWasPromisedTheOnlySequenceFailsWithTheNumbers) {
  SchedulerHarness harness(with_budget(64, 4));
  const auto expect_failure = [&](SequenceId id) {
    try {
      harness.scheduler().schedule();
      ADD_FAILURE() << "scheduled";
    } catch (const SequenceError& error) {
      EXPECT_EQ(error.sequence(), id);
      EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
      EXPECT_THAT(error.what(), ::testing::HasSubstr("sequence " + std::to_string(id)));
      EXPECT_THAT(error.what(), ::testing::HasSubstr("may hold 1024 bytes"));
    }
    harness.scheduler().check_integrity();
    harness.kv().check_integrity();
  };
  harness.take_rows(4);
  const SequenceId a = harness.add(make_prompt(20), 60);
  expect_failure(a);
  expect_failure(a);
  harness.give_back_rows();
  harness.note_running(a);
  harness.step();
  harness.take_rows(3);
  for (int i = 0; i < 12; ++i) harness.step();
  expect_failure(a);  // its 33rd token
  harness.give_back_rows();
  harness.run_to_end(100);
  EXPECT_EQ(harness.done().at(a), expected_text(make_prompt(20), 60, 1024));
}

TEST(SchedulerRoomTest, AStreamOfLaterArrivalsDoesNotDelayAnEarlierSequence) {
  SchedulerHarness harness(with_budget(64, 12));
  int32_t kind = 0;
  for (; kind < 4; ++kind) harness.add(make_prompt(40, kind), 20);
  const SequenceId large = harness.add(make_prompt(300, 99), 50);
  int num_steps = 0;
  for (; harness.is_live(large); ++num_steps) {
    ASSERT_LT(num_steps, 4 * 20 + 300 / 32 + 50 + 10);
    harness.add(make_prompt(40, ++kind), 20);
    harness.step();
  }
}

// What their owner takes beside the KV cache counts, also that of those who were admitted in the same plan.
TEST(SchedulerRoomTest, SequencesWaitForTheRoomOfWhatTheirOwnerTakes) {
  SchedulerHarness harness(with_budget(100, 64));
  const int64_t half = harness.kv().available_memory_bytes() * 55 / 100;
  const auto add = [&](int32_t kind, int64_t side_bytes) {
    return harness.add(make_prompt(20, kind), 5, 0, {}, side_bytes);
  };
  const SequenceId first = add(1, half);
  const SequenceId second = add(2, half);
  const SequenceId third = add(3, 0);
  StepPlan plan = harness.step();
  EXPECT_THAT(plan.admitted, testing::ElementsAre(first));
  harness.run_to_end(100);
  EXPECT_EQ(harness.done().at(second), expected_text(make_prompt(20, 2), 5, 1024));
  EXPECT_EQ(harness.done().at(third), expected_text(make_prompt(20, 3), 5, 1024));
  EXPECT_EQ(harness.scheduler().stats().num_preemptions, 0);
}

std::optional<Dropping> dropping_if(bool drops) { return drops ? std::optional<Dropping>(Dropping()) : std::nullopt; }

// Two prompts that end in one step, one of them to be compressed, when the room for its copies of what it shares
// with an earlier sequence has gone to others.
void compress_without_room(bool first_compresses) {
  SchedulerHarness harness(with_budget(100, 12));
  const SequenceId earlier = harness.add(make_prompt(40, first_compresses ? 1 : 2), 20);
  harness.step();
  const SequenceId first = harness.add(make_prompt(40, 1), 20, 0, dropping_if(first_compresses));
  const SequenceId second = harness.add(make_prompt(40, 2), 20, 0, dropping_if(!first_compresses));
  const StepPlan plan = harness.schedule();
  ASSERT_EQ(plan.slices.size(), 3);
  harness.take_rows(7);  // of 12; each prompt has 2, one of them shared
  harness.commit(plan);
  EXPECT_EQ(harness.running(), (std::set<SequenceId>{earlier, first}))
      << "the less valuable one waits, whoever needed the room";
  EXPECT_EQ(harness.scheduler().stats().num_preemptions, 1);
  harness.give_back_rows();
  harness.run_to_end(200);
  EXPECT_EQ(harness.done().at(first), expected_text(make_prompt(40, 1), 20, 1024, dropping_if(first_compresses)));
  EXPECT_EQ(harness.done().at(second), expected_text(make_prompt(40, 2), 20, 1024, dropping_if(!first_compresses)));
}

TEST(SchedulerRoomTest, CompressingPreemptsTheLessValuableForItsCopies) { compress_without_room(true); }

TEST(SchedulerRoomTest, CompressingPreemptsItselfWhereItIsTheLeastValuable) { compress_without_room(false); }

TEST(Scheduler, WhatAllHoldInTheEndCountsThoseThatWaitAndWhatIsDropped) {
  SchedulerHarness harness(with_budget(64, 64));
  EXPECT_EQ(harness.scheduler().final_bytes(), 0);
  const auto bytes_of_rows = [&](int64_t rows) { return harness.kv().bytes_for_tokens(rows * kKvBlockSize); };
  harness.add(make_prompt(20), 109);  // the last of its tokens has no entry: 4 rows
  EXPECT_EQ(harness.scheduler().final_bytes(), bytes_of_rows(4));
  harness.add(make_prompt(96, 1), 33, 0, Dropping{});  // 32 of 128 entries go: 3 rows
  EXPECT_EQ(harness.scheduler().final_bytes(), bytes_of_rows(7)) << "none of them runs yet";
  harness.step();
  EXPECT_EQ(harness.scheduler().final_bytes(), bytes_of_rows(7));
  harness.run_to_end(1000);
  EXPECT_EQ(harness.scheduler().final_bytes(), 0);
}

}  // namespace
}  // namespace witan
