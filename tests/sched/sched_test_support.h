#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kv/kv_cache.h"
#include "memory/memory_pool.h"
#include "sched/scheduler.h"

namespace witan {

inline constexpr int32_t kVocabSize = 97;

// What the model of these tests says after `tokens`: depends on every one of them and its place.
inline TokenId next_token(std::span<const TokenId> tokens) {
  uint64_t hash = 1;
  for (TokenId token : tokens) hash = (hash ^ static_cast<uint64_t>(token)) * 0x9e3779b97f4a7c15u + 1;
  return static_cast<TokenId>((hash >> 32) % kVocabSize);
}

// Prompt of `num_tokens`; prompts of different `kind` differ from the first token on.
inline std::vector<TokenId> make_prompt(int32_t num_tokens, int32_t kind = 0) {
  std::vector<TokenId> prompt(num_tokens);
  for (int32_t i = 0; i < num_tokens; ++i) prompt[i] = (1000 * kind + 7 * i) % 100003;
  return prompt;
}

struct TestConfig {
  int64_t num_rows = 64;  // blocks that the KV cache may hold; the test's cache has one table
  SchedulerConfig scheduler = {.max_step_tokens = 64, .max_sequences = 16, .context_length = 1024};
  bool prefix_cache = true;
};

inline TestConfig with_budget(int32_t max_step_tokens, int64_t num_rows = 64) {
  TestConfig config;
  config.scheduler.max_step_tokens = max_step_tokens;
  config.num_rows = num_rows;
  return config;
}

// How a sequence is compressed: what is left of it loses the entries that are one more than a multiple of three, at the
// end of the prompt, whenever `every` tokens were generated since, and at every prefill_every tokens of the prompt, if
// these are not 0. Or under pressure, where the scheduler says so: then it loses those in the middle.
struct Dropping {
  int32_t every = 0;
  int32_t prefill_every = 0;
  std::vector<int32_t> repetitions = {};  // lengths, before the first time
  std::optional<KvPressure> pressure = {};
  std::set<int32_t> judged_at = {};  // under pressure: the text's tokens when it was

  // When num_tokens are computed, of which num_entries have entries.
  std::vector<int32_t> kept(int32_t num_entries, int32_t num_tokens) const {
    const int32_t num_kept = pressure ? pressure->budget.of(num_tokens) : 0;
    std::vector<int32_t> kept;
    for (int32_t i = 0; i < num_entries; ++i) {
      const bool is_in_the_middle = i >= num_kept / 2 && i < num_entries - (num_kept + 1) / 2;
      if (pressure ? !is_in_the_middle : i % 3 != 1) kept.push_back(i);
    }
    return kept;
  }

  bool judges_at(int32_t num_tokens, int32_t num_prompt_tokens) const {
    if (pressure) return judged_at.contains(num_tokens);
    const int32_t num_generated = num_tokens - num_prompt_tokens;
    if (num_generated < 0) return prefill_every > 0 && num_tokens % prefill_every == 0;
    return num_prompt_tokens > 1 &&
           (num_generated == 0 || (num_generated > 0 && every > 0 && num_generated % every == 0));
  }

  // What a sequence has of `tokens`, all of them computed, of which the first are its prompt.
  std::vector<TokenId> left(std::span<const TokenId> tokens, int32_t num_prompt_tokens) const {
    std::vector<TokenId> left;
    for (int32_t i = 0; i < std::ssize(tokens); ++i) {
      left.push_back(tokens[i]);
      if (!judges_at(i + 1, num_prompt_tokens)) continue;
      std::vector<TokenId> after;
      for (const int32_t entry : kept(static_cast<int32_t>(left.size()), i + 1)) after.push_back(left[entry]);
      left = std::move(after);
    }
    return left;
  }

