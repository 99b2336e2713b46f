#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "sched/in_flight_prefixes.h"
#include "sched/scheduler.h"
#include "sched/sequence.h"
#include "sched/waiting_queue.h"

namespace witan {

// What the files of the scheduler share.
struct Scheduler::State {
  // Who was last refused admission, and what attach_prefix had found for it: as long as that stays, whether there is
  // room is known without asking again.
  struct Refusal {
    SequenceId sequence;
    int32_t num_attached;
    int64_t attached_bytes;  // that attaching made unavailable
  };

  // A plan in the making.
  struct Step {
    StepPlan plan;
    int32_t budget_tokens;

    void add(Sequence& sequence, int32_t num_tokens) {
      if (sequence.reuses()) {
        add_pass(sequence, num_tokens);
      } else {
        add_text(sequence, num_tokens);
      }
      sequence.num_planned = num_tokens;
      budget_tokens -= num_tokens;
      plan.num_tokens += num_tokens;
    }

    void add_pass(const Sequence& sequence, int32_t num_tokens) {
      const ReuseSlice pass = sequence.next_pass();
      plan.slices.push_back({.sequence = sequence.id,
                             .kv_sequence = sequence.reused.document.value_or(*sequence.kv_sequence),
                             .first_token = pass.first,
                             .num_tokens = num_tokens,
                             .reuse = pass});
    }

    void add_text(const Sequence& sequence, int32_t num_tokens) {
      ScheduledSlice slice{.sequence = sequence.id,
                           .kv_sequence = *sequence.kv_sequence,
                           .first_token = sequence.num_computed + sequence.num_repeated,
                           .num_tokens = num_tokens,
                           .samples = !sequence.repeats() && num_tokens == sequence.num_uncomputed(),
                           .compresses = sequence.awaits_compression_after(num_tokens),
                           .num_uncommitted = sequence.num_repeated};
      slice.judges = slice.compresses && sequence.next_compression()->judges;
      if (sequence.repeats()) slice.repetition = static_cast<int32_t>(sequence.num_repetitions);
      plan.slices.push_back(slice);
    }

    // One whose entries are judged, and nothing computed.
    void add_judgement(Sequence& sequence) {
      plan.slices.push_back({.sequence = sequence.id,
                             .kv_sequence = *sequence.kv_sequence,
                             .first_token = sequence.num_computed,
                             .compresses = true,
                             .judges = true});
    }

    void remove(Sequence& sequence) {
      if (sequence.num_planned == 0) return;
      std::erase_if(plan.slices, [&](const ScheduledSlice& slice) { return slice.sequence == sequence.id; });
      budget_tokens += sequence.num_planned;
      plan.num_tokens -= std::exchange(sequence.num_planned, 0);
    }
  };

  State(KvCache& cache, SchedulerConfig scheduler_config);

  Sequence& at(SequenceId id) const;
  int64_t max_running() const { return std::min(config.max_sequences, config.max_step_tokens); }

  // Each of the first three says false where entries are to be judged first: they are all that the step plans then.
  [[nodiscard]] bool make_room_for_waiting(Step& step);
  [[nodiscard]] bool plan_decodes(Step& step);
  void limit_prefills(Step& step, Prefills prefills);
  [[nodiscard]] bool plan_prefills(Step& step);
  void plan_admissions(Step& step);
  void plan_inputs(Step& step) const;

  int64_t bytes_freed_by_judging(const Sequence& sequence) const;
  bool judge_for_room(Step& step);
  int32_t reserve_next(Sequence& sequence, int32_t budget_tokens);
  int32_t reserve_up_to(const Sequence& sequence, int32_t num_tokens);
  void add_computed(Sequence& sequence, int32_t num_tokens);
  std::optional<int32_t> reserve_chunk(Step& step, Sequence& sequence);
  void commit_repeated(Sequence& sequence);
  void preempt_least_valuable(Step& step);
  void preempt(Sequence& victim);
  void stop_running(Sequence& sequence);
  [[noreturn]] void fail_alone(const Sequence& sequence) const;

  enum class Admission { kAdmitted, kFollows, kNoRoom };
  Admission try_admit(Step& step, Sequence& sequence, InFlightPrefixes& in_flight);
  Admission try_admit_compressed(Step& step, Sequence& sequence, const KvCompressedPrefix& prefix);
  Admission admit(Step& step, Sequence& sequence, SequenceId kv_sequence, int32_t num_attached);
  void start_running(Sequence& sequence, SequenceId kv_sequence, int32_t num_attached);
  void forget_progress(Sequence& sequence) const;
  void pass_point(Sequence& sequence, int64_t num_entries) const;

  // scheduler_room.cpp: what sequences hold and need.
  int64_t missing_bytes(const Sequence& sequence, int32_t num_attached, int64_t attached_bytes,
                        int64_t available_bytes) const;
  int64_t bytes_alone(const Sequence& sequence) const;
  int64_t reuse_bytes(const Sequence& sequence) const;
  int64_t peak_bytes(const Sequence& sequence, int64_t num_tokens, int64_t chunk) const;
  int64_t copied_bytes(const Sequence& sequence, const KvCompressionPoint& point) const;
  int64_t bytes_aside(const Sequence& sequence, const KvCompressionPoint& point) const;
  int64_t beginning_bytes(const Sequence& sequence, const KvCompressionPoint& point, bool is_first) const;
  int32_t mean_entries(SequenceId kv_sequence) const;
  int64_t mean_demoted(SequenceId kv_sequence) const;
  struct HeadSum {
    int64_t sum = 0;
    int64_t num_heads = 0;
  };
  // Over the kv heads of layers without a window.
  HeadSum sum_over_heads(FunctionRef<int64_t(int32_t layer, int32_t head)> value) const;
  int64_t missing_since_refusal(const Sequence& sequence) const;

  // scheduler_reuse.cpp: the passes of reuse plans.
  static void check_reuse(const ReusePlan& plan, int32_t num_prompt_tokens, const CompressionPlan& compression);
  [[nodiscard]] bool advance_reuse(Sequence& sequence);
  void begin_reuse(Sequence& sequence);
  int32_t attach_document(const Sequence& sequence, const KvSpan& place, SequenceId document);
  void open_document(Sequence& sequence);
  void close_document(Sequence& sequence);
  void commit_pass(Sequence& sequence, const ScheduledSlice& slice);
  void finish_reuse(Sequence& sequence);

  KvCache& kv;
  SchedulerConfig config;
  int64_t row_bytes;  // of one block of every table

  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences;
  std::vector<Sequence*> running;  // most valuable first
  WaitingQueue waiting;
  std::optional<Refusal> refusal;
  struct Pace {
    int64_t num_steps_since_mixed = 0;  // in which sequences decoded and nobody's prefill went on
    int64_t num_steps_per_chunk = 1;    // of a prefill beside decodes, as it was last
  };
  Pace pace;
  int64_t side_bytes_to_come = 0;  // of those that are admitted in this plan, which have not taken them yet
  SequenceId next_id = 1;
  bool plan_is_open = false;
  int64_t num_preemptions = 0;
  int64_t num_judged_for_room = 0;
  int64_t num_recomputed_tokens = 0;
  int64_t num_prefix_hit_tokens = 0;
};

}  // namespace witan
