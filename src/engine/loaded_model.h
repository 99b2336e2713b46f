#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/isa.h"
#include "base/thread_pool.h"
#include "engine/memory_plan.h"
#include "io/checkpoint.h"
#include "kv/kv_cache.h"
#include "kv/policy/kv_compression.h"
#include "memory/arena.h"
#include "memory/memory_pool.h"
#include "models/model.h"
#include "moe/telemetry.h"
#include "sched/compression_plan.h"
#include "text/tokenizer.h"

namespace witan {

struct ModelOptions {
  std::string path;  // a GGUF file or a Hugging Face directory
  Precision precision = Precision::kFast;
  KvCodec kv_codec = KvCodec::kF16;
  int num_threads = 0;            // 0: one per core
  int64_t memory_bytes = 0;       // budget of all big allocations; 0: 90 % of what is available
  int32_t context_length = 0;     // most tokens of one sequence; 0: the model's own, as far as memory allows
  int32_t max_step_tokens = 512;  // tokens computed in one step
  // Of them, those of prompts in a step in which other sequences generate, whose next tokens wait for these; and how
  // many times slower these may generate on average while prompts are computed, more than 1 (0: any). See PrefillPacer.
  int32_t max_mixed_prompt_tokens = 128;
  double max_decode_slowdown = 1.4;
  int32_t max_sequences = 256;  // running at once
  bool prefix_cache = true;
  int64_t kv_capacity_bytes = 0;                  // most that KV blocks may hold; 0: what the budget leaves
  std::string kv_offload_directory = "/var/tmp";  // where KV policies that offload entries have their files
  bool with_tokenizer = true;                     // false: token ids only, whatever tokenizer the files have
};

// Told the bytes of the file packed so far.
using LoadProgress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;

// A model in memory with everything a forward pass needs: weights, KV cache, threads, scratch. One forward at a time.
class LoadedModel {
 public:
  // Throws Error: kBadFile, kUnsupported or kIo from the files; kInvalidArgument for options out of range;
  // kOutOfMemory, with the plan, before loading when the budget does not suffice for the weights and one KV block.
  explicit LoadedModel(const ModelOptions& options, const LoadProgress& progress = {});

  const ModelInfo& info() const { return model_->info(); }
  const ModelOptions& options() const { return options_; }  // zeros replaced by what was chosen
  const MemoryPlan& plan() const { return plan_; }
  Isa isa() const { return isa_; }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }  // nullptr where there is none
  KvCache& kv() { return *kv_; }
  const KvCache& kv() const { return *kv_; }
  const MemoryPool& pool() const { return pool_; }
  const RouterTelemetry& telemetry() const { return telemetry_; }
  ThreadPool& threads() { return threads_; }  // for work between forward passes

  // Of the model's keys, where they can be moved to other positions.
  std::optional<KeyRope> key_rope() const { return model_->key_rope(); }

  // What to keep of a sequence (kv/policy/kv_compression.h). Not during a forward.
  KvChoice choose_kept(SequenceId sequence, const KvText& text, const KvPolicy& policy, const KvEvidence* evidence);
  // Of the memory pool, for all that a policy wants of a sequence of at most max_tokens with such a plan, of which at
  // most most_judged entries of a head are judged at once.
  int64_t evidence_bytes(const KvPolicy& policy, const CompressionPlan& plan, int32_t most_judged,
                         int32_t max_tokens) const;
  // Throw Error(kOutOfMemory).
  std::unique_ptr<QueryWindow> make_query_window(int32_t first_token, int32_t num_tokens);
  std::unique_ptr<AttentionMass> make_attention_mass(int32_t max_entries);
  std::unique_ptr<QueryMoments> make_query_moments(const KvWants::Moments& wanted);
  std::unique_ptr<ValueNorms> make_value_norms(int32_t max_entries);
  std::unique_ptr<RepetitionAttention> make_repetition_attention(int32_t max_entries,
                                                                 const KvWants::Repetitions& wanted);
  std::unique_ptr<PageBounds> make_page_bounds(const KvPageReader& reader, int32_t max_entries);

  // Runs one step: logits [batch.logit_rows.size(), vocab_size], valid until the next call.
  std::span<float> forward(const ForwardBatch& batch);

 private:
  // What `make` makes of the memory pool, with the room of the prefix cache where there is no other.
  template <typename Make>
  auto with_room(const Make& make);

  ModelOptions options_;
  Isa isa_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  MemoryPlan plan_;
  ThreadPool threads_;
  MemoryPool pool_;
  Arena weights_;
  Arena experts_;
  Scratch scratch_;
  RouterTelemetry telemetry_;
  std::unique_ptr<KvCache> kv_;
};

// Logits of every position of `tokens`, computed in chunks as a prompt: calls sink(first position, count, logits
// [count, vocab_size]) after each chunk; the chunk's routes are in model.telemetry() then. Throws
// Error(kInvalidArgument) for an id outside the vocabulary or more tokens than the context holds.
//
// Models with an encoder need `input`; `tokens` are the decoder's then, which begin with its start token. With
// expert_capacity every chunk of them is limited as an input is, as in one forward pass of the original model; without,
// tokens do not depend on their chunk, as when they are generated.
struct ScoreInput {
  std::span<const TokenId> input = {};
  bool expert_capacity = false;
};
void score_tokens(LoadedModel& model, std::span<const TokenId> tokens, int32_t chunk,
                  const std::function<void(int32_t first, int32_t count, std::span<const float> logits)>& sink,
                  const ScoreInput& encoder = {});

// Throws Error(kInvalidArgument) naming place and value of an id outside [0, vocab_size).
void check_token_ids(std::span<const TokenId> tokens, int32_t vocab_size);

}  // namespace witan