  CompressionPlan plan(int32_t num_prompt_tokens, int32_t num_tokens) const {
    CompressionPlan plan{.points = {}, .num_query_tokens = std::min(5, num_prompt_tokens), .pressure = pressure};
    if (pressure) return plan;
    int32_t num_entries = 0;
    for (int32_t n = 1; n <= num_tokens; ++n) {
      ++num_entries;
      if (!judges_at(n, num_prompt_tokens)) continue;
      num_entries = static_cast<int32_t>(kept(num_entries, n).size());
      plan.points.push_back({.num_tokens = n, .num_kept = num_entries});
    }
    if (judges_at(num_prompt_tokens, num_prompt_tokens)) plan.repetitions = repetitions;
    if (prefill_every > 0) plan.shared_as = "every " + std::to_string(prefill_every);
    return plan;
  }
};

// What a sequence reuses of its prompt. The entry of a token that was copied from a document, and not computed again,
// is the token and kMoved.
struct Reusing {
  static constexpr TokenId kMoved = 300000;

  std::vector<KvSpan> documents;
  std::vector<int32_t> recomputed;  // tokens of the prompt, all between the documents among them
  bool probes = false;
  bool probes_alone = false;

  std::vector<TokenId> entries(std::span<const TokenId> tokens) const {
    std::vector<TokenId> entries(tokens.begin(), tokens.end());
    for (const KvSpan& document : documents) {
      for (int32_t i = document.begin; i < std::min(document.end, static_cast<int32_t>(tokens.size())); ++i) {
        if (std::ranges::find(recomputed, i) == recomputed.end()) entries[i] += kMoved;
      }
    }
    return entries;
  }
};

MATCHER_P4(IsSlice, sequence, first_token, num_tokens, samples, "") {
  *result_listener << "sequence " << arg.sequence << " tokens " << arg.first_token << "+" << arg.num_tokens
                   << (arg.samples ? " samples" : "");
  return arg.sequence == sequence && arg.first_token == first_token && arg.num_tokens == num_tokens &&
         arg.samples == samples;
}

// A scheduler over a small real KV cache, with a model whose KV entry of a token is the token itself. The model reads
// all of a sequence from the KV cache, so a wrong block, role or order shows as wrong text.
class SchedulerHarness {
 public:
  explicit SchedulerHarness(const TestConfig& config)
      : config_(config), kv_(pool_, kv_config(config)), scheduler_(kv_, config.scheduler) {}

  KvCache& kv() { return kv_; }
  Scheduler& scheduler() { return scheduler_; }

  SequenceId add(std::vector<TokenId> prompt, int32_t max_new_tokens, int32_t priority = 0,
                 std::optional<Dropping> dropping = {}, int64_t side_bytes = 0, std::optional<Reusing> reusing = {}) {
    SequenceRequest request{.prompt = std::move(prompt), .max_new_tokens = max_new_tokens, .priority = priority};
    request.side_bytes = side_bytes;
    const auto num_prompt_tokens = static_cast<int32_t>(request.prompt.size());
    if (dropping) request.compression = dropping->plan(num_prompt_tokens, num_prompt_tokens + max_new_tokens - 1);
    if (reusing) {
      request.reuse = ReusePlan{
          .documents = reusing->documents,
          .probes_alone = reusing->probes_alone,
          .probes = reusing->probes,
          .num_recomputed = static_cast<int32_t>(reusing->recomputed.size()),
          .copy = [this](SequenceId from, SequenceId to, const KvSpan& place) { copy_moved(from, to, place); }};
    }
    const SequenceId id = scheduler_.add(std::move(request));
    if (dropping) dropping_[id] = *dropping;
    if (reusing) reusing_[id] = *reusing;
    priorities_[id] = priority;
    live_.insert(id);
    check();
    return id;
  }

  void finish(SequenceId id) {
    scheduler_.finish(id);
    live_.erase(id);
    running_.erase(id);
    check();
  }

  StepPlan schedule(Prefills prefills = Prefills::kBesideDecodes) {
    const std::optional<SequenceId> judgeable = find_judgeable();
    StepPlan plan = scheduler_.schedule(prefills);
    if (judgeable) {
      EXPECT_THAT(plan.preempted, ::testing::IsEmpty()) << "sequence " << *judgeable << " may be judged";
    }
    for (const ScheduledSlice& slice : plan.slices) kv_sequences_[slice.sequence] = slice.kv_sequence;
    for (SequenceId id : plan.preempted) running_.erase(id);
    for (SequenceId id : plan.admitted) running_.insert(id);
    check_plan(plan, prefills);
    check();
    return plan;
  }

