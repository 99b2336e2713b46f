#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "engine/kv_compressor.h"
#include "engine/kv_request.h"
#include "engine/text_stream.h"
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
  RunningKvPolicy kv;
  std::unique_ptr<DocumentReuse> documents;  // nullptr: none is reused
  std::vector<TokenId> continuation;         // empty: tokens are sampled
  bool wants_routes = false;
};

// What a step computes: first, what is done in the first layers alone, to compare tokens; then all else.
struct StepBatches {
  struct Probe {
    ForwardBatch batch;
    std::vector<ScheduledSlice> slices;     // of the batch
    std::vector<DocumentReuse*> documents;  // [slices]
  };
  std::vector<Probe> probes;  // one for each ForwardBatch::last_layer
  ForwardBatch text;

  Probe& probe_of(int32_t last_layer) {
    const auto found = std::ranges::find(probes, last_layer, [](const Probe& probe) { return probe.batch.last_layer; });
    if (found != probes.end()) return *found;
    probes.emplace_back().batch.last_layer = last_layer;
    return probes.back();
  }
};

// An output and who wants it; delivered when no lock is held.
struct Delivery {
  std::shared_ptr<OutputCallback> on_output;
  GenerationOutput output;
};

// What picking the next token of one sequence takes and gives.
struct SampleJob {
  const SamplingParams* params = nullptr;
  std::span<const TokenId> prompt;
  std::span<const TokenId> generated;
  std::optional<TokenId> given = {};  // by the request's continuation
  std::vector<int32_t> routes = {};   // see GenerationOutput
  SampleResult result = {};
  std::string error = {};
};

void run_job(SampleJob& job, std::span<const float> logits) {
  try {
    job.result = job.given ? report_token(*job.given, std::max(0, job.params->num_logprobs), logits)
                           : sample(*job.params, logits, job.prompt, job.generated);
  } catch (const std::exception& e) {
    job.error = e.what();
  }
}

// Of a row of the last batch: [MoE layers, top_k].
std::vector<int32_t> routes_of(const RouterTelemetry& telemetry, int32_t row) {
  const auto top_k = static_cast<size_t>(telemetry.top_k());
  std::vector<int32_t> routes;
  for (int32_t layer = 0; layer < telemetry.num_moe_layers(); ++layer) {
    const std::span<const int32_t> experts =
        telemetry.last_experts(layer).subspan(static_cast<size_t>(row) * top_k, top_k);
    routes.insert(routes.end(), experts.begin(), experts.end());
  }
  return routes;
}

