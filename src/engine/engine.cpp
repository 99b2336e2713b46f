#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <limits>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "engine/kv_request.h"
#include "engine/text_stream.h"
#include "kv/policy/key_channels.h"
#include "sched/prefill_pacer.h"

namespace witan {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// One choice of one request, while it lives.
struct Generation {
  RequestId request = 0;
  int32_t choice = 0;
  SamplingParams sampling;
  std::vector<TokenId> stop_tokens;
  std::shared_ptr<OutputCallback> on_output;
  std::optional<TextStream> text;
  Clock::time_point submitted;
  GenerationUsage usage;

  // With a KV policy that has something to drop:
  std::optional<KvPolicy> kv_policy;
  KvText kv_text;
  int32_t most_judged = 0;      // entries of a head at once
  bool under_pressure = false;  // when is not known
  std::optional<KvDemotion> kv_demotion;
  KvEvidence kv_evidence;         // while it runs: what the policy wants when it judges next
  int32_t num_judged_tokens = 0;  // the text's, when it did so last
  std::string kv_error;           // why that could not be had
};

// An output and who wants it; delivered when no lock is held.
struct Delivery {
  std::shared_ptr<OutputCallback> on_output;
  GenerationOutput output;
};

// What picking the next token of one sequence takes and gives.
struct SampleJob {
  const SamplingParams* params;
  std::span<const TokenId> prompt;
  std::span<const TokenId> generated;
  SampleResult result = {};
  std::string error = {};
};

void run_job(SampleJob& job, std::span<const float> logits) {
  try {
    job.result = sample(*job.params, logits, job.prompt, job.generated);
  } catch (const std::exception& e) {
    job.error = e.what();
  }
}

void validate(const GenerationRequest& request, const LoadedModel& model, bool has_tokenizer) {
  const ModelInfo& info = model.info();
  const int32_t context = model.options().context_length;
  if (std::ssize(request.prompt) >= context && context < info.context_length && model.plan().is_limited_by_memory) {
    fail(
        ErrorCode::kInvalidArgument,
        "a prompt of {} tokens leaves no room in the context of {} tokens, which is what the memory budget allows (the "
        "model's own is {})",
        request.prompt.size(), context, info.context_length);
  }
  check_token_ids(request.prompt, info.vocab_size);
  check_token_ids(request.stop_tokens, info.vocab_size);
  request.sampling.validate(info.vocab_size);
  if (request.num_choices < 1 || request.num_choices > 128) {
    fail(ErrorCode::kInvalidArgument, "choices: {} is not in 1 to 128", request.num_choices);
  }
  for (const std::string& stop : request.stop_strings) {
    if (stop.empty()) fail(ErrorCode::kInvalidArgument, "an empty stop string would stop at once");
  }
  if (info.has_encoder && request.kv_policy) {
    throw KvPolicyError(ErrorCode::kUnsupported,
                        "the model reads its prompt with an encoder, whose entries a KV policy cannot drop");
  }
  if (info.has_encoder && request.prompt.empty()) fail(ErrorCode::kInvalidArgument, "the prompt has no tokens");
  if (!request.stop_strings.empty() && !has_tokenizer) {
    fail(ErrorCode::kUnsupported, "stop strings need a tokenizer, which this model does not have");
  }
}

}  // namespace

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "unknown";
}

struct Engine::State {
  State(const ModelOptions& options, const LoadProgress& progress)
      : model(options, progress),
        end_tokens(model.checkpoint().end_of_generation_tokens()),
        scheduler(model.kv(), {.max_step_tokens = model.options().max_step_tokens,
                               .max_mixed_prompt_tokens = model.options().max_mixed_prompt_tokens,
                               .max_sequences = model.options().max_sequences,
                               .context_length = model.options().context_length,
                               .generated_entries_differ = model.info().generated_entries_differ}),
        pacer(model.options().max_decode_slowdown) {}

