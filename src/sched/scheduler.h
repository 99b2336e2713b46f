#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/function_ref.h"
#include "base/types.h"
#include "kv/kv_cache.h"
#include "sched/compression_plan.h"
#include "sched/reuse_plan.h"

namespace witan {

struct SchedulerConfig {
  int32_t max_step_tokens = 512;  // tokens computed in one step, prefill chunks and decodes together
  // Of them, those of prefill chunks in a step in which other sequences decode, whose next tokens wait for these.
  int32_t max_mixed_prompt_tokens = 512;
  int32_t max_sequences = 256;  // running at once
  int32_t context_length = 0;   // prompt and generated tokens of one sequence; the model's limit

  // Generated tokens' KV entries have other bits than those of the same tokens in a prompt (ModelInfo, MLA). If not,
  // the KV cache is told kPrompt for every token, so that a later prompt shares the blocks of generated text.
  bool generated_entries_differ = false;
};

struct SequenceRequest {
  std::vector<TokenId> prompt;       // not empty
  std::vector<TokenId> input = {};   // what the encoder reads, of models that have one
  int32_t max_new_tokens = 0;        // > 0
  int32_t priority = 0;              // higher runs first and is preempted last
  CompressionPlan compression = {};  // with a reuse plan, no points before the end of that
  std::optional<ReusePlan> reuse = {};
  int64_t side_bytes = 0;           // that its owner takes of the memory pool as soon as it runs, as long as it does
  bool private_generation = false;  // generated tokens are computed in a way of its own: nobody shares their entries
};

// One sequence's part of a step: tokens [first_token, first_token + num_tokens) of its prompt and generated tokens
// are computed. They follow what the KV cache already holds.
//
// Or of a repetition of its compression plan, which is computed behind the prompt: its tokens [num_uncommitted,
// num_uncommitted + num_tokens), at the places from first_token on. The entries of those before them are written,
// and reserved still; when the repetition is over none are.
//
// Or of a pass of its reuse plan; then `kv_sequence` is that of the document where the pass is of one, and first_token
// counts the pass's tokens.
//
// Or nothing is computed: the slice has no tokens and is the plan's only one, and its sequence's entries are judged.
struct ScheduledSlice {
  SequenceId sequence = 0;     // the scheduler's id
  SequenceId kv_sequence = 0;  // the KV cache's id of the same sequence
  int32_t first_token = 0;
  int32_t num_tokens = 0;
  bool encodes_input = false;  // the sequence's input is encoded first
  bool samples = false;        // the slice reaches the sequence's last token: its logits pick the next one
  bool compresses = false;     // reaches a point of the sequence's compression plan: compress() follows its commit
  bool judges = false;         // and entries are judged there
  std::optional<int32_t> repetition = {};  // index in the compression plan
  int32_t num_uncommitted = 0;
  std::optional<ReuseSlice> reuse = {};

  bool operator==(const ScheduledSlice&) const = default;
};

// What one step computes. Plain data.
struct StepPlan {
  std::vector<ScheduledSlice> slices;
  std::vector<SequenceId> admitted;   // sequences that began (or began again) to run in this step
  std::vector<SequenceId> preempted;  // sequences whose KV was given up; they wait to be recomputed
  int32_t num_tokens = 0;
  int32_t num_decodes = 0;  // of them, next tokens of sequences that decode; the others are of prefill chunks
  bool empty() const { return slices.empty(); }
};

// Whether a step in which sequences decode may compute parts of others' prefills too.
enum class Prefills : uint8_t { kBesideDecodes, kAlone };

// A sequence that cannot go on: nothing else is affected, and its caller finishes it.
class SequenceError : public Error {
 public:
  SequenceError(SequenceId sequence, ErrorCode code, const std::string& message)
      : Error(code, message), sequence_(sequence) {}
  SequenceId sequence() const { return sequence_; }

