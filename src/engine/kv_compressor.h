#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/kv_request.h"
#include "engine/loaded_model.h"
#include "kv/policy/kv_compression.h"
#include "kv/policy/kv_evidence.h"
#include "kv/policy/kv_policy.h"
#include "sched/scheduler.h"

namespace witan {

// The KV policy of one choice of a request, from submission to its end.
struct RunningKvPolicy {
  std::optional<KvPolicy> policy;  // none: the entries are left alone
  KvText text;
  int32_t most_judged = 0;      // entries of a head at once
  bool under_pressure = false;  // when is not known
  std::optional<KvDemotion> demotion;

  KvEvidence evidence;            // while the choice runs: what the policy wants when it judges next
  int32_t num_judged_tokens = 0;  // the text's, when it did so last
  std::string error;              // why that could not be had
};

// Of a request whose policy acts.
RunningKvPolicy running_policy(const KvRequest& request);

// What becomes of a sequence's entries at a point of its compression plan.
struct KvDecision {
  KvChoice choice = {};        // where they are judged
  bool uses_evidence = false;  // what was collected has served, and other is wanted then; known once it is applied
};

// Makes the KV policies of running sequences act: what they want to know is collected while tokens are computed, and
// at the points of compression plans entries are judged, dropped and demoted, with the room that the scheduler
// makes. Holds nothing of its own. Of each sequence:
//
//   (begin (follow_text | decide (apply (go_on report)?)?)*)*
//
// Thread safety: all but decide() are called with the mutex held that guards the scheduler and the KV cache.
class KvCompressor {
 public:
  // Both must outlive it.
  KvCompressor(LoadedModel& model, Scheduler& scheduler) : model_(model), scheduler_(scheduler) {}

  // The sequence was admitted, perhaps again: it collects from its first token on. Where there is no memory for
  // that, kv.error says so; likewise in go_on().
  void begin(SequenceId sequence, RunningKvPolicy& kv);
  // The slice is computed next.
  static void follow_text(const ScheduledSlice& slice, RunningKvPolicy& kv);

  // Behind the commit of a slice that reached a point. `mutex` is not held, as what is read belongs to the step, but
  // taken to bring together entries that lie aside, before any is judged, and to clear the prefix cache where there is
  // no memory otherwise. Throws Error(kOutOfMemory), also for
  // kv.error.
  KvDecision decide(const ScheduledSlice& slice, const RunningKvPolicy& kv, std::mutex& mutex);
  // As Scheduler::compress: false where nothing was dropped or demoted; adds those that were preempted for room.
  bool apply(const ScheduledSlice& slice, const RunningKvPolicy& kv, KvDecision& decision,
             std::vector<SequenceId>& preempted);
  // Behind an apply() that did it, and once those that were preempted have given up their evidence: collects what
  // the policy wants next.
  void go_on(const ScheduledSlice& slice, RunningKvPolicy& kv, const KvDecision& decision);
  // What was made of the text so far, but for the seconds that it took now. `last` was reported before, if any.
  KvCompression report(const ScheduledSlice& slice, const KvDecision& decision, const KvCompression* last) const;

 private:
  void collect_evidence(SequenceId sequence, RunningKvPolicy& kv, int32_t first_token);
  bool chooses_channels(SequenceId kv_sequence, const RunningKvPolicy& kv) const;
  bool drop(const ScheduledSlice& slice, const RunningKvPolicy& kv, const KvChoice& choice);
  // Older entries, or with a choice those that do not stay.
  bool demote(SequenceId kv_sequence, const RunningKvPolicy& kv, const KvChoice* choice);
  void keep_evidence(KvEvidence& evidence, const KvChoice& choice) const;
  void count_held(SequenceId kv_sequence, KvCompression& report) const;

  LoadedModel& model_;
  Scheduler& scheduler_;
};

}  // namespace witan