  RequestId submit(const GenerationRequest& request, OutputCallback on_output,
                   const std::shared_ptr<const KvAutoChoice>& kv_auto = nullptr);
  KvAutoChoice choose_policy(const GenerationRequest& request) const;
  bool step();
  std::vector<SequenceId> all_sequences() const;
  ForwardBatch make_batch(const StepPlan& plan) const;
  std::vector<Delivery> end_cancelled();
  StepPlan schedule(std::vector<Delivery>& deliveries);
  void compute(const StepPlan& plan, const ForwardBatch& batch, std::vector<Delivery>& deliveries);
  std::vector<SampleJob> sample_all(const StepPlan& plan, std::span<const float> logits);
  void begin_collecting(const StepPlan& plan);
  void follow_text(const ScheduledSlice& slice);
  void collect_evidence(SequenceId sequence, int32_t first_token);
  void compress_all(const StepPlan& plan, std::vector<Delivery>& deliveries);
  KvChoice choose_kept(SequenceId kv_sequence, const Generation& generation);
  std::function<bool(SequenceId)> applied(const KvChoice& choice, const Generation& generation, bool judges);
  bool chooses_channels(SequenceId kv_sequence, const Generation& generation) const;
  bool demote(SequenceId kv_sequence, const Generation& generation);
  void keep_evidence(KvEvidence& evidence, const KvChoice& choice) const;
  void count_held(SequenceId kv_sequence, KvCompression& report) const;
  std::set<SequenceId> compress(const ScheduledSlice& slice, std::vector<Delivery>& deliveries);
  void finish_step(const StepPlan& plan, std::span<SampleJob> jobs, std::vector<Delivery>& deliveries);
  void fail_sequence(SequenceId sequence, const std::string& what, std::vector<Delivery>& deliveries);
  void deliver(const std::vector<Delivery>& deliveries);
  std::optional<FinishReason> finish_reason(SequenceId sequence, Generation& generation, TokenId token,
                                            std::string& text) const;
  Delivery end(SequenceId sequence, GenerationOutput output);
  int64_t num_prompt_tokens(const StepPlan& plan) const;
  void count_step(const StepPlan& plan, int64_t num_prompt_tokens, double seconds);
  void forbid_unnamed_tokens(std::span<float> logits) const;

  LoadedModel model;
  std::vector<TokenId> end_tokens;

  // Guards everything below but not the callbacks, which run with it released so that they may submit and cancel.
  mutable std::mutex mutex;
  std::mutex step_mutex;  // one step at a time; taken before `mutex`
  std::condition_variable work_arrived;
  Scheduler scheduler;
  PrefillPacer pacer;
  std::unordered_map<SequenceId, Generation> generations;
  std::vector<RequestId> cancelled;
  RequestId next_request = 1;
  EngineStats stats;

  std::thread thread;
  bool stopping = false;
};

Engine::Engine(const ModelOptions& options, const LoadProgress& progress)
    : state_(std::make_unique<State>(options, progress)) {}

Engine::~Engine() { stop(); }

const ModelInfo& Engine::model_info() const { return state_->model.info(); }
const MemoryPlan& Engine::memory_plan() const { return state_->model.plan(); }
const ModelOptions& Engine::options() const { return state_->model.options(); }
const Tokenizer* Engine::tokenizer() const { return state_->model.tokenizer(); }
const Checkpoint& Engine::checkpoint() const { return state_->model.checkpoint(); }

std::vector<TokenId> Engine::encode(std::string_view text, ParseSpecial parse_special) const {
  if (state_->model.tokenizer() == nullptr) {
    fail(ErrorCode::kUnsupported, "{}: the model has no tokenizer; it takes token ids only",
         state_->model.checkpoint().path());
  }
  return state_->model.tokenizer()->encode(text, AddSpecial::kYes, parse_special);
}

RequestId Engine::submit(const GenerationRequest& request, OutputCallback on_output) {
  if (!request.kv_policy || !request.kv_policy->automatic) return state_->submit(request, std::move(on_output));
  const auto choice = std::make_shared<const KvAutoChoice>(state_->choose_policy(request));
  GenerationRequest chosen = request;
  chosen.kv_policy.reset();
  if (!choice->policy.empty()) chosen.kv_policy = parse_kv_policy(choice->policy);
  return state_->submit(chosen, std::move(on_output), choice);
}

// What `auto` is for a request that arrives now.
KvAutoChoice Engine::State::choose_policy(const GenerationRequest& request) const {
  try {
    KvAutoRequest of_request = kv_auto_request(request, model);
    const std::lock_guard lock(mutex);
    const auto capacity_bytes = static_cast<int64_t>(model.kv().config().capacity_bytes);
    of_request.free_bytes = std::max(int64_t{0}, capacity_bytes - scheduler.final_bytes());
    return choose_kv_policy(*request.kv_policy, of_request);
  } catch (const Error& error) {
    throw KvPolicyError(error.code(), error.what());
  }
}

