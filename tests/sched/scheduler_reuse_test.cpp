// Documents in prompts whose entries are those of the same tokens elsewhere.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "sched/scheduler.h"
#include "sched_test_support.h"

namespace witan {
namespace {

using enum ReuseSlice::Pass;

// A prompt of a beginning of its own, documents by their kind (make_prompt) and a question of its own.
struct Text {
  std::vector<TokenId> prompt;
  Reusing reusing;
};

Text text_of(std::vector<std::pair<int32_t, int32_t>> documents, int32_t kind, bool probes = false,
             bool probes_alone = false) {
  Text text{.prompt = make_prompt(10 + kind, 50 + kind), .reusing = {}};
  for (const auto& [document, num_blocks] : documents) {
    if (!text.reusing.documents.empty()) {
      text.reusing.recomputed.push_back(static_cast<int32_t>(text.prompt.size()));  // between two
      text.prompt.push_back(7);
    }
    const auto begin = static_cast<int32_t>(text.prompt.size());
    const std::vector<TokenId> tokens = make_prompt(num_blocks * kKvBlockSize, document);
    text.prompt.insert(text.prompt.end(), tokens.begin(), tokens.end());
    text.reusing.documents.push_back({begin, static_cast<int32_t>(text.prompt.size())});
    for (int32_t i = 0; i < 5; ++i) text.reusing.recomputed.push_back(begin + 3 * i + kind % 4);
  }
  text.reusing.probes = probes;
  text.reusing.probes_alone = probes_alone;
  const std::vector<TokenId> question = make_prompt(9, 70 + kind);
  text.prompt.insert(text.prompt.end(), question.begin(), question.end());
  return text;
}

SequenceId add(SchedulerHarness& harness, const Text& text, int32_t max_new_tokens = 5) {
  return harness.add(text.prompt, max_new_tokens, 0, {}, 0, text.reusing);
}

void expect_done(const SchedulerHarness& harness, SequenceId id, const Text& text, int32_t max_new_tokens = 5) {
  EXPECT_EQ(harness.done().at(id), expected_text(text.prompt, max_new_tokens, 1024, {}, text.reusing));
}

struct Planned {
  ReuseSlice::Pass pass;
  int32_t document;
  int32_t first;
  int32_t num_tokens;
  bool operator==(const Planned&) const = default;
};

std::vector<Planned> passes_of(SchedulerHarness& harness) {
  std::vector<Planned> passes;
  while (harness.scheduler().has_work()) {
    const StepPlan plan = harness.step();
    for (const ScheduledSlice& slice : plan.slices) {
      if (slice.reuse)
        passes.push_back({slice.reuse->pass, slice.reuse->document, slice.reuse->first, slice.num_tokens});
    }
  }
  return passes;
}

TEST(SchedulerReuseTest, PassesFollowEachOtherInChunks) {
  SchedulerHarness harness(with_budget(50));
  const Text text = text_of({{1, 2}, {2, 1}}, 3, true, true);
  const SequenceId id = add(harness, text);
  EXPECT_EQ(passes_of(harness), (std::vector<Planned>{{kDocument, 0, 0, 50},
                                                      {kDocument, 0, 50, 14},
                                                      {kProbeAlone, 0, 0, 50},
                                                      {kProbeAlone, 0, 50, 14},
                                                      {kDocument, 1, 0, 32},
                                                      {kProbeAlone, 1, 0, 32},
                                                      {kProbe, 0, 0, 50},
                                                      {kProbe, 0, 50, 47},
                                                      {kRecompute, 0, 0, 11}}));
  expect_done(harness, id, text);
}

TEST(SchedulerReuseTest, DocumentsAreFoundInOtherPlaces) {
  SchedulerHarness harness(with_budget(200));
  const Text first = text_of({{1, 2}, {2, 1}}, 0);
  const SequenceId a = add(harness, first);
  harness.run_to_end(100);
  EXPECT_EQ(harness.scheduler().stats().num_waiting, 0);
  expect_done(harness, a, first);
  const Text second = text_of({{3, 1}, {2, 1}, {1, 2}}, 1, true);
  const SequenceId b = add(harness, second);
  harness.step();
  harness.step();
  EXPECT_EQ(harness.scheduler().num_document_hit_tokens(b), 0);
  std::vector<Planned> passes = passes_of(harness);
  EXPECT_EQ(passes, (std::vector<Planned>{{kProbe, 0, 0, 130}, {kRecompute, 0, 0, 17}}));
  expect_done(harness, b, second);
}

// Nothing of such a text but its beginning and its documents is for others.
TEST(SchedulerReuseTest, TheTextItselfIsNotFoundByOthers) {
  SchedulerHarness harness(with_budget(200));
  Text text = text_of({{1, 2}}, 40);  // begins with 50 tokens
  const SequenceId a = add(harness, text);
  harness.run_to_end(100);
  expect_done(harness, a, text);
  const SequenceId exact = harness.add(text.prompt, 5);
  harness.step();
  EXPECT_EQ(harness.scheduler().num_prefix_hit_tokens(exact), 32);
  harness.run_to_end(100);
  EXPECT_EQ(harness.done().at(exact), expected_text(text.prompt, 5, 1024));
  // Nor does it take what others computed of the same tokens.
  const SequenceId again = add(harness, text);
  harness.step();
  EXPECT_EQ(harness.scheduler().num_prefix_hit_tokens(again), 32);
  harness.run_to_end(100);
  expect_done(harness, again, text);
}

// The text, and its longest document, which is there when its entries are copied.
TEST(SchedulerReuseTest, ASequenceNeedsTheRoomOfItsLongestDocument) {
  const Text text = text_of({{1, 2}, {2, 1}}, 3);  // 13 + 64 + 1 + 32 + 9 tokens
  for (const int64_t num_rows : {5, 6}) {
    TestConfig config = with_budget(200, num_rows);
    config.prefix_cache = false;
    SchedulerHarness harness(config);
    if (num_rows == 5) {
      EXPECT_THROW(add(harness, text), Error);
      continue;
    }
    const SequenceId id = add(harness, text);
    harness.run_to_end(100);
    expect_done(harness, id, text);
  }
}

TEST(SchedulerReuseTest, WhatWasNotComputedIsPlannedAgain) {
  SchedulerHarness harness(with_budget(40));
  const Text text = text_of({{1, 2}, {2, 1}}, 2, true, true);
  const SequenceId id = add(harness, text);
  for (int i = 0; harness.scheduler().has_work() && i < 200; ++i) {
    const StepPlan plan = harness.schedule();
    if (i % 3 == 1) {
      harness.abandon(plan);
      continue;
    }
    harness.commit(plan);
    harness.finish_complete(plan);
  }
  expect_done(harness, id, text);
}

// Many sequences with documents in common in little room, ended at random too.
TEST(SchedulerReuseTest, EverySequenceEndsWithTheTextItHasAlone) {
  int64_t num_preemptions = 0;
  int64_t num_found = 0;
  for (uint32_t seed = 0; seed < 30; ++seed) {
    std::mt19937 random(seed);
    const auto pick = [&](int32_t n) { return static_cast<int32_t>(random() % static_cast<uint32_t>(n)); };
    TestConfig config = with_budget(20 + pick(100), 14 + pick(20));
    config.prefix_cache = seed % 5 != 0;
    SchedulerHarness harness(config);
    std::map<SequenceId, Text> texts;
    std::map<SequenceId, int32_t> lengths;
    for (int step = 0; step < 400; ++step) {
      if (texts.size() < 12 && pick(4) == 0) {
        std::vector<std::pair<int32_t, int32_t>> documents;
        for (int32_t i = 0; i <= pick(3); ++i) documents.emplace_back(1 + pick(4), 1 + pick(2));
        const Text text = text_of(documents, pick(5), pick(2) == 0, pick(2) == 0);
        const int32_t num_new = 1 + pick(250);
        const SequenceId id = add(harness, text, num_new);
        texts[id] = text;
        lengths[id] = num_new;
      }
      const StepPlan plan = harness.step();
      for (const auto& [id, text] : texts) {
        if (harness.is_live(id)) num_found += harness.scheduler().num_document_hit_tokens(id);
      }
      if (pick(60) == 0 && !harness.live().empty()) harness.finish(*harness.live().begin());
    }
    harness.run_to_end(3000);
    for (const auto& [id, tokens] : harness.done()) {
      EXPECT_EQ(tokens, expected_text(texts.at(id).prompt, lengths.at(id), 1024, {}, texts.at(id).reusing)) << seed;
    }
    num_preemptions += harness.scheduler().stats().num_preemptions;
  }
  EXPECT_GT(num_preemptions, 10);
  EXPECT_GT(num_found, 0);
}

}  // namespace
}  // namespace witan
