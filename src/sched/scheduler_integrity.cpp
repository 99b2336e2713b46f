#include <algorithm>

#include "base/check.h"
#include "sched/scheduler_state.h"

namespace witan {

void Scheduler::check_integrity() const {
  const State& state = *state_;
  WITAN_CHECK(std::ranges::is_sorted(state.running, MoreValuable()), "running sequences are out of order");
  WITAN_CHECK(std::ssize(state.running) <= state.max_running(), "{} sequences run, {} may", state.running.size(),
              state.max_running());
  int64_t num_running = 0;
  int32_t num_planned_tokens = 0;
  int32_t num_judged = 0;
  for (const auto& [id, sequence] : state.sequences) {
    WITAN_CHECK(sequence->id == id && sequence->tokens.size() == sequence->kv_roles.size() &&
                    sequence->num_tokens() <= sequence->max_tokens && sequence->num_computed < sequence->num_tokens(),
                "sequence {} has {} of {} tokens, {} roles, {} computed", id, sequence->num_tokens(),
                sequence->max_tokens, sequence->kv_roles.size(), sequence->num_computed);
    num_planned_tokens += sequence->num_planned;
    num_judged += sequence->is_judged_for_room;
    if (sequence->kv_sequence) {
      ++num_running;
      WITAN_CHECK(std::ranges::binary_search(state.running, sequence.get(), MoreValuable()),
                  "sequence {} has a KV sequence and is not running", id);
      WITAN_CHECK(state.kv.num_tokens(*sequence->kv_sequence) == sequence->num_computed,
                  "sequence {}: {} entries in the KV cache, {} computed", id,
                  state.kv.num_tokens(*sequence->kv_sequence), sequence->num_computed);
      const ReuseProgress& reused = sequence->reused;
      WITAN_CHECK(!reused.document || sequence->reuses(), "sequence {} has a document open at token {}", id,
                  sequence->num_computed);
      WITAN_CHECK(!reused.document || state.kv.num_tokens(*reused.document) == reused.num_document_tokens,
                  "sequence {}: a document of {} tokens, {} counted", id, state.kv.num_tokens(*reused.document),
                  reused.num_document_tokens);
      for (const Sequence* follower : sequence->followers) {
        WITAN_CHECK(follower->leader == sequence.get() && follower->num_common_tokens > sequence->num_computed &&
                        follower->num_common_tokens <= sequence->num_tokens() &&
                        MoreValuable()(sequence.get(), follower),
                    "sequence {} waits wrongly for {} tokens of {}", follower->id, follower->num_common_tokens, id);
      }
    } else {
      WITAN_CHECK(state.waiting.contains(*sequence), "sequence {} is lost", id);
      WITAN_CHECK(sequence->num_computed == 0 && sequence->num_planned == 0 && sequence->followers.empty() &&
                      !sequence->reused.document,
                  "sequence {} waits with {} tokens computed, {} planned, {} followers", id, sequence->num_computed,
                  sequence->num_planned, sequence->followers.size());
    }
  }
  WITAN_CHECK(num_running == std::ssize(state.running), "{} sequences run, {} counted", num_running,
              state.running.size());
  WITAN_CHECK(num_running + state.waiting.size() == std::ssize(state.sequences), "{} run, {} wait, {} exist",
              num_running, state.waiting.size(), state.sequences.size());
  const bool may_be_open = num_planned_tokens > 0 || num_judged > 0;
  WITAN_CHECK(state.plan_is_open ? may_be_open : num_planned_tokens == 0,
              "{} tokens planned, {} sequences judged, a plan is {}open", num_planned_tokens, num_judged,
              state.plan_is_open ? "" : "not ");
}

}  // namespace witan
