#include "sched/scheduler.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "sched/scheduler_state.h"

namespace witan {

Scheduler::State::State(KvCache& cache, SchedulerConfig scheduler_config)
    : kv(cache), config(scheduler_config), row_bytes(cache.bytes_for_tokens(kKvBlockSize)) {
  const auto check = [](const char* name, int32_t value) {
    if (value < 1) fail(ErrorCode::kInvalidArgument, "{} must be at least 1, not {}", name, value);
  };
  check("max_step_tokens", config.max_step_tokens);
  check("max_mixed_prompt_tokens", config.max_mixed_prompt_tokens);
  check("max_sequences", config.max_sequences);
  check("context_length", config.context_length);
}

Sequence& Scheduler::State::at(SequenceId id) const {
  const auto found = sequences.find(id);
  WITAN_CHECK(found != sequences.end(), "sequence {} does not exist", id);
  return *found->second;
}

// Entries are judged for the most valuable waiting sequence, refused before, if all that may be judged make the room
// that it is short of: fewer would be lost for nothing.
bool Scheduler::State::make_room_for_waiting(Step& step) {
  const Sequence* sequence = waiting.first();
  if (sequence == nullptr || std::ssize(running) >= max_running()) return true;
  const int64_t missing = missing_since_refusal(*sequence);
  if (missing == 0) return true;
  int64_t freed_bytes = 0;
  for (const Sequence* other : running) freed_bytes += bytes_freed_by_judging(*other);
  return freed_bytes < missing || !judge_for_room(step);
}

// 0 where it may not be judged.
int64_t Scheduler::State::bytes_freed_by_judging(const Sequence& s) const {
  if (!s.may_be_judged_under_pressure()) return 0;
  const int64_t uneven = s.compression.is_average ? kKvBlockSize : 0;
  const int32_t num_kept = s.compression.pressure->budget.of(s.num_computed);
  return std::max<int64_t>(0, kv.bytes_freed_by_keeping(*s.kv_sequence, num_kept + uneven));
}

// Plans that the running sequence is judged for which this frees most, and nothing else; false where it frees
// nothing.
bool Scheduler::State::judge_for_room(Step& step) {
  Sequence* best = nullptr;
  int64_t most_bytes = 0;
  for (Sequence* sequence : running) {
    const int64_t bytes = bytes_freed_by_judging(*sequence);
    if (bytes > most_bytes) best = sequence;
    most_bytes = std::max(most_bytes, bytes);
  }
  if (best == nullptr) return false;
  for (const ScheduledSlice& slice : step.plan.slices) at(slice.sequence).num_planned = 0;
  step.plan.slices.clear();
  step.plan.num_tokens = 0;
  best->compression.points.push_back(
      {.num_tokens = best->num_computed, .num_kept = best->compression.pressure->budget.of(best->num_computed)});
  best->is_judged_for_room = true;
  step.add_judgement(*best);
  return true;
}

// Running sequences are visited by value and the victims come from the other end, so no victim has a slice yet.
bool Scheduler::State::plan_decodes(Step& step) {
  for (size_t i = 0; i < running.size(); ++i) {
    Sequence& sequence = *running[i];
    WITAN_CHECK(sequence.num_tokens() < sequence.max_tokens, "sequence {} has all its {} tokens and was not finished",
                sequence.id, sequence.max_tokens);
    if (sequence.num_uncomputed() != 1 || sequence.repeats()) continue;
    while (sequence.kv_sequence && !kv.reserve(*sequence.kv_sequence, 1)) {
      if (judge_for_room(step)) return false;
      preempt_least_valuable(step);
    }
    if (sequence.kv_sequence) step.add(sequence, 1);
  }
  return true;
}

// Beside decodes.
void Scheduler::State::limit_prefills(Step& step, Prefills prefills) {
  if (prefills == Prefills::kAlone) {
    step.budget_tokens = 0;
    ++pace.num_steps_since_mixed;
    return;
  }
  step.budget_tokens = std::min(step.budget_tokens, config.max_mixed_prompt_tokens);
  pace.num_steps_per_chunk = std::exchange(pace.num_steps_since_mixed, 0) + 1;
}

bool Scheduler::State::plan_prefills(Step& step) {
  for (size_t i = 0; i < running.size() && step.budget_tokens > 0; ++i) {
    Sequence& sequence = *running[i];
    if (sequence.num_planned > 0) continue;
    const std::optional<int32_t> num_tokens = reserve_chunk(step, sequence);
    if (!num_tokens) return false;
    if (*num_tokens > 0) step.add(sequence, *num_tokens);
  }
  return true;
}

// The next chunk of a running sequence in prefill, reserved; 0 when it has to wait for less, and none where entries
// are judged first.
std::optional<int32_t> Scheduler::State::reserve_chunk(Step& step, Sequence& sequence) {
  for (;;) {
    if (const int32_t num_tokens = reserve_next(sequence, step.budget_tokens); num_tokens > 0) return num_tokens;
    if (judge_for_room(step)) return std::nullopt;
    if (running.back() == &sequence && running.size() > 1) return 0;
    preempt_least_valuable(step);
  }
}

// Reserves what may be computed next, as far as the budget and the room go, and returns how many tokens that is.
int32_t Scheduler::State::reserve_next(Sequence& sequence, int32_t budget_tokens) {
  if (!advance_reuse(sequence)) return 0;
  return reserve_up_to(sequence, std::min(budget_tokens, sequence.num_computable()));
}

void Scheduler::State::add_computed(Sequence& sequence, int32_t num_tokens) {
  const int32_t first_token = std::exchange(sequence.num_computed, sequence.num_computed + num_tokens);
  num_recomputed_tokens += std::max(0, std::min(sequence.num_computed, sequence.num_ever_computed) - first_token);
  sequence.num_ever_computed = std::max(sequence.num_ever_computed, sequence.num_computed);
}

// Reserves num_tokens, or what there is room for, and returns how many. Of a pass, but for those of a document by
// itself, all are reserved.
int32_t Scheduler::State::reserve_up_to(const Sequence& sequence, int32_t num_tokens) {
  if (sequence.reuses()) {
    if (sequence.next_pass().pass != ReuseSlice::Pass::kDocument) return num_tokens;
    int32_t n = num_tokens;
    while (n > 0 && !kv.reserve(*sequence.reused.document, n)) n /= 2;
    return n;
  }
  const int32_t num_repeated = sequence.num_repeated;  // reserved already
  if (kv.reserve(*sequence.kv_sequence, num_repeated + num_tokens)) return num_tokens;
  const int64_t num_written = int64_t{sequence.num_computed} + num_repeated;
  const int64_t num_rows = num_block_rows(num_written) + kv.available_bytes() / row_bytes;
  const int64_t num_fitting = num_rows * kKvBlockSize - num_written;
  // Layers with a window may need fewer blocks than that supposes.
  const int64_t num_tried = num_fitting > 0 ? num_fitting : num_tokens / 2;
  for (auto n = static_cast<int32_t>(std::min<int64_t>(num_tried, num_tokens - 1)); n > 0; n /= 2) {
    if (kv.reserve(*sequence.kv_sequence, num_repeated + n)) return n;
  }
  return 0;
}

void Scheduler::State::preempt_least_valuable(Step& step) {
  Sequence& victim = *running.back();
  if (running.size() == 1) fail_alone(victim);
  step.remove(victim);
  preempt(victim);
  step.plan.preempted.push_back(victim.id);
}

void Scheduler::State::preempt(Sequence& victim) {
  stop_running(victim);
  waiting.add(victim);
  ++num_preemptions;
}

void Scheduler::State::stop_running(Sequence& sequence) {
  const auto place = std::ranges::lower_bound(running, &sequence, MoreValuable());
  WITAN_CHECK(place != running.end() && *place == &sequence, "sequence {} is not running", sequence.id);
  running.erase(place);
  close_document(sequence);
  kv.release(*sequence.kv_sequence);
  sequence.kv_sequence.reset();
  forget_progress(sequence);
  waiting.release_followers(sequence);
  refusal.reset();
}

void Scheduler::State::forget_progress(Sequence& sequence) const {
  sequence.num_computed = 0;
  sequence.num_compressions = 0;
  sequence.num_repetitions = 0;
  sequence.num_repeated = 0;
  sequence.reused = {};
  sequence.num_dropped = 0;
  sequence.num_demoted = 0;
}

// The next point of the plan is behind the sequence, whose heads have so many entries on average.
void Scheduler::State::pass_point(Sequence& sequence, int64_t num_entries) const {
  const KvCompressionPoint& point = sequence.compression.points[sequence.num_compressions++];
  sequence.num_dropped = static_cast<int32_t>(point.num_tokens - num_entries);
  sequence.num_demoted = sequence.compression.num_demoted(point, num_entries);
}

// Nothing is planned then: no other runs, and this one has no slice.
void Scheduler::State::fail_alone(const Sequence& sequence) const {
  throw SequenceError(
      sequence.id, ErrorCode::kOutOfMemory,
      fmt::format("sequence {} finds no room in the KV cache after {} of its {} tokens although no other runs: the "
                  "cache may hold {} bytes and can get {} more",
                  sequence.id, sequence.num_computed, sequence.num_tokens(), kv.config().capacity_bytes,
                  kv.available_bytes()));
}

// Not in a step that had to preempt: what that set free is for those who run.
void Scheduler::State::plan_admissions(Step& step) {
  if (!step.plan.preempted.empty()) return;
  std::optional<InFlightPrefixes> in_flight;
  while (step.budget_tokens > 0 && std::ssize(running) < max_running()) {
    Sequence* sequence = waiting.first();
    if (sequence == nullptr) return;
    // One that may go on behind a compressed prefix needs less room than it was refused.
    if (sequence->compression.shared_as.empty() && missing_since_refusal(*sequence) > 0) return;
    if (!in_flight) in_flight.emplace(running);
    if (try_admit(step, *sequence, *in_flight) == Admission::kNoRoom) return;
  }
}

// An input that is not encoded yet is so before the first slice that has it.
void Scheduler::State::plan_inputs(Step& step) const {
  std::vector<InputId> planned;
  for (ScheduledSlice& slice : step.plan.slices) {
    const InputId input = kv.input_of(slice.kv_sequence);
    if (input == kNoInput || kv.input_is_encoded(slice.kv_sequence)) continue;
    slice.encodes_input = std::ranges::find(planned, input) == planned.end();
    if (slice.encodes_input) planned.push_back(input);
  }
}

Scheduler::State::Admission Scheduler::State::try_admit(Step& step, Sequence& sequence, InFlightPrefixes& in_flight) {
  if (const std::string& policy = sequence.compression.shared_as; !policy.empty()) {
    const auto prompt = std::span(sequence.tokens).first(static_cast<size_t>(sequence.num_prompt_tokens));
    if (const auto prefix = kv.find_compressed(policy, prompt)) {
      if (try_admit_compressed(step, sequence, *prefix) == Admission::kAdmitted) return Admission::kAdmitted;
    }
  }
  const int64_t available_before = kv.available_bytes();
  const SequenceId kv_sequence = kv.create();
  // One token more than what may be attached: it is left to compute.
  const auto attachable = static_cast<size_t>(sequence.num_attachable()) + 1;
  const int32_t num_attached = kv.attach_prefix(kv_sequence, std::span(sequence.tokens).first(attachable),
                                                std::span(sequence.kv_roles).first(attachable));
  if (kv.config().prefix_cache) {
    if (const auto match = in_flight.find(sequence, num_attached)) {
      kv.release(kv_sequence);
      waiting.follow(sequence, *match->leader, match->num_common_tokens);
      return Admission::kFollows;
    }
  }
  const int64_t available_bytes = kv.available_bytes();
  if (missing_bytes(sequence, num_attached, kv.bytes_for_tokens(num_attached, 0), available_bytes) > 0) {
    kv.release(kv_sequence);
    refusal = Refusal{sequence.id, num_attached, available_before - available_bytes};
    return Admission::kNoRoom;
  }
  const Admission admission = admit(step, sequence, kv_sequence, num_attached);
  if (admission == Admission::kAdmitted) in_flight.add(sequence);
  return admission;
}

// What a KV policy left of the prompt's beginning is copied, and the sequence goes on behind it.
Scheduler::State::Admission Scheduler::State::try_admit_compressed(Step& step, Sequence& sequence,
                                                                   const KvCompressedPrefix& prefix) {
  const std::vector<KvCompressionPoint>& points = sequence.compression.points;
  while (sequence.num_compressions < points.size() &&
         points[sequence.num_compressions].num_tokens <= prefix.num_tokens) {
    pass_point(sequence, points[sequence.num_compressions].num_kept);
  }
  WITAN_CHECK(sequence.num_compressions > 0 && points[sequence.num_compressions - 1].num_tokens == prefix.num_tokens,
              "sequence {} has no point at token {}", sequence.id, prefix.num_tokens);
  const SequenceId kv_sequence = kv.create();
  if (missing_bytes(sequence, prefix.num_tokens, 0, kv.available_bytes()) > 0 ||
      !kv.attach_compressed(kv_sequence, prefix.id)) {
    kv.release(kv_sequence);
    forget_progress(sequence);
    return Admission::kNoRoom;
  }
  --sequence.num_compressions;
  pass_point(sequence, mean_entries(kv_sequence));
  return admit(step, sequence, kv_sequence, prefix.num_tokens);
}

// A sequence that has what is attached, and room.
Scheduler::State::Admission Scheduler::State::admit(Step& step, Sequence& sequence, SequenceId kv_sequence,
                                                    int32_t num_attached) {
  start_running(sequence, kv_sequence, num_attached);
  const bool shares_input = !sequence.input.empty() && kv.bytes_for_input(sequence.input) == 0;
  const bool has_input = sequence.input.empty() || kv.attach_input(kv_sequence, sequence.input);
  const int32_t num_tokens = has_input ? reserve_next(sequence, step.budget_tokens) : 0;
  if (num_tokens == 0) {
    if (running.size() == 1) fail_alone(sequence);
    stop_running(sequence);
    waiting.add(sequence);
    return Admission::kNoRoom;
  }
  step.add(sequence, num_tokens);
  step.plan.admitted.push_back(sequence.id);
  side_bytes_to_come += sequence.side_bytes;
  if (!sequence.num_prefix_hit_tokens) {
    sequence.num_prefix_hit_tokens = shares_input ? static_cast<int32_t>(sequence.input.size()) : num_attached;
    num_prefix_hit_tokens += *sequence.num_prefix_hit_tokens;
  }
  return Admission::kAdmitted;
}

void Scheduler::State::start_running(Sequence& sequence, SequenceId kv_sequence, int32_t num_attached) {
  waiting.remove(sequence);
  sequence.kv_sequence = kv_sequence;
  sequence.num_computed = num_attached;
  running.insert(std::ranges::lower_bound(running, &sequence, MoreValuable()), &sequence);
}

Scheduler::Scheduler(KvCache& kv, SchedulerConfig config) : state_(std::make_unique<State>(kv, config)) {}

Scheduler::~Scheduler() {
  for (Sequence* sequence : state_->running) {
    state_->close_document(*sequence);
    state_->kv.release(*sequence->kv_sequence);
  }
}

SequenceId Scheduler::add(SequenceRequest request) {
  const SchedulerConfig& config = state_->config;
  const auto num_prompt_tokens = std::ssize(request.prompt);
  if (num_prompt_tokens == 0) fail(ErrorCode::kInvalidArgument, "the prompt has no tokens");
  if (request.max_new_tokens < 1) {
    fail(ErrorCode::kInvalidArgument, "max_new_tokens must be at least 1, not {}", request.max_new_tokens);
  }
  if (num_prompt_tokens >= config.context_length) {
    fail(ErrorCode::kInvalidArgument, "a prompt of {} tokens leaves no room in the context of {} tokens",
         num_prompt_tokens, config.context_length);
  }
  auto sequence = std::make_unique<Sequence>();
  sequence->priority = request.priority;
  sequence->num_prompt_tokens = static_cast<int32_t>(num_prompt_tokens);
  sequence->max_tokens =
      static_cast<int32_t>(std::min<int64_t>(num_prompt_tokens + request.max_new_tokens, config.context_length));
  int32_t num_before = 0;
  int32_t reached = 0;
  WITAN_CHECK(
      request.compression.repetitions.empty() ||
          (!request.compression.points.empty() && request.compression.points[0].num_tokens == num_prompt_tokens &&
           std::ranges::min(request.compression.repetitions) > 0),
      "{} repetitions of a prompt whose entries are not judged at its end", request.compression.repetitions.size());
  for (const KvCompressionPoint& point : request.compression.points) {
    num_before = request.compression.aside ? point.num_tokens : num_before + point.num_tokens - reached;
    WITAN_CHECK(point.num_tokens >= reached && 0 < point.num_kept && point.num_kept < num_before + !point.judges,
                "{} of {} entries kept at token {}, {} before", point.num_kept, num_before, point.num_tokens, reached);
    WITAN_CHECK(point.num_aside == 0 || (request.compression.aside && point.num_aside > point.num_tokens),
                "room for {} tokens aside at token {}", point.num_aside, point.num_tokens);
    reached = point.num_tokens;
    num_before = point.num_kept;
  }
  sequence->compression = std::move(request.compression);
  if (request.reuse) State::check_reuse(*request.reuse, sequence->num_prompt_tokens, sequence->compression);
  sequence->reuse = std::move(request.reuse);
  sequence->side_bytes = request.side_bytes;
  sequence->private_generation = request.private_generation;
  const int64_t needed_bytes = state_->bytes_alone(*sequence) + state_->kv.bytes_of_input(std::ssize(request.input));
  const int32_t num_repeated = sequence->compression.longest_repetition(0);
  if (std::cmp_greater(needed_bytes, state_->kv.config().capacity_bytes)) {
    fail(ErrorCode::kOutOfMemory,
         "a prompt of {} tokens{}{} and {} to generate need {} bytes of KV cache, which may hold {} bytes ({} per "
         "token)",
         num_prompt_tokens, num_repeated > 0 ? fmt::format(", {} that repeat it at once", num_repeated) : "",
         sequence->reuse ? fmt::format(", {} of a document by itself", sequence->reuse->longest_document()) : "",
         sequence->max_tokens - num_prompt_tokens, needed_bytes, state_->kv.config().capacity_bytes,
         state_->kv.bytes_per_token());
  }
  sequence->id = state_->next_id++;
  sequence->input = std::move(request.input);
  sequence->tokens = std::move(request.prompt);
  sequence->kv_roles.assign(sequence->tokens.size(), TokenRole::kPrompt);
  if (const std::optional<ReusePlan>& reuse = sequence->reuse) {
    std::fill_n(sequence->kv_roles.begin() + reuse->begin(), reuse->num_tokens(), TokenRole::kPrivate);
  }
  state_->waiting.add(*sequence);
  return state_->sequences.emplace(sequence->id, std::move(sequence)).first->first;
}

StepPlan Scheduler::schedule(Prefills prefills) {
  WITAN_CHECK(!state_->plan_is_open, "the last plan was neither committed nor abandoned");
  for (const Sequence* sequence : state_->running) {
    WITAN_CHECK(!sequence->awaits_compression(), "sequence {} was not compressed", sequence->id);
  }
  State::Step step{.plan = {}, .budget_tokens = state_->config.max_step_tokens};
  step.plan.slices.reserve(state_->running.size());
  state_->side_bytes_to_come = 0;
  const State::Pace pace = state_->pace;
  if (state_->make_room_for_waiting(step) && state_->plan_decodes(step)) {
    step.plan.num_decodes = step.plan.num_tokens;
    if (step.plan.num_decodes > 0) state_->limit_prefills(step, prefills);
    if (state_->plan_prefills(step)) {
      state_->plan_admissions(step);
      state_->plan_inputs(step);
    } else {
      step.plan.num_decodes = 0;
      state_->pace = pace;  // the step is planned again
    }
  }
  state_->plan_is_open = !step.plan.empty();
  return std::move(step).plan;
}

// What is planned of a repetition is computed. When all of it is, its entries go.
void Scheduler::State::commit_repeated(Sequence& sequence) {
  sequence.num_repeated += std::exchange(sequence.num_planned, 0);
  if (sequence.num_computable() > 0) return;
  const bool is_free = kv.reserve(*sequence.kv_sequence, 0);
  WITAN_CHECK(is_free, "sequence {} cannot give entries back", sequence.id);
  sequence.num_repeated = 0;
  ++sequence.num_repetitions;
}

void Scheduler::commit(const StepPlan& plan, std::span<const TokenId> sampled) {
  WITAN_CHECK(state_->plan_is_open == !plan.empty(), "{} slices committed, but a plan is {}open", plan.slices.size(),
              state_->plan_is_open ? "" : "not ");
  const TokenRole generated_role = state_->config.generated_entries_differ ? TokenRole::kGenerated : TokenRole::kPrompt;
  size_t num_sampled = 0;
  for (const ScheduledSlice& slice : plan.slices) {
    Sequence& sequence = state_->at(slice.sequence);
    if (slice.reuse) {
      state_->commit_pass(sequence, slice);
      continue;
    }
    const int32_t first_token = sequence.num_computed + sequence.num_repeated;
    WITAN_CHECK(slice.first_token == first_token && slice.num_tokens == sequence.num_planned,
                "tokens {}+{} of sequence {} committed, {}+{} were planned", slice.first_token, slice.num_tokens,
                sequence.id, first_token, sequence.num_planned);
    if (slice.repetition) {
      state_->commit_repeated(sequence);
      continue;
    }
    state_->kv.commit(*sequence.kv_sequence, std::span(sequence.tokens).subspan(slice.first_token, slice.num_tokens),
                      std::span(sequence.kv_roles).subspan(slice.first_token, slice.num_tokens));
    if (slice.encodes_input) state_->kv.commit_input(*sequence.kv_sequence);
    state_->add_computed(sequence, std::exchange(sequence.num_planned, 0));
    if (!sequence.followers.empty()) state_->waiting.release_served_followers(sequence);
    if (!slice.samples) continue;
    WITAN_CHECK(num_sampled < sampled.size(), "{} sampled tokens do not suffice", sampled.size());
    sequence.tokens.push_back(sampled[num_sampled++]);
    sequence.kv_roles.push_back(sequence.private_generation ? TokenRole::kPrivate : generated_role);
  }
  WITAN_CHECK(num_sampled == sampled.size(), "{} tokens sampled, {} slices sample", sampled.size(), num_sampled);
  state_->plan_is_open = false;
}

bool Scheduler::compress(SequenceId id, FunctionRef<bool(SequenceId kv_sequence)> apply,
                         std::vector<SequenceId>& preempted) {
  WITAN_CHECK(!state_->plan_is_open, "sequence {} compressed before the plan was committed", id);
  Sequence& sequence = state_->at(id);
  WITAN_CHECK(sequence.awaits_compression(), "sequence {} has {} of {} tokens computed", id, sequence.num_computed,
              sequence.num_tokens());
  const bool is_for_room = std::exchange(sequence.is_judged_for_room, false);
  if (is_for_room) sequence.judged_under_pressure = sequence.num_computed;
  while (sequence.kv_sequence && !apply(*sequence.kv_sequence)) {
    if (is_for_room) {  // nobody gives up its room for that
      sequence.compression.points.pop_back();
      return false;
    }
    Sequence& victim = *state_->running.back();
    if (state_->running.size() == 1) state_->fail_alone(victim);
    state_->preempt(victim);
    preempted.push_back(victim.id);
  }
  state_->refusal.reset();
  if (!sequence.kv_sequence) return false;
  state_->pass_point(sequence, state_->mean_entries(*sequence.kv_sequence));
  if (sequence.compression.demotes_others) sequence.num_demoted = state_->mean_demoted(*sequence.kv_sequence);
  state_->num_judged_for_room += is_for_room;
  const std::string& policy = sequence.compression.shared_as;
  if (!policy.empty() && sequence.num_computed < sequence.num_prompt_tokens) {
    state_->kv.save_compressed(*sequence.kv_sequence, policy,
                               std::span(sequence.tokens).first(static_cast<size_t>(sequence.num_computed)));
  }
  return true;
}

void Scheduler::abandon(const StepPlan& plan) {
  WITAN_CHECK(state_->plan_is_open == !plan.empty(), "{} slices abandoned, but a plan is {}open", plan.slices.size(),
              state_->plan_is_open ? "" : "not ");
  for (const ScheduledSlice& slice : plan.slices) {
    Sequence& sequence = state_->at(slice.sequence);
    sequence.num_planned = 0;
    // What was to be compared may be replaced already: documents are copied again.
    if (slice.reuse && slice.reuse->pass == ReuseSlice::Pass::kProbe) sequence.reused = {};
    if (std::exchange(sequence.is_judged_for_room, false)) sequence.compression.points.pop_back();
  }
  state_->plan_is_open = false;
}

void Scheduler::finish(SequenceId id) {
  WITAN_CHECK(!state_->plan_is_open, "sequence {} finished before the plan was committed or abandoned", id);
  Sequence& sequence = state_->at(id);
  if (sequence.kv_sequence) {
    state_->stop_running(sequence);
  } else {
    state_->waiting.remove(sequence);
  }
  state_->sequences.erase(id);
}

bool Scheduler::has_work() const { return !state_->sequences.empty(); }

std::span<const TokenId> Scheduler::input(SequenceId sequence) const { return state_->at(sequence).input; }

std::span<const TokenId> Scheduler::tokens(SequenceId sequence) const { return state_->at(sequence).tokens; }

int32_t Scheduler::num_prompt_tokens(SequenceId sequence) const { return state_->at(sequence).num_prompt_tokens; }

std::optional<KvCompressionPoint> Scheduler::next_judgement(SequenceId sequence) const {
  return state_->at(sequence).next_judgement();
}

int32_t Scheduler::num_generated(SequenceId id) const {
  const Sequence& sequence = state_->at(id);
  return sequence.num_tokens() - sequence.num_prompt_tokens;
}

int32_t Scheduler::max_tokens(SequenceId sequence) const { return state_->at(sequence).max_tokens; }

int32_t Scheduler::num_prefix_hit_tokens(SequenceId sequence) const {
  return state_->at(sequence).num_prefix_hit_tokens.value_or(0);
}

int32_t Scheduler::num_document_hit_tokens(SequenceId sequence) const {
  return state_->at(sequence).num_document_hit_tokens.value_or(0);
}

TokenRole Scheduler::role(SequenceId id, int32_t token_index) const {
  const Sequence& sequence = state_->at(id);
  WITAN_CHECK(token_index >= 0 && token_index < sequence.num_tokens(), "token {} of {} in sequence {}", token_index,
              sequence.num_tokens(), id);
  return token_index < sequence.num_prompt_tokens ? TokenRole::kPrompt : TokenRole::kGenerated;
}

SchedulerStats Scheduler::stats() const {
  return {.num_waiting = state_->waiting.size(),
          .num_running = std::ssize(state_->running),
          .num_preemptions = state_->num_preemptions,
          .num_judged_for_room = state_->num_judged_for_room,
          .num_recomputed_tokens = state_->num_recomputed_tokens,
          .num_prefix_hit_tokens = state_->num_prefix_hit_tokens};
}

}  // namespace witan