  void commit(const StepPlan& plan) {
    std::vector<TokenId> sampled;
    for (const ScheduledSlice& slice : plan.slices) compute(slice, sampled);
    scheduler_.commit(plan, sampled);
    check();
    for (const ScheduledSlice& slice : plan.slices) {
      if (slice.compresses && running_.contains(slice.sequence)) compress(slice);
    }
  }

  void abandon(const StepPlan& plan) {
    scheduler_.abandon(plan);
    check();
  }

  // schedule, compute, commit, and finish what has all its tokens.
  StepPlan step(Prefills prefills = Prefills::kBesideDecodes) {
    StepPlan plan = schedule(prefills);
    commit(plan);
    finish_complete(plan);
    return plan;
  }

  void finish_complete(const StepPlan& plan) {
    for (const ScheduledSlice& slice : plan.slices) {
      if (!live_.contains(slice.sequence)) continue;
      const std::span<const TokenId> tokens = scheduler_.tokens(slice.sequence);
      if (std::ssize(tokens) < scheduler_.max_tokens(slice.sequence)) continue;
      done_[slice.sequence].assign(tokens.begin(), tokens.end());
      finish(slice.sequence);
    }
  }

  // Steps until nothing is left; the number of steps.
  int run_to_end(int max_steps) {
    int num_steps = 0;
    while (scheduler_.has_work() && num_steps < max_steps) {
      step();
      ++num_steps;
    }
    EXPECT_FALSE(scheduler_.has_work()) << "after " << num_steps << " steps";
    return num_steps;
  }

  const std::map<SequenceId, std::vector<TokenId>>& done() const { return done_; }
  const Dropping& dropping(SequenceId id) const { return dropping_.at(id); }
  bool is_live(SequenceId id) const { return live_.contains(id); }
  const std::set<SequenceId>& live() const { return live_; }
  const std::set<SequenceId>& running() const { return running_; }
  bool more_valuable(SequenceId a, SequenceId b) const {
    const int32_t priority_a = priorities_.at(a);
    const int32_t priority_b = priorities_.at(b);
    return priority_a != priority_b ? priority_a > priority_b : a < b;
  }

  // Tells that a sequence began to run in a schedule() that gave no plan.
  void note_running(SequenceId id) { running_.insert(id); }

  // Takes num_rows of the KV cache away from the scheduler, until give_back_rows().
  void take_rows(int32_t num_rows) {
    taken_ = kv_.create();
    ASSERT_TRUE(kv_.reserve(*taken_, num_rows * kKvBlockSize));
  }
  void give_back_rows() { kv_.release(*std::exchange(taken_, std::nullopt)); }

 private:
  static KvCacheConfig kv_config(const TestConfig& config) {
    const KvLayerSpec layer = {.num_kv_heads = 1, .key_dim = 1, .value_dim = 1};
    const KvBlockFormat format = {KvCodec::kF32, layer.key_dim, layer.value_dim, false};
    return {.layers = {layer},
            .codec = KvCodec::kF32,
            .capacity_bytes = static_cast<size_t>(config.num_rows * format.block_bytes()),
            .prefix_cache = config.prefix_cache};
  }

  std::vector<TokenId> read(SequenceId sequence, int32_t num_entries) const {
    const KvView view = kv_.view(sequence, 0, 0, num_entries);
    std::vector<TokenId> entries(view.num_entries);
    for (int32_t i = 0; i < view.num_entries; ++i) {
      entries[i] =
          static_cast<TokenId>(reinterpret_cast<const float*>(view.blocks[i / kKvBlockSize])[i % kKvBlockSize]);
    }
    return entries;
  }

  void write(SequenceId sequence, int32_t entry, TokenId token) {
    const KvCache::Slot slot = kv_.slot(sequence, 0, 0, entry);
    reinterpret_cast<float*>(slot.block)[slot.slot] = static_cast<float>(token);
  }

  void copy_moved(SequenceId from, SequenceId to, const KvSpan& place) {
    const std::vector<TokenId> document = read(from, kv_.num_tokens(from));
    ASSERT_EQ(std::ssize(document), place.end - place.begin);
    for (int32_t i = place.begin; i < place.end; ++i) write(to, i, document[i - place.begin] + Reusing::kMoved);
  }