RequestId Engine::State::submit(const GenerationRequest& request, OutputCallback on_output,
                                const std::shared_ptr<const KvAutoChoice>& kv_auto) {
  validate(request, model, model.tokenizer() != nullptr);
  std::vector<TokenId> stop_tokens = request.stop_tokens;
  if (!request.ignore_end_tokens) stop_tokens.insert(stop_tokens.end(), end_tokens.begin(), end_tokens.end());
  const auto callback = std::make_shared<OutputCallback>(std::move(on_output));
  const Clock::time_point now = Clock::now();

  SequenceRequest sequence_request{
      .prompt = request.prompt, .max_new_tokens = request.max_new_tokens, .priority = request.priority};
  if (model.info().has_encoder) {
    if (std::ssize(request.prompt) > model.options().context_length) {
      fail(ErrorCode::kInvalidArgument, "a prompt of {} tokens is more than the context of {}", request.prompt.size(),
           model.options().context_length);
    }
    sequence_request.input = std::exchange(sequence_request.prompt, {model.info().decoder_start_token});
  }
  KvRequest kv = plan_kv(request, model);
  sequence_request.compression = std::move(kv.compression);
  sequence_request.private_generation = kv.private_generation;
  sequence_request.side_bytes = kv.side_bytes;

  const std::lock_guard lock(mutex);
  const RequestId id = next_request++;
  for (int32_t choice = 0; choice < request.num_choices; ++choice) {
    // Only the first can be refused: the others ask for the same.
    const SequenceId sequence = scheduler.add(sequence_request);
    Generation generation;
    generation.request = id;
    generation.choice = choice;
    generation.sampling = request.sampling;
    generation.stop_tokens = stop_tokens;
    generation.on_output = callback;
    generation.submitted = now;
    generation.usage.prompt_tokens = static_cast<int32_t>(request.prompt.size());
    generation.kv_demotion = sequence_request.compression.demotion;
    generation.usage.kv_auto = kv_auto;
    if (kv.acts) {
      generation.kv_policy = kv.policy;
      generation.kv_text = kv.text;
      generation.most_judged = kv.most_judged;
      generation.under_pressure = sequence_request.compression.pressure.has_value();
      if (generation.under_pressure) generation.usage.kv = std::make_shared<const KvCompression>();
    }
    generation.sampling.seed += static_cast<uint64_t>(choice);
    if (model.tokenizer() != nullptr) generation.text.emplace(*model.tokenizer(), request.stop_strings);
    generations.emplace(sequence, std::move(generation));
  }
  work_arrived.notify_one();
  return id;
}

void Engine::cancel(RequestId request) {
  const std::lock_guard lock(state_->mutex);
  state_->cancelled.push_back(request);
  state_->work_arrived.notify_one();
}

ForwardBatch Engine::State::make_batch(const StepPlan& plan) const {
  ForwardBatch batch;
  for (const ScheduledSlice& slice : plan.slices) {
    const Generation& generation = generations.at(slice.sequence);
    batch.slices.push_back({.kv_sequence = slice.kv_sequence,
                            .first_row = static_cast<int32_t>(batch.tokens.size()),
                            .num_tokens = slice.num_tokens,
                            .first_token = slice.first_token,
                            .evidence = &generation.kv_evidence,
                            .num_uncommitted = slice.num_uncommitted});
    std::span<const TokenId> tokens = scheduler.tokens(slice.sequence);
    int32_t first = slice.first_token;
    if (slice.repetition) {
      const Repetition& repetition = generation.kv_text.repetitions[static_cast<size_t>(*slice.repetition)];
      batch.slices.back().repeated_chunk = repetition.chunk;
      tokens = repetition.tokens;
      first = slice.num_uncommitted;
    }
    tokens = tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(slice.num_tokens));
    batch.tokens.insert(batch.tokens.end(), tokens.begin(), tokens.end());
    for (int32_t i = slice.first_token; i < slice.first_token + slice.num_tokens; ++i) {
      batch.positions.push_back(i);
      batch.roles.push_back(slice.repetition ? TokenRole::kPrompt : scheduler.role(slice.sequence, i));
    }
    if (slice.encodes_input) {
      const std::span<const TokenId> input = scheduler.input(slice.sequence);
      batch.inputs.push_back({.kv_sequence = slice.kv_sequence, .tokens = {input.begin(), input.end()}});
    }
    if (slice.samples) batch.logit_rows.push_back(static_cast<int32_t>(batch.tokens.size()) - 1);
  }
  return batch;
}

