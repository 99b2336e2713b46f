#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

#include "sched/scheduler.h"
#include "sched_test_support.h"

namespace witan {
namespace {

struct RandomCase {
  const char* name;
  TestConfig config;
  int32_t num_priorities;
  int32_t max_prompt_tokens;
  int32_t max_new_tokens;
  int32_t num_prompt_kinds;     // few: much is shared
  bool compresses = false;      // half of the sequences
  bool repeats = false;         // most of these, before
  bool presses = false;         // most of them, when there is no room
  bool judges_prompts = false;  // or most of these, also before the end of the prompt
};

class SchedulerRandomTest : public ::testing::TestWithParam<RandomCase> {};

// Random arrivals, cancellations, failed steps and priorities; the harness checks every plan, every entry that the
// model reads and the integrity of scheduler and cache after every call.
TEST_P(SchedulerRandomTest, EverySequenceEndsWithTheTextItHasAlone) {
  const RandomCase& c = GetParam();
  std::mt19937 random(20240607);
  const auto pick = [&](int32_t least, int32_t most) {
    return std::uniform_int_distribution<int32_t>(least, most)(random);
  };
  SchedulerHarness harness(c.config);
  struct Request {
    std::vector<TokenId> prompt;
    int32_t max_new_tokens;
    std::optional<Dropping> dropping;
  };
  std::map<SequenceId, Request> requests;
  int64_t num_cancelled = 0;
  const auto arrive = [&] {
    std::vector<TokenId> prompt = make_prompt(pick(1, c.max_prompt_tokens), pick(0, c.num_prompt_kinds - 1));
    if (pick(0, 2) == 0) prompt[pick(0, static_cast<int32_t>(prompt.size()) - 1)] = 55555;
    const int32_t max_new_tokens = pick(1, c.max_new_tokens);
    const int32_t priority = pick(1, c.num_priorities);
    std::optional<Dropping> dropping;
    if (c.compresses && pick(0, 1) == 0) dropping = {.every = pick(0, 20)};
    if (c.repeats && dropping) {
      for (int n = pick(0, 3); n > 0; --n) dropping->repetitions.push_back(pick(1, 70));
    }
    if (c.presses && dropping && pick(0, 4) > 0) {
      const KvBudget budget{.ratio = pick(1, 9) / 10.0, .tokens = pick(0, 2) == 0 ? pick(1, 80) : 0};
      dropping = {.pressure = KvPressure{.budget = budget, .every = pick(1, 40)}};
    }
    if (c.judges_prompts && dropping && !dropping->pressure) dropping->prefill_every = 20 * pick(0, 3);
    const SequenceId id = harness.add(prompt, max_new_tokens, priority, dropping);
    requests[id] = {std::move(prompt), max_new_tokens, dropping};
  };
  for (int i = 0; i < 1500; ++i) {
    if (harness.live().size() < 40 && pick(0, 5) == 0) {
      for (int n = pick(1, 6); n > 0; --n) arrive();
    }
    if (!harness.live().empty() && pick(0, 30) == 0) {
      harness.finish(*std::next(harness.live().begin(), pick(0, static_cast<int32_t>(harness.live().size()) - 1)));
      ++num_cancelled;
    }
    if (pick(0, 50) == 0) harness.abandon(harness.schedule());
    harness.step(pick(0, 3) == 0 ? Prefills::kAlone : Prefills::kBesideDecodes);
    if (pick(0, 300) == 0) harness.kv().clear_prefix_cache();
    if (HasFailure()) FAIL() << "in step " << i;
  }
  harness.run_to_end(40 * (c.max_prompt_tokens + c.max_new_tokens));
  EXPECT_EQ(std::ssize(harness.done()) + num_cancelled, std::ssize(requests));
  EXPECT_GT(harness.done().size(), 50);
  for (const auto& [id, text] : harness.done()) {
    const auto& [prompt, max_new_tokens, dropping] = requests.at(id);
    const std::optional<Dropping> done = dropping ? std::optional(harness.dropping(id)) : std::nullopt;
    EXPECT_EQ(text, expected_text(prompt, max_new_tokens, c.config.scheduler.context_length, done)) << id;
  }
  if (c.presses) {
    EXPECT_GT(harness.scheduler().stats().num_judged_for_room, 10);
  }
  EXPECT_EQ(harness.kv().stats().block_bytes_held, harness.kv().stats().block_bytes_cached);
}

INSTANTIATE_TEST_SUITE_P(
    All, SchedulerRandomTest,
    ::testing::Values(
        RandomCase{"Plenty", {.num_rows = 400}, 1, 100, 60, 3}, RandomCase{"Tight", {.num_rows = 9}, 3, 150, 120, 3},
        RandomCase{"TightAndAllDifferent", {.num_rows = 9}, 2, 150, 120, 1000},
        RandomCase{"TightWithoutPrefixCache", {.num_rows = 12, .prefix_cache = false}, 2, 150, 120, 3},
        RandomCase{"OneTokenPerStep",
                   {.num_rows = 12, .scheduler = {.max_step_tokens = 1, .max_sequences = 4, .context_length = 100}},
                   2,
                   20,
                   10,
                   2},
        RandomCase{
            "SmallBudget",
            {.num_rows = 10,
             .scheduler =
                 {.max_step_tokens = 7, .max_mixed_prompt_tokens = 3, .max_sequences = 16, .context_length = 200}},
            2,
            60,
            40,
            2},
        RandomCase{
            "GeneratedEntriesDiffer",
            {.num_rows = 14,
             .scheduler =
                 {.max_step_tokens = 64, .max_sequences = 16, .context_length = 300, .generated_entries_differ = true}},
            2,
            200,
            150,
            2},
        RandomCase{"Compressed", {.num_rows = 12}, 3, 150, 120, 3, true},
        RandomCase{"CompressedInThePrompt", {.num_rows = 16}, 3, 150, 120, 3, true, false, false, true},
        RandomCase{"CompressedWithoutPrefixCache", {.num_rows = 9, .prefix_cache = false}, 3, 150, 120, 3, true},
        RandomCase{"CompressedInSmallSteps",
                   {.num_rows = 14, .scheduler = {.max_step_tokens = 7, .max_sequences = 16, .context_length = 200}},
                   2,
                   100,
                   80,
                   2,
                   true},
        RandomCase{"Repeated", {.num_rows = 12}, 3, 150, 120, 3, true, true},
        RandomCase{"RepeatedWithoutPrefixCache", {.num_rows = 9, .prefix_cache = false}, 3, 150, 120, 3, true, true},
        RandomCase{"RepeatedInSmallSteps",
                   {.num_rows = 14, .scheduler = {.max_step_tokens = 7, .max_sequences = 16, .context_length = 200}},
                   2,
                   100,
                   80,
                   2,
                   true,
                   true},
        RandomCase{"JudgedUnderPressure", {.num_rows = 12}, 3, 150, 120, 3, true, false, true},
        RandomCase{"JudgedUnderPressureOrInThePrompt", {.num_rows = 16}, 3, 150, 120, 3, true, false, true, true},
        RandomCase{"JudgedUnderPressureWithoutPrefixCache",
                   {.num_rows = 9, .prefix_cache = false},
                   3,
                   150,
                   120,
                   3,
                   true,
                   false,
                   true},
        RandomCase{"JudgedUnderPressureInSmallSteps",
                   {.num_rows = 14, .scheduler = {.max_step_tokens = 7, .max_sequences = 16, .context_length = 200}},
                   2,
                   100,
                   80,
                   2,
                   true,
                   false,
                   true},
        RandomCase{"OneSequence",
                   {.num_rows = 12, .scheduler = {.max_step_tokens = 64, .max_sequences = 1, .context_length = 400}},
                   3,
                   40,
                   10,
                   2}),
    [](const auto& test) { return test.param.name; });

// A sequence ends within the steps that it and all those that were there before it take one after the other, a token in
// each step, with all that preemptions make them compute twice.
TEST(SchedulerRandomTest, NoSequenceStarves) {
  std::mt19937 random(7);
  SchedulerHarness harness(
      {.num_rows = 10, .scheduler = {.max_step_tokens = 32, .max_sequences = 8, .context_length = 400}});
  std::map<SequenceId, int32_t> own_steps;
  std::map<SequenceId, int32_t> last_steps;
  for (int32_t step = 0; step < 2000; ++step) {
    if (random() % 8 == 0) {
      const auto num_prompt_tokens = static_cast<int32_t>(1 + random() % 120);
      const auto max_new_tokens = static_cast<int32_t>(1 + random() % 100);
      int32_t last_step = step;
      for (SequenceId before : harness.live()) last_step += own_steps.at(before);
      const SequenceId id =
          harness.add(make_prompt(num_prompt_tokens, static_cast<int32_t>(random() % 50)), max_new_tokens);
      own_steps[id] = num_prompt_tokens + 2 * max_new_tokens;
      last_steps[id] = last_step + own_steps[id];
    }
    harness.step();
    for (SequenceId id : harness.live()) EXPECT_LE(step, last_steps.at(id)) << id;
  }
  EXPECT_GT(harness.done().size(), 60);
  EXPECT_GT(harness.scheduler().stats().num_preemptions, 3);
}

}  // namespace
}  // namespace witan
