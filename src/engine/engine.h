#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/loaded_model.h"
#include "engine/sampler.h"
#include "kv/policy/kv_auto.h"
#include "kv/policy/kv_policy.h"
#include "sched/scheduler.h"
#include "text/tokenizer.h"

namespace witan {

using RequestId = int64_t;

struct GenerationRequest {
  std::vector<TokenId> prompt = {};  // not empty; what a model with an encoder reads with it
  int32_t max_new_tokens = 256;
  SamplingParams sampling = {};                // choice i uses seed + i
  int32_t num_choices = 1;                     // answers to the same prompt
  std::vector<std::string> stop_strings = {};  // not empty ones; the answer ends before the first that appears
  std::vector<TokenId> stop_tokens = {};       // besides the model's own end tokens
  bool ignore_end_tokens = false;              // go on after the model's end tokens
  int32_t priority = 0;                        // higher runs first
  std::optional<KvPolicy> kv_policy = {};      // lossy; none: every entry stays
  std::vector<KvSpan> kv_pinned = {};          // of the prompt: entries that stay before all that the policy chooses
  // Of the prompt, ascending: texts that other prompts may have elsewhere. Nothing without a KV policy that reuses
  // them.
  std::vector<KvSpan> kv_documents = {};

  // Tokens that are taken in place of sampled ones, in order: what the model makes of a text that is there. The
  // request ends with kLength when all are taken, whatever max_new_tokens says; end tokens do not end it, and of
  // `sampling` only num_logprobs counts. Not with several choices, stop strings, stop tokens, or models with an
  // encoder; prompt and continuation have to fit into the context. An id that the tokenizer does not name is taken too,
  // though it has no probability.
  std::vector<TokenId> continuation = {};
  bool wants_routes = false;  // GenerationOutput::routes; not of models with an encoder
};

// A request whose KV policy the model, or the prompt, cannot have.
class KvPolicyError : public Error {
 public:
  using Error::Error;
};

enum class FinishReason : uint8_t {
  kStop,    // an end token, a stop token or a stop string
  kLength,  // max_new_tokens, or the end of the context
  kCancelled,
  kError,  // the step failed; GenerationOutput::error says why
};
std::string_view finish_reason_name(FinishReason reason);  // "stop", "length", "cancelled", "error"

// What a KV policy made of a text.
struct KvCompression {
  int32_t num_times = 0;   // that entries were judged
  int32_t num_tokens = 0;  // of the text, when entries were judged or demoted last
  std::vector<std::vector<int32_t>>
      kept;  // then: entries of each KV head of the layers without a window: [layer][head]
  std::vector<std::vector<int32_t>> demoted;  // of them, the demoted ones
  std::vector<std::vector<int64_t>> bytes;    // of the blocks that these entries are in
  int64_t bytes_after = 0;  // of the sequence's blocks then; where entries are hidden, the most that it was
  // The most that lay aside at any time: blocks with all entries, of which those that are read are copies; or of a
  // file.
  int64_t bytes_hidden = 0;
  int64_t bytes_offloaded = 0;
  int64_t bytes_before = 0;                   // and had all entries of the layers without a window stayed as they were
  double seconds = 0.0;                       // for all of them
  std::optional<double> attention_kept = {};  // with a guard: the last time, see KvChoice
  bool fell_back = false;                     // the last time everything stayed, as the guard wanted it
};

// What was reused of the documents in a prompt.
struct KvReuseCount {
  int32_t num_reused_tokens = 0;      // of documents, whose entries are those of the same text elsewhere
  int32_t num_found_tokens = 0;       // of them, in the prefix cache
  int32_t num_recomputed_tokens = 0;  // computed again where they are, with what is between the documents
};

struct GenerationUsage {
  int32_t prompt_tokens = 0;
  int32_t cached_prompt_tokens = 0;  // found in the prefix cache, or as a compressed prefix
  int32_t generated_tokens = 0;      // an end token included
  double first_token_seconds = 0.0;  // since submit
  double total_seconds = 0.0;        // since submit
  // With a policy, once it judged or demoted entries; of one that judges under pressure from the beginning.
  std::shared_ptr<const KvCompression> kv = {};
  std::optional<KvReads> kv_reads = {};       // with a policy whose generated tokens read pages
  std::optional<KvReuseCount> kv_reuse = {};  // with a policy that reuses documents, and some that it can
  // With a policy that was chosen for the request.
  std::shared_ptr<const KvAutoChoice> kv_auto = {};
};

// What became known about one choice in one step.
struct GenerationOutput {
  RequestId request = 0;
  int32_t choice = 0;
  std::string text;  // new text; may be empty while a character or a stop string is incomplete
  // The token of this step; none in an output that only finishes. One of a continuation always has its logprob, of the
  // logits as they are.
  std::optional<SampleResult> token;
  std::optional<FinishReason> finish;
  std::string error;      // with kError
  GenerationUsage usage;  // so far; complete with `finish`
  // With `token`, where the request wants them: the experts of the token whose logits this one came from, descending
  // selection score. [MoE layers, top_k]
  std::vector<int32_t> routes = {};
};

// Called for every output of a request, in order, by the thread that steps. It may submit and cancel, not step.
// The last call for each choice has `finish` set; there is exactly one such call, unless the engine goes first.
// One that throws has its request cancelled; step() throws the exception once all other outputs are delivered, the
// engine's own thread drops it.
using OutputCallback = std::function<void(const GenerationOutput&)>;

struct EngineStats {
  int64_t num_steps = 0;
  int64_t prompt_tokens = 0;  // computed as prompt (or recomputed, or repeated), cached ones not counted
  int64_t generated_tokens = 0;
  double prefill_seconds = 0.0;  // of steps that computed prompt tokens
  double decode_seconds = 0.0;   // of steps that only decoded
  int64_t decode_tokens = 0;     // tokens computed in the latter
  double schedule_seconds = 0.0;
  int64_t distinct_experts = 0;   // (layer, expert) pairs used so far
  int64_t last_step_experts = 0;  // and in the last step
  int64_t weight_bytes_held = 0;
  int64_t peak_pool_bytes = 0;
  KvCacheStats kv;
  SchedulerStats scheduler;
};

// Witan as a library: a model, its KV cache and a scheduler that serves any number of requests at a time.
//
//   Engine engine({.path = "model.gguf"});
//   engine.submit({.prompt = ids}, [](const GenerationOutput& output) { std::cout << output.text; });
//   while (engine.step()) {}
//
// Call order: (submit | cancel | step)* by hand, or start (submit | cancel)* stop with a thread of the engine's own.
// Thread safety: submit, cancel, stats and expert_counts may be called from any thread; step from one at a time, and
// not while the engine's thread runs.
class Engine {
 public:
  // Throws as LoadedModel does.
  explicit Engine(const ModelOptions& options, const LoadProgress& progress = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const ModelInfo& model_info() const;
  const ModelOptions& options() const;
  const MemoryPlan& memory_plan() const;
  // nullptr where the model has none: requests and outputs are token ids only, text stays empty.
  const Tokenizer* tokenizer() const;
  // The files: chat templates, defaults of generation.
  const Checkpoint& checkpoint() const;

  // Ids of a text as this model wants its prompts (with BOS where it has one). Throws Error(kUnsupported) when the
  // model has no tokenizer.
  std::vector<TokenId> encode(std::string_view text, ParseSpecial parse_special = ParseSpecial::kNo) const;

  // Queues a request. Throws Error(kInvalidArgument) naming what is wrong with it, KvPolicyError where that is its
  // KV policy; Error(kOutOfMemory), with the numbers, when it could never fit. Nothing else is affected.
  RequestId submit(const GenerationRequest& request, OutputCallback on_output);

  // Ends a request; unknown and finished ids are ignored. Its choices finish with kCancelled in the next step.
  void cancel(RequestId request);

  // Runs one step of everything submitted. False when there was nothing to do.
  bool step();

  // Runs steps in a thread of the engine's own until stop(), sleeping while there is nothing to do.
  void start();
  // Returns when the step in progress has ended; unfinished requests stay and go on after the next start or step.
  void stop();

  EngineStats stats() const;

  // How often each expert was chosen so far: [MoE layers, experts], row-major. Waits for the step in progress.
  std::vector<int64_t> expert_counts() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace witan