// A sequence that begins to run, or begins again, with a KV policy collects what its policy wants.
void Engine::State::begin_collecting(const StepPlan& plan) {
  for (const SequenceId sequence : plan.preempted) generations.at(sequence).kv_evidence = {};
  for (const SequenceId sequence : plan.admitted) {
    generations.at(sequence).kv_evidence = {};  // of an earlier run, whose end a failing schedule did not tell
    collect_evidence(sequence, 0);
  }
  for (const ScheduledSlice& slice : plan.slices) follow_text(slice);
}

// Where entries may be judged at any time, the window is of the last tokens that there are behind the slice.
void Engine::State::follow_text(const ScheduledSlice& slice) {
  Generation& generation = generations.at(slice.sequence);
  QueryWindow* window = generation.kv_evidence.window.get();
  if (window == nullptr || !generation.under_pressure) return;
  const int32_t end = slice.first_token + slice.num_tokens;
  const int32_t first = std::max(generation.num_judged_tokens, end - window->max_tokens());
  window->move_to(first, end - first);
}

// What the policy wants of the tokens from first_token to where it judges next, or may.
void Engine::State::collect_evidence(SequenceId sequence, int32_t first_token) {
  Generation& generation = generations.at(sequence);
  KvEvidence& evidence = generation.kv_evidence;
  if (!generation.kv_policy) return;
  const bool under_pressure = generation.under_pressure;
  const std::optional<KvCompressionPoint> point = scheduler.next_judgement(sequence);
  const bool goes_on = generation.num_judged_tokens == first_token && evidence.window != nullptr;
  generation.num_judged_tokens = first_token;
  generation.kv_error.clear();
  try {
    if (generation.kv_policy->pages && evidence.pages == nullptr) {
      evidence.pages = model.make_page_bounds(*generation.kv_policy->pages, scheduler.max_tokens(sequence));
    }
    if (!point && !under_pressure) {
      evidence.window.reset();
      evidence.mass.reset();
      evidence.moments.reset();
      evidence.value_norms.reset();
      evidence.repetition.reset();
      return;
    }
    const KvWants wants = generation.kv_policy->wants();
    if (wants.num_query_tokens > 0 && under_pressure && evidence.window == nullptr) {
      evidence.window = model.make_query_window(0, std::min(wants.num_query_tokens, generation.most_judged));
    } else if (wants.num_query_tokens > 0 && !under_pressure) {
      int32_t num_tokens = std::min(wants.num_query_tokens, point->num_tokens - first_token);
      if (goes_on) num_tokens = std::min(num_tokens, evidence.window->max_tokens());  // it has the last of them
      if (evidence.window == nullptr || evidence.window->max_tokens() < num_tokens) {
        evidence.window.reset();
        evidence.window = model.make_query_window(point->num_tokens - num_tokens, num_tokens);
      }
      evidence.window->move_to(point->num_tokens - num_tokens, num_tokens);
    }
    if (generation.most_judged == 0) return;  // channels are chosen, and nothing is judged
    if (wants.attention_mass && evidence.mass == nullptr) {
      evidence.mass = model.make_attention_mass(generation.most_judged);
    }
    if (wants.moments && evidence.moments == nullptr) evidence.moments = model.make_query_moments(*wants.moments);
    if (wants.value_norms && evidence.value_norms == nullptr) {
      evidence.value_norms = model.make_value_norms(generation.most_judged);
    }
    if (wants.repetitions && evidence.repetition == nullptr) {
      evidence.repetition = model.make_repetition_attention(generation.most_judged, *wants.repetitions);
    }
  } catch (const Error& error) {
    evidence = {};
    generation.kv_error = error.what();
  }
}

// Behind the commit of a step in which sequences with a KV policy reached a point where entries are judged. The mutex
// is not held while they are: that reads nothing but what belongs to the step.
void Engine::State::compress_all(const StepPlan& plan, std::vector<Delivery>& deliveries) {
  std::set<SequenceId> preempted;  // for the room of others: they are computed again
  for (const ScheduledSlice& slice : plan.slices) {
    if (slice.compresses && !preempted.contains(slice.sequence)) preempted.merge(compress(slice, deliveries));
  }
}

KvChoice Engine::State::choose_kept(SequenceId kv_sequence, const Generation& generation) {
  const auto choose = [&] {
    return model.choose_kept(kv_sequence, generation.kv_text, *generation.kv_policy, &generation.kv_evidence);
  };
  try {
    return choose();
  } catch (const Error&) {  // what the prefix cache holds can be had
    const std::lock_guard lock(mutex);
    model.kv().clear_prefix_cache();
  }
  return choose();
}