  // A slice of a pass: a document's tokens by themselves, or tokens of the text, in place.
  void reuse(const ScheduledSlice& slice) {
    using enum ReuseSlice::Pass;
    const Reusing& reusing = reusing_.at(slice.sequence);
    const ReuseSlice& pass = *slice.reuse;
    const std::span<const TokenId> tokens = scheduler_.tokens(slice.sequence);
    const int32_t first = reusing.documents.front().begin;
    const int32_t end = reusing.documents.back().end;
    EXPECT_FALSE(slice.samples || slice.compresses) << slice.sequence;
    if (pass.pass == kDocument || pass.pass == kProbeAlone) {
      const KvSpan& place = reusing.documents[pass.document];
      const std::span<const TokenId> document = tokens.subspan(place.begin, place.end - place.begin);
      if (pass.pass == kDocument) {
        for (int32_t i = pass.first; i < pass.first + slice.num_tokens; ++i) write(slice.kv_sequence, i, document[i]);
      } else {
        EXPECT_TRUE(reusing.probes_alone);
        EXPECT_EQ(kv_.num_tokens(slice.kv_sequence), std::ssize(document));
      }
      EXPECT_THAT(read(slice.kv_sequence, pass.first + slice.num_tokens),
                  ::testing::ElementsAreArray(document.first(pass.first + slice.num_tokens)));
      return;
    }
    EXPECT_EQ(kv_.num_tokens(slice.kv_sequence), first);
    const std::vector<TokenId> entries = read(slice.kv_sequence, end);
    for (const KvSpan& place : reusing.documents) {
      for (int32_t i = place.begin; i < place.end; ++i) {
        const auto again = std::ranges::find(reusing.recomputed, i) - reusing.recomputed.begin();
        const bool is_computed = pass.pass == kRecompute && again < pass.first;
        EXPECT_EQ(entries[i], is_computed ? tokens[i] : tokens[i] + Reusing::kMoved) << i;
      }
    }
    if (pass.pass == kProbe) {
      EXPECT_TRUE(reusing.probes);
      EXPECT_LE(pass.first + slice.num_tokens, end - first);
      return;
    }
    for (int32_t i = pass.first; i < pass.first + slice.num_tokens; ++i) {
      write(slice.kv_sequence, reusing.recomputed[i], tokens[reusing.recomputed[i]]);
    }
  }

  // Writes the entries of tokens behind those that the sequence has, and returns all of them.
  std::vector<TokenId> write(const ScheduledSlice& slice, std::span<const TokenId> tokens) {
    const int32_t num_entries = kv_.num_entries(slice.kv_sequence, 0, 0) + slice.num_uncommitted;
    for (int32_t i = 0; i < slice.num_tokens; ++i) write(slice.kv_sequence, num_entries + i, tokens[i]);
    return read(slice.kv_sequence, num_entries + slice.num_tokens);
  }

  // A slice of a repetition: its tokens are found nowhere else, and see the prompt and those before them.
  void repeat(const ScheduledSlice& slice) {
    const std::vector<int32_t>& lengths = dropping_.at(slice.sequence).repetitions;
    auto& [repetition, num_repeated] = repeated_[slice.sequence];
    ASSERT_EQ(*slice.repetition, repetition);
    ASSERT_EQ(slice.num_uncommitted, num_repeated);
    ASSERT_EQ(slice.first_token, scheduler_.num_prompt_tokens(slice.sequence) + num_repeated);
    ASSERT_LT(repetition, std::ssize(lengths));
    num_repeated += slice.num_tokens;
    const std::span<const TokenId> tokens = scheduler_.tokens(slice.sequence);
    std::vector<TokenId> expected(tokens.begin(), tokens.begin() + slice.first_token - slice.num_uncommitted);
    for (int32_t i = 0; i < num_repeated; ++i) expected.push_back(200000 + 1000 * repetition + i);
    EXPECT_EQ(write(slice, std::span(expected).last(slice.num_tokens)), expected) << "sequence " << slice.sequence;
    ASSERT_LE(num_repeated, lengths[repetition]);
    if (num_repeated == lengths[repetition]) repeated_[slice.sequence] = {repetition + 1, 0};
    EXPECT_EQ(slice.compresses, repeated_[slice.sequence] == std::pair(static_cast<int32_t>(lengths.size()), 0));
    EXPECT_FALSE(slice.samples);
  }

