#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/thread_pool.h"
#include "tensor/quant_type.h"

namespace witan {

// The shape of a model that make_model can write, in the terms of its architecture's GGUF keys. A zero means that the
// model does not have the thing.
struct ModelPreset {
  std::string_view arch;  // general.architecture
  std::string_view name;
  std::string_view description;
  int32_t num_layers = 0;
  int32_t model_dim = 0;
  int32_t vocab_size = 0;
  int32_t context_length = 0;
  int32_t num_heads = 0;
  float rms_epsilon = 0;
  float rope_freq_base = 0;

  // Attention with a key and a value of head_dim for each of num_kv_heads.
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  bool norm_heads = false;  // RMSNorm of q and k per head
  bool norm_whole = false;  // or over all heads together
  bool qkv_bias = false;
  bool output_bias = false;
  bool sinks = false;  // a learned logit per head
  int32_t window = 0;  // sliding window

  // Multi-head latent attention instead, where latent_dim > 0.
  int32_t latent_dim = 0;    // kv_lora_rank
  int32_t q_latent_dim = 0;  // q_lora_rank
  int32_t content_dim = 0;   // of a head's query and key, without position ("nope")
  int32_t value_dim = 0;     // of a head

  int32_t rotated_dim = 0;   // of a head's query and key, with position; 0: all of head_dim
  int32_t yarn_factor = 0;   // rope scaling
  int32_t yarn_context = 0;  // the context length before scaling
  float yarn_log_multiplier = 0;
  std::string_view ffn_norm = "ffn_norm.weight";

  int32_t ffn_dim = 0;           // of dense layers; 0: the file has one width, and it is the experts'
  int32_t num_experts = 0;       // 0: all layers are dense
  int32_t num_dense_layers = 0;  // leading layers without experts
  int32_t experts_per_token = 0;
  int32_t expert_dim = 0;  // of one expert
  int32_t num_shared_experts = 0;
  int32_t gated_shared_dim = 0;  // of a shared expert with a gate
  bool expert_bias = false;      // and of the router
  bool sigmoid_routing = false;  // with a bias for choosing
  float routed_scale = 0;
  int32_t num_groups = 0;  // of experts
  int32_t num_groups_used = 0;

  bool tied_embeddings = false;  // the output projection is the embedding table
};

// All presets: the sizes of published models, and "tiny" ones of a few MB with rows that every quant type fits.
std::span<const ModelPreset> model_presets();

// Throws Error(kInvalidArgument) naming the architectures, or the presets of this one, when there is none of the name.
const ModelPreset& find_model_preset(std::string_view arch, std::string_view name);

int64_t count_parameters(const ModelPreset& preset, int32_t num_layers);

struct MakeModelOptions {
  int32_t num_layers = 0;     // 0: as many as the preset has
  DType dtype = DType::kF32;  // of matrices; see make_model
  uint64_t seed = 1;
  std::string tokenizer_path = {};  // of a model whose tokenizer to take, and with it the size of its vocabulary
};

struct MadeModel {
  int64_t file_bytes = 0;
  int64_t num_parameters = 0;
  int64_t num_tensors = 0;
  // Where rows were no whole blocks of the type asked for: which tensors, the type they got and why, one sentence per
  // kind of tensor. To be shown.
  std::vector<std::string> notes;
};

// Told the bytes of tensor data written so far, by one thread at a time.
using MakeProgress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;

// Writes a GGUF file of the preset's shape with seeded random weights, for benchmarks and tests that need a model's
// size but not its sense. A layer's weights depend on the seed, the type and the layer's number only.
//
// Matrices have mean 0 and deviation 1 / sqrt(inputs), norm weights lie in 1 +- 0.1, and embeddings have deviation 1
// where they are not the output projection too: what a layer adds is of size 1, and logits are too, however deep the
// model. The rows of a router all have norm 1, so that inputs of random direction choose its experts equally often.
// The vocabulary is that of byte_vocabulary.h; the rows of the output projection that belong to its reserved tokens are
// 0 (small where the embeddings are tied), so greedy decoding gives printable words and never ends by itself.
//
// With a tokenizer of another model, no rows are special and there are as many as it has tokens.
//
// Types are as llama.cpp mixes them: norms and routers F32, matrices `dtype`, but the output projection Q6_K where
// dtype is Q4_K. A matrix whose rows are no whole blocks falls back to Q8_0, or to F16 where that does not fit either.
//
// Throws Error(kInvalidArgument) for a bad option, Error(kIo) as GgufWriter does.
MadeModel make_model(const ModelPreset& preset, const MakeModelOptions& options, const std::string& path,
                     ThreadPool& threads, const MakeProgress& progress = {});

}  // namespace witan