// What a choice does to a sequence's KV cache, see Scheduler::compress.
std::function<bool(SequenceId)> Engine::State::applied(const KvChoice& choice, const Generation& generation,
                                                       bool judges) {
  return [this, &choice, &generation, drops = judges](SequenceId kv_sequence) mutable {
    if (drops && !model.kv().keep(kv_sequence, choice.kept, choice.merges)) return false;
    drops = false;
    return !generation.kv_demotion || demote(kv_sequence, generation);
  };
}

// Whether it is demoted for the first time, and keys lose channels then.
bool Engine::State::chooses_channels(SequenceId kv_sequence, const Generation& generation) const {
  return generation.kv_demotion && !generation.kv_demotion->key_dims.empty() && !model.kv().has_channels(kv_sequence);
}

bool Engine::State::demote(SequenceId kv_sequence, const Generation& generation) {
  KvCache& kv = model.kv();
  const KvDemotion& demotion = *generation.kv_demotion;
  if (chooses_channels(kv_sequence, generation)) {
    kv.choose_channels(kv_sequence, choose_key_channels(model.isa(), model.threads(), kv, kv_sequence, demotion,
                                                        *generation.kv_evidence.window));
  }
  return kv.demote(kv_sequence, demotion, model.isa(), model.threads());
}

void Engine::State::keep_evidence(KvEvidence& evidence, const KvChoice& choice) const {
  const std::span<const KvLayerSpec> layers = model.info().kv_layers;
  if (evidence.mass != nullptr) evidence.mass->keep(layers, choice.kept);
  if (evidence.value_norms != nullptr) evidence.value_norms->keep(layers, choice.kept, choice.merges);
}

void Engine::State::count_held(SequenceId kv_sequence, KvCompression& report) const {
  const KvCache& kv = model.kv();
  report.bytes_after = kv.held_bytes(kv_sequence);
  report.bytes_before = report.bytes_after;
  report.kept.clear();
  report.demoted.clear();
  for (int32_t layer = 0; layer < std::ssize(kv.config().layers); ++layer) {
    const KvLayerSpec& spec = kv.config().layers[static_cast<size_t>(layer)];
    if (spec.window > 0) continue;
    report.kept.emplace_back();
    report.demoted.emplace_back();
    for (int32_t head = 0; head < spec.num_kv_heads; ++head) {
      const int32_t num_entries = kv.num_entries(kv_sequence, layer, head);
      report.kept.back().push_back(num_entries);
      report.demoted.back().push_back(kv.num_demoted(kv_sequence, layer, head));
      const KvView view = kv.view(kv_sequence, layer, head, num_entries);
      report.bytes_before +=
          view.format.block_bytes() * ((report.num_tokens + kKvBlockSize - 1) / kKvBlockSize) - view.block_bytes();
    }
  }
}

// Returns the sequences that were preempted for its room.
std::set<SequenceId> Engine::State::compress(const ScheduledSlice& slice, std::vector<Delivery>& deliveries) {
  const Clock::time_point start = Clock::now();
  Generation* generation = nullptr;
  std::vector<SequenceId> victims;
  {
    const std::lock_guard lock(mutex);
    generation = &generations.at(slice.sequence);  // stays where it is: only steps remove any
    const TokenId last = scheduler.tokens(slice.sequence).back();
    const bool is_stopped =
        slice.samples && std::ranges::find(generation->stop_tokens, last) != generation->stop_tokens.end();
    if (is_stopped) return {};  // it ends here
  }
  try {
    if (!generation->kv_error.empty()) throw Error(ErrorCode::kOutOfMemory, generation->kv_error);
    const KvChoice choice = slice.judges ? choose_kept(slice.kv_sequence, *generation) : KvChoice();
    const std::lock_guard lock(mutex);
    const int32_t num_tokens = model.kv().num_tokens(slice.kv_sequence);
    const bool uses_evidence = slice.judges || chooses_channels(slice.kv_sequence, *generation);
    const bool is_done = scheduler.compress(slice.sequence, applied(choice, *generation, slice.judges), victims);
    std::set<SequenceId> preempted(victims.begin(), victims.end());
    for (const SequenceId sequence : preempted) generations.at(sequence).kv_evidence = {};
    if (!is_done) return preempted;
    if (slice.judges) keep_evidence(generation->kv_evidence, choice);
    // Pages of what is generated keep the bounds of entries that are only demoted. Those of a prompt are learned of it
    // as it is kept for later requests.
    PageBounds* pages = generation->kv_evidence.pages.get();
    if (pages != nullptr && (slice.judges || num_tokens <= scheduler.num_prompt_tokens(slice.sequence))) {
      pages->learn_anew(model.isa(), model.threads(), model.kv(), slice.kv_sequence);
    }
    if (uses_evidence) collect_evidence(slice.sequence, slice.judges ? num_tokens : generation->num_judged_tokens);
    const bool is_first = generation->usage.kv == nullptr || generation->usage.kv->num_tokens >= num_tokens;
    auto report = is_first ? std::make_shared<KvCompression>() : std::make_shared<KvCompression>(*generation->usage.kv);
    if (slice.judges) {
      ++report->num_times;
      report->attention_kept = choice.attention_kept;
      report->fell_back = choice.fell_back;
    }
    report->num_tokens = num_tokens;
    count_held(slice.kv_sequence, *report);
    report->seconds += seconds_since(start);
    generation->usage.kv = std::move(report);
    return preempted;
  } catch (const Error& error) {
    const std::lock_guard lock(mutex);
    fail_sequence(slice.sequence, error.what(), deliveries);
    for (const SequenceId sequence : victims) generations.at(sequence).kv_evidence = {};
    return {victims.begin(), victims.end()};
  }
}