  void compute(const ScheduledSlice& slice, std::vector<TokenId>& sampled) {
    if (slice.reuse) return reuse(slice);
    ASSERT_EQ(kv_.num_tokens(slice.kv_sequence), slice.first_token - slice.num_uncommitted);
    if (slice.repetition) return repeat(slice);
    const std::span<const TokenId> tokens = scheduler_.tokens(slice.sequence);
    const int32_t end = slice.first_token + slice.num_tokens;
    const std::vector<TokenId> seen = write(slice, tokens.subspan(slice.first_token, slice.num_tokens));
    std::vector<TokenId> expected(tokens.begin(), tokens.begin() + slice.first_token);
    if (const auto found = reusing_.find(slice.sequence); found != reusing_.end()) {
      expected = found->second.entries(expected);
    }
    if (const auto found = dropping_.find(slice.sequence); found != dropping_.end()) {
      const int32_t num_prompt_tokens = scheduler_.num_prompt_tokens(slice.sequence);
      expected = found->second.left(expected, num_prompt_tokens);
      for (int32_t n = slice.first_token + 1; n < end; ++n) {
        EXPECT_FALSE(found->second.judges_at(n, num_prompt_tokens)) << "sequence " << slice.sequence << " at " << n;
      }
      const bool repeats_first = end == num_prompt_tokens && !found->second.repetitions.empty();
      if (end == num_prompt_tokens) repeated_[slice.sequence] = {};
      if (slice.num_tokens > 0) {
        EXPECT_EQ(slice.compresses, found->second.judges_at(end, num_prompt_tokens) && !repeats_first);
      }
    }
    expected.insert(expected.end(), tokens.begin() + slice.first_token, tokens.begin() + end);
    EXPECT_EQ(seen, expected) << "sequence " << slice.sequence;
    EXPECT_EQ(slice.samples, end == std::ssize(tokens));
    if (slice.samples) sampled.push_back(next_token(seen));
  }

  void compress(const ScheduledSlice& slice) {
    if (std::ssize(scheduler_.tokens(slice.sequence)) >= scheduler_.max_tokens(slice.sequence)) return;  // it ends
    std::vector<SequenceId> preempted;
    Dropping& dropping = dropping_.at(slice.sequence);
    const int32_t num_tokens = kv_.num_tokens(slice.kv_sequence);
    const int32_t num_entries = kv_.num_entries(slice.kv_sequence, 0, 0);
    const std::vector<std::vector<int32_t>> kept{dropping.kept(num_entries, num_tokens)};
    const int64_t available_bytes = kv_.available_bytes();
    const bool is_for_room = slice.num_tokens == 0;
    EXPECT_TRUE(!is_for_room || may_be_judged(slice.sequence)) << slice.sequence;
    const bool is_done = scheduler_.compress(
        slice.sequence, [&](SequenceId kv_sequence) { return kv_.keep(kv_sequence, kept); }, preempted);
    if (is_for_room) {
      EXPECT_THAT(preempted, ::testing::IsEmpty());
      if (is_done) {
        dropping.judged_at.insert(num_tokens);
        EXPECT_GT(kv_.available_bytes(), available_bytes);
      }
      tried_at_[slice.sequence] = num_tokens;
    } else {
      EXPECT_EQ(is_done, std::ranges::count(preempted, slice.sequence) == 0);
    }
    for (const SequenceId id : preempted) {
      EXPECT_TRUE(id == slice.sequence || more_valuable(slice.sequence, id));
      running_.erase(id);
    }
    check();
  }

  // Whether a running sequence has its prompt and all but one token computed, and `every` tokens more than when its
  // entries were judged last.
  bool may_be_judged(SequenceId id) const {
    const auto found = dropping_.find(id);
    if (found == dropping_.end() || !found->second.pressure || !kv_sequences_.contains(id)) return false;
    const int32_t num_tokens = kv_.num_tokens(kv_sequences_.at(id));
    const auto tried = tried_at_.find(id);
    return num_tokens + 1 == std::ssize(scheduler_.tokens(id)) && num_tokens >= scheduler_.num_prompt_tokens(id) &&
           (tried == tried_at_.end() || num_tokens - tried->second >= found->second.pressure->every);
  }

