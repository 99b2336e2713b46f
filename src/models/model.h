#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/types.h"
#include "kv/kv_cache.h"
#include "kv/policy/kv_evidence.h"
#include "kv/shifted_copy.h"
#include "moe/telemetry.h"
#include "nn/compute_context.h"

namespace witan {

class WeightLoader;

// What the rest of Witan needs to know about a model, read from its configuration alone.
struct ModelInfo {
  std::string architecture;  // name in the registry: "mixtral"
  int32_t vocab_size = 0;
  int32_t context_length = 0;  // tokens the model was made for
  int32_t model_dim = 0;
  int32_t num_layers = 0;
  int32_t num_heads = 0;
  // Of a query head, in the attention of prompts. That of generated tokens is as wide as the KV entries are.
  int32_t prompt_key_dim = 0;
  int32_t prompt_value_dim = 0;
  std::vector<KvLayerSpec> kv_layers;  // of the text that is generated: [num_layers] without an encoder

  // Models with an encoder read a prompt with it and generate a text that begins with decoder_start_token.
  bool has_encoder = false;
  TokenId decoder_start_token = 0;
  std::vector<KvLayerSpec> input_layers;  // cross-attention, whose entries the encoder makes
  // Layers behind these that the file may have and generation does not use: they predict further tokens.
  int32_t num_unused_layers = 0;

  std::vector<int32_t> moe_layers;  // their layer numbers; empty for a dense model
  int32_t num_experts = 0;
  int32_t top_k = 0;

  // For planning memory before loading.
  int64_t derived_weight_bytes = 0;        // packed copies beyond the file's own tensors
  int64_t activation_bytes_per_token = 0;  // scratch of one step, per token of the step
  int64_t thread_bytes_per_token = 0;      // the same, of each thread
  int64_t activation_bytes_per_entry = 0;  // and per KV entry of the longest sequence in it

  // Entries of generated tokens have other bits than the same tokens in a prompt (MLA: absorbed and expanded attention
  // round differently), so the prefix cache must tell them apart.
  bool generated_entries_differ = false;
};

// Consecutive tokens of one sequence in a batch.
struct SequenceSlice {
  SequenceId kv_sequence = 0;
  int32_t first_row = 0;  // of the batch's tokens
  int32_t num_tokens = 0;
  int32_t first_token = 0;               // tokens that the KV cache has already; the slice's follow
  const KvEvidence* evidence = nullptr;  // collects what the sequence's KV policy wants; nullptr: nothing

  // Of a repetition of the prompt (kv/policy/repetition.h): the chunk of it, and how many of its tokens were computed
  // before. They are among the first_token, their entries written but not committed.
  KvSpan repeated_chunk = {};
  int32_t num_uncommitted = 0;

  // Of a text whose entries are there already, none dropped, committed or reserved: the slice's rows have any
  // positions, ascending, and each sees the entries up to its own. They are replaced by those that the rows make, or
  // just read.
  enum class InPlace : uint8_t { kNo, kReplaces, kReads };
  InPlace in_place = InPlace::kNo;
  // [num_tokens] of rows that replace entries: how far the values in the batch's last layer were from the new ones, as
  // the squared distance over all heads; nullptr: not wanted.
  float* value_deviations = nullptr;

  // Of a table before the slice's are written.
  int32_t num_entries(const KvCache& kv, int32_t layer, int32_t head) const {
    return kv.num_entries(kv_sequence, layer, head) + num_uncommitted;
  }
  // Of a table: the place of the slice's row i in it. positions: of the batch.
  int32_t entry(const KvCache& kv, int32_t layer, int32_t head, int32_t i, std::span<const int32_t> positions) const {
    if (in_place == InPlace::kNo) return num_entries(kv, layer, head) + i;
    return positions[static_cast<size_t>(first_row) + static_cast<size_t>(i)];
  }
};

// An input that is encoded in this step: the tokens of a sequence that shares it with others, perhaps.
struct EncoderInput {
  SequenceId kv_sequence = 0;
  std::vector<TokenId> tokens;
};

// The tokens of one step, flat. Row i is token tokens[i] at position positions[i] of its text.
struct ForwardBatch {
  std::vector<TokenId> tokens;     // [num_tokens]
  std::vector<int32_t> positions;  // [num_tokens]
  std::vector<TokenRole> roles;    // [num_tokens]; within a slice prompt tokens come before generated ones
  std::vector<SequenceSlice> slices;
  std::vector<int32_t> logit_rows;  // ascending rows whose logits are wanted
  std::vector<EncoderInput> inputs = {};
  // Whether an expert's capacity counts over each slice of the text, as it always does over an input. What a token
  // computes then depends on the slice it is in.
  bool expert_capacity = false;
  // >= 0: only the layers before this one are computed, and of this one what goes into the KV cache. No logits then.
  int32_t last_layer = -1;

  bool ends_at(int32_t layer) const { return layer == last_layer; }
  bool writes_entries() const {
    return std::ranges::any_of(
        slices, [](const SequenceSlice& slice) { return slice.in_place != SequenceSlice::InPlace::kReads; });
  }
  int64_t num_tokens() const { return std::ssize(tokens); }
};

struct ForwardContext {
  ComputeContext compute;
  KvCache& kv;
  RouterTelemetry& telemetry;
};

// One architecture. Configuration and weights come from a checkpoint; after load() a model is immutable, and forward
// writes only the KV entries of its batch, the telemetry and the logits.
class Model {
 public:
  virtual ~Model() = default;

  virtual const ModelInfo& info() const = 0;

  // Packs the weights. Throws Error(kBadFile) naming a missing or misshapen tensor, Error(kOutOfMemory).
  virtual void load(WeightLoader& weights) = 0;

  // Computes the batch and writes logits [logit_rows.size(), vocab_size] f32. The batch's entries were reserved in
  // the KV cache and are written here, not committed.
  virtual void forward(ForwardContext& ctx, const ForwardBatch& batch, float* logits) const = 0;

  // Of all layers; none where keys cannot be moved to other positions.
  virtual std::optional<KeyRope> key_rope() const { return std::nullopt; }

  // Makes `norms` know the values of all committed entries of a sequence. Models with an encoder have no KV
  // policies.
  virtual void learn_value_norms(ComputeContext&, const KvCache&, SequenceId, ValueNorms&) const {
    WITAN_CHECK(false, "{} learns no value norms", info().architecture);
  }
};

}  // namespace witan