Delivery Engine::State::end(SequenceId sequence, GenerationOutput output) {
  const auto found = generations.find(sequence);
  Generation& generation = found->second;
  if (generation.text) output.text += generation.text->finish();
  generation.usage.total_seconds = seconds_since(generation.submitted);
  output.usage = generation.usage;
  Delivery delivery{.on_output = generation.on_output, .output = std::move(output)};
  generations.erase(found);
  scheduler.finish(sequence);
  return delivery;
}

std::vector<SequenceId> Engine::State::all_sequences() const {
  std::vector<SequenceId> sequences;
  for (const auto& [sequence, generation] : generations) sequences.push_back(sequence);
  std::ranges::sort(sequences);
  return sequences;
}

std::vector<Delivery> Engine::State::end_cancelled() {
  std::vector<Delivery> deliveries;
  const std::vector<RequestId> requests = std::exchange(cancelled, {});
  if (requests.empty()) return deliveries;
  for (const SequenceId sequence : all_sequences()) {
    const Generation& generation = generations.at(sequence);
    if (std::ranges::find(requests, generation.request) == requests.end()) continue;
    deliveries.push_back(end(sequence, {.request = generation.request,
                                        .choice = generation.choice,
                                        .text = {},
                                        .token = std::nullopt,
                                        .finish = FinishReason::kCancelled,
                                        .error = {},
                                        .usage = {}}));
  }
  return deliveries;
}

std::optional<FinishReason> Engine::State::finish_reason(SequenceId sequence, Generation& generation, TokenId token,
                                                         std::string& text) const {
  std::optional<FinishReason> reason;
  if (std::ranges::find(generation.stop_tokens, token) != generation.stop_tokens.end()) {
    reason = FinishReason::kStop;  // the token itself is no text
  } else if (generation.text) {
    text = generation.text->push(token);
  }
  if (!reason && generation.text && generation.text->stopped()) reason = FinishReason::kStop;
  if (!reason && std::ssize(scheduler.tokens(sequence)) >= scheduler.max_tokens(sequence)) {
    reason = FinishReason::kLength;
  }
  return reason;
}

// Without the mutex: what is read belongs to sequences in the plan, which nobody changes until it is committed.
std::vector<SampleJob> Engine::State::sample_all(const StepPlan& plan, std::span<const float> logits) {
  std::vector<SampleJob> jobs;
  {
    const std::lock_guard lock(mutex);
    for (const ScheduledSlice& slice : plan.slices) {
      if (!slice.samples) continue;
      const std::span<const TokenId> tokens = scheduler.tokens(slice.sequence);
      const auto num_prompt = static_cast<size_t>(scheduler.num_prompt_tokens(slice.sequence));
      jobs.push_back({.params = &generations.at(slice.sequence).sampling,
                      .prompt = tokens.first(num_prompt),
                      .generated = tokens.subspan(num_prompt)});
    }
  }
  const auto vocab_size = static_cast<size_t>(model.info().vocab_size);
  model.threads().parallel_for(std::ssize(jobs), [&](int64_t i, int) {
    run_job(jobs[static_cast<size_t>(i)], logits.subspan(static_cast<size_t>(i) * vocab_size, vocab_size));
  });
  return jobs;
}