  // One that may be judged, which frees something.
  std::optional<SequenceId> find_judgeable() const {
    for (const SequenceId id : running_) {
      if (!may_be_judged(id)) continue;
      const int32_t num_kept = dropping_.at(id).pressure->budget.of(kv_.num_tokens(kv_sequences_.at(id)));
      if (kv_.bytes_freed_by_keeping(kv_sequences_.at(id), num_kept) > 0) return id;
    }
    return std::nullopt;
  }

  // What holds for every plan: the budget, one slice per running sequence, everyone who decodes gets a token and the
  // most valuable running sequence goes on, unless the step was to be of decodes alone.
  void check_plan(const StepPlan& plan, Prefills prefills) {
    EXPECT_EQ(plan.empty(), live_.empty());
    int32_t num_tokens = 0;
    std::set<SequenceId> planned;
    for (const ScheduledSlice& slice : plan.slices) {
      num_tokens += slice.num_tokens;
      EXPECT_TRUE(slice.num_tokens > 0 || (slice.judges && plan.slices.size() == 1)) << slice.sequence;
      EXPECT_TRUE(running_.contains(slice.sequence)) << slice.sequence;
      EXPECT_TRUE(planned.insert(slice.sequence).second) << slice.sequence;
    }
    EXPECT_EQ(plan.num_tokens, num_tokens);
    EXPECT_LE(num_tokens, config_.scheduler.max_step_tokens);
    EXPECT_LE(std::ssize(running_), config_.scheduler.max_sequences);
    for (SequenceId id : plan.admitted) EXPECT_TRUE(planned.contains(id));
    const auto less = [&](SequenceId a, SequenceId b) { return more_valuable(a, b); };
    if (!plan.empty() && plan.num_tokens == 0) {
      EXPECT_EQ(plan.num_decodes, 0);
      EXPECT_THAT(plan.admitted, ::testing::IsEmpty());
    } else if (prefills == Prefills::kAlone && plan.num_decodes > 0) {
      EXPECT_EQ(plan.num_tokens, plan.num_decodes);
    } else {
      EXPECT_TRUE(running_.empty() || planned.contains(*std::ranges::min_element(running_, less)));
    }
    for (SequenceId preempted : plan.preempted) {
      for (SequenceId id : running_) EXPECT_TRUE(more_valuable(id, preempted)) << id << " " << preempted;
    }
  }

  void check() {
    scheduler_.check_integrity();
    kv_.check_integrity();
    EXPECT_EQ(scheduler_.stats().num_running, std::ssize(running_));
    EXPECT_EQ(scheduler_.stats().num_waiting, std::ssize(live_) - std::ssize(running_));
  }

  TestConfig config_;
  MemoryPool pool_{size_t{64} << 20};
  KvCache kv_;
  Scheduler scheduler_;
  std::map<SequenceId, int32_t> priorities_;
  std::set<SequenceId> live_;
  std::set<SequenceId> running_;
  std::map<SequenceId, Dropping> dropping_;
  std::map<SequenceId, Reusing> reusing_;
  std::map<SequenceId, std::pair<int32_t, int32_t>> repeated_;  // repetitions that are over, and tokens of the next
  std::map<SequenceId, SequenceId> kv_sequences_;
  std::map<SequenceId, int32_t> tried_at_;  // tokens when it was to be judged for room last
  std::map<SequenceId, std::vector<TokenId>> done_;
  std::optional<SequenceId> taken_;
};

// The text that follows from a prompt when nothing else runs.
inline std::vector<TokenId> expected_text(std::vector<TokenId> prompt, int32_t max_new_tokens, int32_t context_length,
                                          std::optional<Dropping> dropping = {}, std::optional<Reusing> reusing = {}) {
  const auto num_prompt_tokens = static_cast<int32_t>(prompt.size());
  for (int32_t i = 0; i < max_new_tokens && std::ssize(prompt) < context_length; ++i) {
    std::vector<TokenId> seen = reusing ? reusing->entries(prompt) : prompt;
    if (dropping) {  // what is dropped when the last token is computed is seen once more
      seen = dropping->left(std::span(seen).first(prompt.size() - 1), num_prompt_tokens);
      seen.push_back(prompt.back());
    }
    prompt.push_back(next_token(seen));
  }
  return prompt;
}

}  // namespace witan