void validate_continuation(const GenerationRequest& request, const LoadedModel& model) {
  if (model.info().has_encoder) {
    if (!request.continuation.empty()) {
      fail(ErrorCode::kUnsupported, "a continuation cannot be given to a model with an encoder");
    }
    if (request.wants_routes) fail(ErrorCode::kUnsupported, "routes of a model with an encoder cannot be had");
  }
  if (request.continuation.empty()) return;
  try {
    check_token_ids(request.continuation, model.info().vocab_size);
  } catch (const Error& error) {
    fail(error.code(), "the continuation: {}", error.what());
  }
  if (request.num_choices != 1) {
    fail(ErrorCode::kInvalidArgument, "{} choices of a request with a continuation would be the same",
         request.num_choices);
  }
  if (!request.stop_strings.empty() || !request.stop_tokens.empty()) {
    fail(ErrorCode::kInvalidArgument, "stop strings and stop tokens cannot end a request with a continuation");
  }
  const int32_t context = model.options().context_length;
  if (std::ssize(request.prompt) + std::ssize(request.continuation) > context) {
    fail(ErrorCode::kInvalidArgument,
         "a prompt of {} tokens and a continuation of {} are more than the context of {} tokens", request.prompt.size(),
         request.continuation.size(), context);
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
  validate_continuation(request, model);
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
        kv_compressor(model, scheduler),
        pacer(model.options().max_decode_slowdown) {}

  RequestId submit(const GenerationRequest& request, OutputCallback on_output,
                   const std::shared_ptr<const KvAutoChoice>& kv_auto = nullptr);
  KvAutoChoice choose_policy(const GenerationRequest& request) const;
  bool step();
  std::vector<SequenceId> all_sequences() const;
  StepBatches make_batches(const StepPlan& plan);
  void add_text(const ScheduledSlice& slice, ForwardBatch& batch) const;
  std::span<float> forward(const StepBatches& batches);
  std::vector<Delivery> end_cancelled();
  StepPlan schedule(std::vector<Delivery>& deliveries);
  void compute(const StepPlan& plan, const StepBatches& batches, double schedule_seconds,
               std::vector<Delivery>& deliveries);
  std::vector<SampleJob> sample_all(const StepPlan& plan, const ForwardBatch& batch, std::span<const float> logits);
  void begin_collecting(const StepPlan& plan);
  void forget_evidence(std::span<const SequenceId> sequences);
  void compress_all(const StepPlan& plan, std::vector<Delivery>& deliveries);
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
  KvCompressor kv_compressor;
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
  GenerationRequest chosen = request;
  if (!request.continuation.empty()) {
    chosen.max_new_tokens = static_cast<int32_t>(request.continuation.size());
    chosen.ignore_end_tokens = true;
  }
  if (!request.kv_policy || !request.kv_policy->automatic) return state_->submit(chosen, std::move(on_output));
  const auto choice = std::make_shared<const KvAutoChoice>(state_->choose_policy(chosen));
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
  const KvRequest kv = plan_kv(request, model);
  sequence_request.compression = kv.compression;
  if (kv.reuse) {
    sequence_request.reuse = kv.reuse;
    sequence_request.reuse->copy = [this](SequenceId document, SequenceId text, const KvSpan& place) {
      copy_shifted(model.kv(), *model.key_rope(), document, text, place, model.isa(), model.threads());
    };
  }
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
    generation.usage.kv_auto = kv_auto;
    generation.continuation = request.continuation;
    generation.wants_routes = request.wants_routes;
    if (kv.acts) generation.kv = running_policy(kv);
    if (kv.documents) {
      generation.documents = std::make_unique<DocumentReuse>(*kv.documents);
      generation.usage.kv_reuse = KvReuseCount{.num_reused_tokens = kv.documents->num_document_tokens(),
                                               .num_found_tokens = 0,
                                               .num_recomputed_tokens = kv.documents->num_recomputed()};
    }
    if (generation.kv.under_pressure) generation.usage.kv = std::make_shared<const KvCompression>();
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

StepBatches Engine::State::make_batches(const StepPlan& plan) {
  StepBatches batches;
  for (const ScheduledSlice& slice : plan.slices) {
    if (!slice.reuse) {
      add_text(slice, batches.text);
      continue;
    }
    DocumentReuse& documents = *generations.at(slice.sequence).documents;
    const std::span<const TokenId> tokens = scheduler.tokens(slice.sequence);
    if (slice.reuse->is_probe()) {
      StepBatches::Probe& probe = batches.probe_of(documents.last_layer());
      documents.add(slice, tokens, probe.batch);
      probe.slices.push_back(slice);
      probe.documents.push_back(&documents);
    } else {
      documents.add(slice, tokens, batches.text);
    }
  }
  return batches;
}

// Tokens of a text or of its repetition, behind those that the KV cache has.
void Engine::State::add_text(const ScheduledSlice& slice, ForwardBatch& batch) const {
  const Generation& generation = generations.at(slice.sequence);
  batch.slices.push_back({.kv_sequence = slice.kv_sequence,
                          .first_row = static_cast<int32_t>(batch.tokens.size()),
                          .num_tokens = slice.num_tokens,
                          .first_token = slice.first_token,
                          .evidence = &generation.kv.evidence,
                          .num_uncommitted = slice.num_uncommitted});
  std::span<const TokenId> tokens = scheduler.tokens(slice.sequence);
  int32_t first = slice.first_token;
  if (slice.repetition) {
    const Repetition& repetition = generation.kv.text.repetitions[static_cast<size_t>(*slice.repetition)];
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

// The logits of the text's rows that want them. Without the mutex, as sample_all.
std::span<float> Engine::State::forward(const StepBatches& batches) {
  for (const StepBatches::Probe& probe : batches.probes) {
    model.forward(probe.batch);
    for (size_t i = 0; i < probe.slices.size(); ++i) {
      probe.documents[i]->learn(probe.slices[i], probe.batch.slices[i].first_row, model.telemetry());
    }
  }
  return batches.text.slices.empty() ? std::span<float>() : model.forward(batches.text);
}

// A sequence that begins to run, or begins again, with a KV policy collects what its policy wants.
void Engine::State::begin_collecting(const StepPlan& plan) {
  forget_evidence(plan.preempted);
  for (const SequenceId sequence : plan.admitted) {
    Generation& generation = generations.at(sequence);
    kv_compressor.begin(sequence, generation.kv);
    if (generation.documents != nullptr) generation.documents->restart();
  }
  for (const ScheduledSlice& slice : plan.slices) {
    if (!slice.reuse) KvCompressor::follow_text(slice, generations.at(slice.sequence).kv);
  }
}

// Of sequences that were preempted: they collect anew when they run again.
void Engine::State::forget_evidence(std::span<const SequenceId> sequences) {
  for (const SequenceId sequence : sequences) generations.at(sequence).kv.evidence = {};
}

// Behind the commit of a step in which sequences with a KV policy reached a point where entries are judged. The
// mutex is not held while they are, see KvCompressor::decide.
void Engine::State::compress_all(const StepPlan& plan, std::vector<Delivery>& deliveries) {
  std::set<SequenceId> preempted;  // for the room of others: they are computed again
  for (const ScheduledSlice& slice : plan.slices) {
    if (slice.compresses && !preempted.contains(slice.sequence)) preempted.merge(compress(slice, deliveries));
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
    KvDecision decision = kv_compressor.decide(slice, generation->kv, mutex);
    const std::lock_guard lock(mutex);
    const bool is_done = kv_compressor.apply(slice, generation->kv, decision, victims);
    forget_evidence(victims);
    if (is_done) {
      kv_compressor.go_on(slice, generation->kv, decision);
      KvCompression report = kv_compressor.report(slice, decision, generation->usage.kv.get());
      report.seconds += seconds_since(start);
      generation->usage.kv = std::make_shared<const KvCompression>(std::move(report));
    }
  } catch (const Error& error) {
    const std::lock_guard lock(mutex);
    fail_sequence(slice.sequence, error.what(), deliveries);
    forget_evidence(victims);
  }
  return {victims.begin(), victims.end()};
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
std::vector<SampleJob> Engine::State::sample_all(const StepPlan& plan, const ForwardBatch& batch,
                                                 std::span<const float> logits) {
  std::vector<SampleJob> jobs;
  {
    const std::lock_guard lock(mutex);
    for (const ScheduledSlice& slice : plan.slices) {
      if (!slice.samples) continue;
      const std::span<const TokenId> tokens = scheduler.tokens(slice.sequence);
      const auto num_prompt = static_cast<size_t>(scheduler.num_prompt_tokens(slice.sequence));
      const Generation& generation = generations.at(slice.sequence);
      const int32_t row = batch.logit_rows[jobs.size()];
      SampleJob& job = jobs.emplace_back();
      job.params = &generation.sampling;
      job.prompt = tokens.first(num_prompt);
      job.generated = tokens.subspan(num_prompt);
      if (!generation.continuation.empty()) job.given = generation.continuation[job.generated.size()];
      if (generation.wants_routes) job.routes = routes_of(model.telemetry(), row);
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
    if (generation.usage.kv_reuse) {
      generation.usage.kv_reuse->num_found_tokens = scheduler.num_document_hit_tokens(slice.sequence);
    }
    if (generation.kv.evidence.pages != nullptr) generation.usage.kv_reads = generation.kv.evidence.pages->reads();
    if (!slice.samples) {
      if (!generation.kv.error.empty()) fail_sequence(slice.sequence, generation.kv.error, deliveries);
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
    output.routes = std::move(job.routes);
    if (output.finish) {
      deliveries.push_back(end(slice.sequence, std::move(output)));
    } else if (!generation.kv.error.empty()) {
      fail_sequence(slice.sequence, generation.kv.error, deliveries);
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
    const bool is_prompt = slice.repetition || slice.reuse;
    num_tokens += is_prompt ? slice.num_tokens : std::clamp(num_prompt - slice.first_token, 0, slice.num_tokens);
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

// Planning takes its time where documents are copied.
void Engine::State::compute(const StepPlan& plan, const StepBatches& batches, double schedule_seconds,
                            std::vector<Delivery>& deliveries) {
  const Clock::time_point start = Clock::now();
  std::vector<SampleJob> jobs;
  try {
    if (plan.num_tokens > 0) {
      const std::span<float> logits = forward(batches);
      forbid_unnamed_tokens(logits);
      jobs = sample_all(plan, batches.text, logits);
    }
  } catch (const std::exception& error) {  // no memory: the sequences that the step was for end
    const std::lock_guard lock(mutex);
    scheduler.abandon(plan);
    for (const ScheduledSlice& slice : plan.slices) fail_sequence(slice.sequence, error.what(), deliveries);
    return;
  }
  const double step_seconds = schedule_seconds + seconds_since(start);
  int64_t num_prompt = 0;
  {
    const std::lock_guard lock(mutex);
    if (plan.num_tokens > 0) pacer.step_done(plan.num_decodes, plan.num_tokens - plan.num_decodes, step_seconds);
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
  StepBatches batches;
  std::vector<Delivery> deliveries;
  double schedule_seconds = 0.0;
  {
    const std::lock_guard lock(mutex);
    const Clock::time_point start = Clock::now();
    deliveries = end_cancelled();
    plan = schedule(deliveries);
    begin_collecting(plan);
    batches = make_batches(plan);
    schedule_seconds = seconds_since(start);
    stats.schedule_seconds += schedule_seconds;
#ifndef NDEBUG
    if (!scheduler.has_work()) {
      scheduler.check_integrity();
      model.kv().check_integrity();
    }
#endif
  }
  if (!plan.empty()) compute(plan, batches, schedule_seconds, deliveries);
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