void Engine::State::finish_step(const StepPlan& plan, std::span<SampleJob> jobs, std::vector<Delivery>& deliveries) {
  size_t i = 0;
  for (const ScheduledSlice& slice : plan.slices) {
    const auto found = generations.find(slice.sequence);
    if (found == generations.end()) {  // its compression failed
      i += slice.samples;
      continue;
    }
    Generation& generation = found->second;
    generation.usage.cached_prompt_tokens = scheduler.num_prefix_hit_tokens(slice.sequence);
    if (generation.kv_evidence.pages != nullptr) generation.usage.kv_reads = generation.kv_evidence.pages->reads();
    if (!slice.samples) {
      if (!generation.kv_error.empty()) fail_sequence(slice.sequence, generation.kv_error, deliveries);
      continue;
    }
    SampleJob& job = jobs[i++];
    if (!job.error.empty()) {
      fail_sequence(slice.sequence, job.error, deliveries);
      continue;
    }
    GenerationOutput output{.request = generation.request,
                            .choice = generation.choice,
                            .text = {},
                            .token = std::nullopt,
                            .finish = std::nullopt,
                            .error = {},
                            .usage = {}};
    ++generation.usage.generated_tokens;
    ++stats.generated_tokens;
    if (generation.usage.generated_tokens == 1) {
      generation.usage.first_token_seconds = seconds_since(generation.submitted);
    }
    output.finish = finish_reason(slice.sequence, generation, job.result.token, output.text);
    output.token = std::move(job.result);
    if (output.finish) {
      deliveries.push_back(end(slice.sequence, std::move(output)));
    } else if (!generation.kv_error.empty()) {
      fail_sequence(slice.sequence, generation.kv_error, deliveries);
    } else {
      generation.usage.total_seconds = seconds_since(generation.submitted);
      output.usage = generation.usage;
      deliveries.push_back({.on_output = generation.on_output, .output = std::move(output)});
    }
  }
}

void Engine::State::fail_sequence(SequenceId sequence, const std::string& what, std::vector<Delivery>& deliveries) {
  const Generation& generation = generations.at(sequence);
  deliveries.push_back(end(sequence, {.request = generation.request,
                                      .choice = generation.choice,
                                      .text = {},
                                      .token = std::nullopt,
                                      .finish = FinishReason::kError,
                                      .error = what,
                                      .usage = {}}));
}

int64_t Engine::State::num_prompt_tokens(const StepPlan& plan) const {
  int64_t num_tokens = 0;
  for (const ScheduledSlice& slice : plan.slices) {
    const int32_t num_prompt = scheduler.num_prompt_tokens(slice.sequence);
    num_tokens += slice.repetition ? slice.num_tokens : std::clamp(num_prompt - slice.first_token, 0, slice.num_tokens);
  }
  return num_tokens;
}

void Engine::State::count_step(const StepPlan& plan, int64_t num_prompt_tokens, double seconds) {
  ++stats.num_steps;
  stats.distinct_experts = model.telemetry().distinct_ever();
  stats.last_step_experts = model.telemetry().distinct_in_last_step();
  stats.prompt_tokens += num_prompt_tokens;
  if (num_prompt_tokens > 0) {
    stats.prefill_seconds += seconds;
  } else {
    stats.decode_seconds += seconds;
    stats.decode_tokens += plan.num_tokens;
  }
}

// Embeddings are padded to round sizes: the last ids may be of no token, and are never to be sampled.
void Engine::State::forbid_unnamed_tokens(std::span<float> logits) const {
  const int32_t vocab_size = model.info().vocab_size;
  const Tokenizer* tokenizer = model.tokenizer();
  if (tokenizer == nullptr || tokenizer->vocab_size() == vocab_size) return;
  for (size_t row = 0; row < logits.size(); row += static_cast<size_t>(vocab_size)) {
    const std::span<float> ids = logits.subspan(row, static_cast<size_t>(vocab_size));
    std::ranges::fill(ids.subspan(static_cast<size_t>(tokenizer->vocab_size())),
                      -std::numeric_limits<float>::infinity());
  }
}

// The next plan. A sequence that finds no room even alone ends; the others go on.
StepPlan Engine::State::schedule(std::vector<Delivery>& deliveries) {
  for (;;) {
    try {
      return scheduler.schedule(pacer.prefills());
    } catch (const SequenceError& error) {
      fail_sequence(error.sequence(), error.what(), deliveries);
    }
  }
}

