// The passes of reuse plans: documents whose KV entries are found elsewhere or computed by themselves.
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "sched/scheduler_state.h"

namespace witan {

void Scheduler::State::check_reuse(const ReusePlan& plan, int32_t num_prompt_tokens,
                                   const CompressionPlan& compression) {
  int32_t reached = 1;
  int32_t num_between = 0;
  WITAN_CHECK(!plan.documents.empty(), "no document");
  for (const KvSpan& place : plan.documents) {
    const int32_t num_tokens = place.end - place.begin;
    WITAN_CHECK(place.begin >= reached && num_tokens > 0 && num_tokens % kKvBlockSize == 0,
                "a document of tokens {} to {}, behind {}", place.begin, place.end, reached);
    if (reached > 1) num_between += place.begin - reached;
    reached = place.end;
  }
  WITAN_CHECK(
      reached < num_prompt_tokens && num_between <= plan.num_recomputed && plan.num_recomputed <= plan.num_tokens(),
      "documents up to token {} of {}, {} computed again", reached, num_prompt_tokens, plan.num_recomputed);
  WITAN_CHECK(
      compression.shared_as.empty() && (compression.points.empty() || compression.points.front().num_tokens >= reached),
      "entries of documents judged before they are there");
}

// Brings a sequence in its reuse plan to where there is something to compute, behind the plan perhaps. False where
// there is no room.
bool Scheduler::State::advance_reuse(Sequence& sequence) {
  if (!sequence.reuses()) return true;
  if (!sequence.reused.has_begun) begin_reuse(sequence);
  if (!kv.reserve(*sequence.kv_sequence, sequence.reuse->num_tokens())) return false;
  const ReuseProgress& reused = sequence.reused;
  while (reused.num_documents < std::ssize(sequence.reuse->documents)) {
    if (!reused.document) open_document(sequence);
    if (sequence.num_left_of(sequence.next_pass()) > 0) return true;
    sequence.reuse->copy(*reused.document, *sequence.kv_sequence,
                         sequence.reuse->documents[static_cast<size_t>(reused.num_documents)]);
    close_document(sequence);
    ++sequence.reused.num_documents;
  }
  if (sequence.num_left_of(sequence.next_pass()) == 0) finish_reuse(sequence);
  return true;
}

// What the prefix cache has of its documents becomes what was used last, so that the room for the text is not theirs.
void Scheduler::State::begin_reuse(Sequence& sequence) {
  int32_t num_found = 0;
  for (const KvSpan& place : sequence.reuse->documents) {
    const SequenceId document = kv.create();
    num_found += attach_document(sequence, place, document);
    kv.release(document);
  }
  if (!sequence.num_document_hit_tokens) sequence.num_document_hit_tokens = num_found;
  sequence.reused.has_begun = true;
}

// Returns how many tokens of a document the prefix cache has.
int32_t Scheduler::State::attach_document(const Sequence& sequence, const KvSpan& place, SequenceId document) {
  // One token more than what may be attached, as in the text behind the document.
  const auto num_tokens = static_cast<size_t>(place.end - place.begin) + 1;
  const std::vector<TokenRole> roles(num_tokens, TokenRole::kPrompt);
  return kv.attach_prefix(document, std::span(sequence.tokens).subspan(static_cast<size_t>(place.begin), num_tokens),
                          roles);
}

void Scheduler::State::open_document(Sequence& sequence) {
  ReuseProgress& reused = sequence.reused;
  reused.document = kv.create();
  reused.num_document_tokens =
      attach_document(sequence, sequence.reuse->documents[static_cast<size_t>(reused.num_documents)], *reused.document);
}

void Scheduler::State::close_document(Sequence& sequence) {
  ReuseProgress& reused = sequence.reused;
  if (!reused.document) return;
  kv.release(*reused.document);
  reused.document.reset();
  reused.num_document_tokens = 0;
  reused.num_probed_alone = 0;
}

// All passes are over: the entries of documents, and of what is between them, are the sequence's own.
void Scheduler::State::finish_reuse(Sequence& sequence) {
  const auto first = static_cast<size_t>(sequence.reuse->begin());
  const auto num_tokens = static_cast<size_t>(sequence.reuse->num_tokens());
  kv.commit(*sequence.kv_sequence, std::span(sequence.tokens).subspan(first, num_tokens),
            std::span(sequence.kv_roles).subspan(first, num_tokens));
  sequence.reused.is_over = true;
  add_computed(sequence, static_cast<int32_t>(num_tokens));
}

void Scheduler::State::commit_pass(Sequence& sequence, const ScheduledSlice& slice) {
  const int32_t num_tokens = std::exchange(sequence.num_planned, 0);
  const ReuseSlice& pass = *slice.reuse;
  WITAN_CHECK(pass == sequence.next_pass() && slice.num_tokens == num_tokens,
              "{} tokens of a pass of sequence {} committed, {} were planned", slice.num_tokens, sequence.id,
              num_tokens);
  ReuseProgress& reused = sequence.reused;
  switch (pass.pass) {
    case ReuseSlice::Pass::kDocument: {
      const KvSpan& place = sequence.reuse->documents[static_cast<size_t>(pass.document)];
      const int32_t first = place.begin + pass.first;
      const std::vector<TokenRole> roles(static_cast<size_t>(num_tokens), TokenRole::kPrompt);
      kv.commit(*reused.document, std::span(sequence.tokens).subspan(static_cast<size_t>(first), roles.size()), roles);
      reused.num_document_tokens += num_tokens;
      break;
    }
    case ReuseSlice::Pass::kProbeAlone:
      reused.num_probed_alone += num_tokens;
      break;
    case ReuseSlice::Pass::kProbe:
      reused.num_probed += num_tokens;
      break;
    case ReuseSlice::Pass::kRecompute:
      reused.num_recomputed += num_tokens;
      break;
  }
}

}  // namespace witan