 private:
  SequenceId sequence_;
};

struct SchedulerStats {
  int64_t num_waiting = 0;
  int64_t num_running = 0;
  int64_t num_preemptions = 0;        // ever
  int64_t num_judged_for_room = 0;    // times that a sequence's entries were judged for want of room, ever
  int64_t num_recomputed_tokens = 0;  // computed again after a preemption, ever
  int64_t num_prefix_hit_tokens = 0;  // prompt tokens found in the prefix cache by first admissions, ever
};

// Decides which sequences run in each step and how many tokens each: continuous batching with chunked prefill, where
// prefill and decode are one path. Owns the sequences' tokens and their KV sequences; knows no model.
//
//   (add | schedule (commit | abandon) | finish)*
//
// A sequence is more valuable than another if its priority is higher or, among equals, if it arrived earlier. A step
// serves, each by value and all under max_step_tokens: running sequences that decode (one token each), running
// sequences in prefill (a chunk each), waiting sequences; beside decodes no more than max_mixed_prompt_tokens of the
// latter two, and none with Prefills::kAlone. The repetitions of its compression plan are a part of a sequence's
// prefill, each computed in chunks as the prompt is, and give their blocks back when they are over; so are the passes
// of its reuse plan, whose documents become blocks of the prefix cache, one after the other. At most
// min(max_sequences, max_step_tokens) sequences run, so every decoding one gets its token in every step, and of
// those in prefill at least the most valuable goes on in every step that has any.
//
// Admission: the most valuable waiting sequence is admitted when the KV cache has room for it and for every running
// one to finish their prefills and then decode a block each; until then nobody behind it is. So nobody is admitted
// to be preempted before it got anywhere. The exception: a sequence whose next uncached block is just being computed
// by a more valuable running one waits for as long as the two have tokens in common, and then shares the blocks;
// meanwhile those behind it may pass. Admission never preempts. A sequence whose plan is `shared_as` something goes
// on behind what that left of the beginning of its prompt, where the KV cache has it (a compressed prefix):
// compress() saves one at each point within a prompt.
//
// Preemption: when a running sequence finds no room for the next token, the least valuable running one is preempted:
// its blocks go (to the prefix cache where they can), its tokens stay, and it waits again, in its place by value. A
// sequence in prefill takes smaller chunks first, and when it is itself the least valuable, waits with what it has.
//
// Pressure: before anybody is preempted for the room of a token, or a prefill waits for it, running sequences whose
// compression plans say so (CompressionPlan::pressure) have their entries judged, whatever their value: first the
// one whose judging frees most, by the budget and without what other sequences have too, one after the other until
// there is room or none frees anything. The same happens for the most valuable waiting sequence when there was no
// room to admit it, but only if all of them together make that room. A sequence is judged when its prompt is
// computed, between two of its own tokens, and again when it has `every` tokens more. Such a step is of one
// sequence, which is judged, and of no tokens: the others wait. The place of the text becomes a point of the
// sequence's plan: if it is preempted later and computed again, it is judged where it was. With such a plan a prompt
// has to fit, but the whole text need not, as long as what is left when it is judged and `every` tokens do.
//
// Every sequence ends, if its caller ends it at max_tokens. The most valuable running one is never preempted for
// another and goes on in every step that computes any tokens, or at least, in prefill, in those that are not of
// decodes alone, whose number its caller bounds: alone it has room (add() saw to that), and it takes that room from
// all others if it must. While the most valuable of all waits, nobody less valuable is admitted, so the running ones
// end or are preempted, one after the other, until it is admitted. It becomes the most valuable running one then; so
// it ends, and the next is the most valuable of all.
// Thread safety: none.
class Scheduler {
 public:
  // Throws Error(kInvalidArgument) when a number in `config` is less than 1. The KV cache must outlive the
  // scheduler.
  Scheduler(KvCache& kv, SchedulerConfig config);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Queues a sequence. Throws Error(kInvalidArgument) for an empty prompt, max_new_tokens < 1 or a prompt that
  // leaves no room in the context; Error(kOutOfMemory), with the numbers, for one that could not run even alone. A
  // request for more tokens than the context has left ends at the context's end (max_tokens tells).
  SequenceId add(SequenceRequest request);

  // The next step. Empty when there are no sequences, of no tokens where one's entries are judged first. With
  // Prefills::kAlone, a step in which sequences decode is of these alone; a caller must not say so for ever.
  //
  // Throws SequenceError(kOutOfMemory), with the numbers, when the only running sequence finds no room: the KV cache
  // cannot get the memory that its capacity promises. No plan is open then; finish() and schedule() may be called.
  StepPlan schedule(Prefills prefills = Prefills::kBesideDecodes);

  // The plan was computed. sampled has one token per slice with samples == true, in the slices' order; they are
  // appended to their sequences. Every plan is committed or abandoned before the next schedule() or finish(); a
  // sequence that has max_tokens then is finished before the next schedule().
  void commit(const StepPlan& plan, std::span<const TokenId> sampled);

  // Drops and demotes KV entries of a sequence whose slice reached a point of its compression plan in the plan
  // committed last: apply(its KV sequence) does it, or says false, having changed nothing that it would do again,
  // where the KV cache has no room. Between that and the next schedule() it is called for each of them that goes on.
  // The room may be that of less valuable sequences, which are preempted, or of this one if it is the least
  // valuable: it is computed again then, and compressed again. Those that were preempted are added to `preempted`,
  // also where it throws SequenceError(kOutOfMemory), as schedule() does, when it runs alone. For one that is judged
  // to make room nobody is preempted: it keeps its entries then. False where nothing was dropped or demoted.
  bool compress(SequenceId sequence, FunctionRef<bool(SequenceId kv_sequence)> apply,
                std::vector<SequenceId>& preempted);

  // The plan was not computed, or not to its end: its entries count as never written. Its sequences go on with the
  // same tokens in a later plan, or are finished.
  void abandon(const StepPlan& plan);

  // Ends a sequence in any state (done, stopped, cancelled) and frees what it held.
  void finish(SequenceId sequence);

  bool has_work() const;                                       // any sequence that was not finished
  std::span<const TokenId> input(SequenceId sequence) const;   // empty without an encoder
  std::span<const TokenId> tokens(SequenceId sequence) const;  // prompt, then generated; valid until the next commit
  int32_t num_prompt_tokens(SequenceId sequence) const;
  // Where its entries are judged next, or channels of their keys; none where they are not any more.
  std::optional<KvCompressionPoint> next_judgement(SequenceId sequence) const;
  int32_t num_generated(SequenceId sequence) const;
  int32_t max_tokens(SequenceId sequence) const;  // prompt and generated together; the caller finishes it there
  // Prompt tokens found in the prefix cache, or as a compressed prefix, when first admitted; or those of an input
  // that another had encoded.
  int32_t num_prefix_hit_tokens(SequenceId sequence) const;
  // Tokens of the documents of its reuse plan that the prefix cache had when the plan began first.
  int32_t num_document_hit_tokens(SequenceId sequence) const;
  TokenRole role(SequenceId sequence, int32_t token_index) const;  // what it is, whatever the KV cache is told
  SchedulerStats stats() const;
  // Of the KV cache, what all sequences hold together when each has all its tokens, or those that hide entries before
  // they are judged last; what they share counts for each.
  int64_t final_bytes() const;

  // Aborts unless queues, KV sequences and token counts agree.
  void check_integrity() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace witan