void Engine::State::compute(const StepPlan& plan, const ForwardBatch& batch, std::vector<Delivery>& deliveries) {
  const Clock::time_point start = Clock::now();
  std::vector<SampleJob> jobs;
  try {
    if (plan.num_tokens > 0) {
      const std::span<float> logits = model.forward(batch);
      forbid_unnamed_tokens(logits);
      jobs = sample_all(plan, logits);
    }
  } catch (const std::exception& error) {  // no memory: the sequences that the step was for end
    const std::lock_guard lock(mutex);
    scheduler.abandon(plan);
    for (const ScheduledSlice& slice : plan.slices) fail_sequence(slice.sequence, error.what(), deliveries);
    return;
  }
  const double forward_seconds = seconds_since(start);
  int64_t num_prompt = 0;
  {
    const std::lock_guard lock(mutex);
    if (plan.num_tokens > 0) pacer.step_done(plan.num_decodes, plan.num_tokens - plan.num_decodes, forward_seconds);
    num_prompt = num_prompt_tokens(plan);
    std::vector<TokenId> sampled;
    for (const SampleJob& job : jobs) sampled.push_back(job.result.token);
    scheduler.commit(plan, sampled);
  }
  compress_all(plan, deliveries);
  const std::lock_guard lock(mutex);
  finish_step(plan, jobs, deliveries);
  count_step(plan, num_prompt, seconds_since(start));
}

// Calls everybody, whoever throws, then throws the first exception.
void Engine::State::deliver(const std::vector<Delivery>& deliveries) {
  std::exception_ptr first;
  for (const Delivery& delivery : deliveries) {
    try {
      if (*delivery.on_output) (*delivery.on_output)(delivery.output);
    } catch (...) {
      if (!first) first = std::current_exception();
      const std::lock_guard lock(mutex);
      if (!delivery.output.finish) cancelled.push_back(delivery.output.request);
    }
  }
  if (first) std::rethrow_exception(first);
}

bool Engine::State::step() {
  const std::lock_guard step_lock(step_mutex);
  StepPlan plan;
  ForwardBatch batch;
  std::vector<Delivery> deliveries;
  {
    const std::lock_guard lock(mutex);
    const Clock::time_point start = Clock::now();
    deliveries = end_cancelled();
    plan = schedule(deliveries);
    begin_collecting(plan);
    batch = make_batch(plan);
    stats.schedule_seconds += seconds_since(start);
#ifndef NDEBUG
    if (!scheduler.has_work()) {
      scheduler.check_integrity();
      model.kv().check_integrity();
    }
#endif
  }
  if (!plan.empty()) compute(plan, batch, deliveries);
  deliver(deliveries);
  return !plan.empty() || !deliveries.empty();
}

bool Engine::step() {
  WITAN_CHECK(!state_->thread.joinable(), "step() while the engine's thread runs");
  return state_->step();
}

void Engine::start() {
  State& s = *state_;
  WITAN_CHECK(!s.thread.joinable(), "the engine's thread runs already");
  s.stopping = false;
  s.thread = std::thread([&s] {
    for (;;) {
      {
        std::unique_lock lock(s.mutex);
        s.work_arrived.wait(lock, [&s] { return s.stopping || s.scheduler.has_work() || !s.cancelled.empty(); });
        if (s.stopping) return;
      }
      try {
        s.step();
      } catch (...) {  // a callback threw: its request is cancelled, and it was told so
      }
    }
  });
}

void Engine::stop() {
  State& s = *state_;
  {
    const std::lock_guard lock(s.mutex);
    s.stopping = true;
    s.work_arrived.notify_all();
  }
  if (s.thread.joinable()) s.thread.join();
}

std::vector<int64_t> Engine::expert_counts() const {
  const std::lock_guard step_lock(state_->step_mutex);
  const RouterTelemetry& telemetry = state_->model.telemetry();
  std::vector<int64_t> counts;
  for (int32_t layer = 0; layer < telemetry.num_moe_layers(); ++layer) {
    for (int32_t expert = 0; expert < telemetry.num_experts(); ++expert)
      counts.push_back(telemetry.count(layer, expert));
  }
  return counts;
}

EngineStats Engine::stats() const {
  const State& s = *state_;
  const std::lock_guard lock(s.mutex);
  EngineStats stats = s.stats;
  stats.weight_bytes_held = static_cast<int64_t>(s.model.pool().held_bytes(MemoryTag::kWeights) +
                                                 s.model.pool().held_bytes(MemoryTag::kExperts));
  stats.peak_pool_bytes = static_cast<int64_t>(s.model.pool().peak_bytes());
  stats.kv = s.model.kv().stats();
  stats.scheduler = s.scheduler.stats();
  return stats;
}

}  // namespace witan
