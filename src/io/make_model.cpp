#include "io/make_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <optional>

#include "base/check.h"
#include "base/error.h"
#include "io/byte_vocabulary.h"
#include "io/gguf_file_type.h"
#include "io/gguf_writer.h"
#include "io/tokenizer_source.h"
#include "tensor/random_bits.h"

namespace witan {
namespace {

enum class Weights {
  kMatrix,
  kNorm,
  kRouter,  // a matrix whose rows have norm 1
};

struct GeneratedTensor {
  GgufTensorHeader header;
  Weights weights = Weights::kMatrix;
  float stddev = 0;                                     // of a matrix
  std::optional<float> reserved_stddev = std::nullopt;  // of its rows for reserved tokens, where that differs
};

// ---- Metadata ------------------------------------------------------------------------------------------------------

// Sets `arch.key` for each key it is given.
class ArchKeys {
 public:
  ArchKeys(GgufMetadata& metadata, std::string_view arch) : metadata_(metadata), arch_(arch) {}

  void count(std::string_view key, int32_t value) { metadata_.set(full(key), static_cast<uint32_t>(value)); }
  template <typename T>
  void set(std::string_view key, T value) {
    metadata_.set(full(key), value);
  }

 private:
  std::string full(std::string_view key) const { return fmt::format("{}.{}", arch_, key); }

  GgufMetadata& metadata_;
  std::string_view arch_;
};

void set_yarn_keys(ArchKeys& keys, const ModelPreset& preset) {
  keys.set("rope.scaling.type", "yarn");
  keys.set("rope.scaling.factor", static_cast<float>(preset.yarn_factor));
  keys.count("rope.scaling.original_context_length", preset.yarn_context);
  keys.set("rope.scaling.yarn_beta_fast", 32.0f);
  keys.set("rope.scaling.yarn_beta_slow", 1.0f);
  if (preset.yarn_log_multiplier > 0) keys.set("rope.scaling.yarn_log_multiplier", preset.yarn_log_multiplier);
}

void set_attention_keys(ArchKeys& keys, const ModelPreset& preset) {
  keys.count("attention.head_count", preset.num_heads);
  keys.set("attention.layer_norm_rms_epsilon", preset.rms_epsilon);
  keys.set("rope.freq_base", preset.rope_freq_base);
  keys.count("rope.dimension_count", preset.rotated_dim > 0 ? preset.rotated_dim : preset.head_dim);
  if (preset.yarn_factor > 0) set_yarn_keys(keys, preset);
  if (preset.window > 0) keys.count("attention.sliding_window", preset.window);
  if (preset.latent_dim == 0) {
    keys.count("attention.head_count_kv", preset.num_kv_heads);
    keys.count("attention.key_length", preset.head_dim);
    keys.count("attention.value_length", preset.head_dim);
    return;
  }
  // One latent head, of which the *_mla keys tell what the real heads are expanded to.
  keys.count("attention.head_count_kv", 1);
  keys.count("attention.q_lora_rank", preset.q_latent_dim);
  keys.count("attention.kv_lora_rank", preset.latent_dim);
  keys.count("attention.key_length", preset.latent_dim + preset.rotated_dim);
  keys.count("attention.value_length", preset.latent_dim);
  keys.count("attention.key_length_mla", preset.content_dim + preset.rotated_dim);
  keys.count("attention.value_length_mla", preset.value_dim);
}

void set_ffn_keys(ArchKeys& keys, const ModelPreset& preset) {
  keys.count("feed_forward_length", preset.ffn_dim > 0 ? preset.ffn_dim : preset.expert_dim);
  if (preset.num_experts == 0) return;
  keys.count("expert_count", preset.num_experts);
  keys.count("expert_used_count", preset.experts_per_token);
  if (preset.ffn_dim > 0) keys.count("expert_feed_forward_length", preset.expert_dim);
  if (preset.gated_shared_dim > 0) keys.count("expert_shared_feed_forward_length", preset.gated_shared_dim);
  if (preset.num_shared_experts == 0) return;
  keys.count("expert_shared_count", preset.num_shared_experts);
  keys.count("leading_dense_block_count", preset.num_dense_layers);
  keys.set("expert_weights_scale", preset.routed_scale);
  keys.set("expert_weights_norm", preset.sigmoid_routing);
  keys.count("expert_gating_func", preset.sigmoid_routing ? 2 : 1);
  if (preset.num_groups == 0) return;
  keys.count("expert_group_count", preset.num_groups);
  keys.count("expert_group_used_count", preset.num_groups_used);
}

GgufMetadata make_metadata(const ModelPreset& preset, int32_t num_layers, const MakeModelOptions& options,
                           const TokenizerSource* tokenizer) {
  GgufMetadata metadata;
  metadata.set("general.architecture", preset.arch);
  metadata.set("general.type", "model");
  metadata.set("general.name", fmt::format("{} (random weights)", preset.name));
  metadata.set("general.description", fmt::format("random weights of seed {}, made for measuring", options.seed));
  metadata.set("general.file_type", gguf_file_type(options.dtype).id);
  metadata.set("general.quantization_version", uint32_t{2});
  ArchKeys keys(metadata, preset.arch);
  keys.count("vocab_size", preset.vocab_size);
  keys.count("context_length", preset.context_length);
  keys.count("embedding_length", preset.model_dim);
  keys.count("block_count", num_layers);
  set_attention_keys(keys, preset);
  set_ffn_keys(keys, preset);
  if (tokenizer == nullptr) {
    set_byte_vocabulary(metadata, preset.vocab_size);
  } else {
    tokenizer->copy_to(metadata);
  }
  return metadata;
}

// ---- Tensors -------------------------------------------------------------------------------------------------------

DType fitting_type(DType wanted, int64_t row_length) {
  for (const DType dtype : {wanted, DType::kQ8_0}) {
    if (row_length % quant_type(dtype).block_size == 0) return dtype;
  }
  return DType::kF16;
}

// Lists a model's tensors, in the order of the file.
class TensorList {
 public:
  TensorList(const ModelPreset& preset, DType dtype) : preset_(preset), dtype_(dtype) {}

  std::vector<GeneratedTensor> make(int32_t num_layers) {
    const int64_t model_dim = preset_.model_dim;
    GeneratedTensor& embeddings = add_matrix("token_embd.weight", {preset_.vocab_size, model_dim});
    if (preset_.tied_embeddings) {
      // Not 1: a token's likeness to itself would outweigh the layers, and the model repeat its last token. Reserved
      // tokens get an eighth of the others' logits; where they are inputs, the first norm makes up for it.
      embeddings.reserved_stddev = embeddings.stddev / 8;
    } else {
      embeddings.stddev = 1;
    }
    add_norm("output_norm.weight", model_dim);
    if (!preset_.tied_embeddings) {
      const DType dtype = dtype_ == DType::kQ4_K ? DType::kQ6_K : dtype_;
      add_matrix("output.weight", {preset_.vocab_size, model_dim}, dtype).reserved_stddev = 0;
    }
    for (int32_t layer = 0; layer < num_layers; ++layer) {
      prefix_ = fmt::format("blk.{}.", layer);
      add_norm("attn_norm.weight", model_dim);
      if (preset_.latent_dim > 0) {
        add_latent_attention();
      } else {
        add_attention();
      }
      add_norm(preset_.ffn_norm, model_dim);
      if (preset_.num_experts > 0 && layer >= preset_.num_dense_layers) {
        add_experts();
      } else {
        add_ffn("", preset_.ffn_dim);
      }
    }
    return std::move(tensors_);
  }

 private:
  GeneratedTensor& add(std::string_view name, std::vector<int64_t> shape, DType dtype, Weights weights) {
    tensors_.push_back({.header = {.name = prefix_ + std::string(name), .dtype = dtype, .shape = std::move(shape)},
                        .weights = weights});
    return tensors_.back();
  }

  GeneratedTensor& add_matrix(std::string_view name, std::vector<int64_t> shape, DType dtype) {
    const int64_t row_length = shape.back();
    GeneratedTensor& tensor = add(name, std::move(shape), fitting_type(dtype, row_length), Weights::kMatrix);
    tensor.stddev = 1 / std::sqrt(static_cast<float>(row_length));
    return tensor;
  }
  GeneratedTensor& add_matrix(std::string_view name, std::vector<int64_t> shape) {
    return add_matrix(name, std::move(shape), dtype_);
  }
  void add_norm(std::string_view name, int64_t size) { add(name, {size}, DType::kF32, Weights::kNorm); }

  // Small beside what it is added to, as a model's biases are.
  void add_bias(std::string_view name, std::vector<int64_t> shape) {
    add(name, std::move(shape), DType::kF32, Weights::kMatrix).stddev = 0.1f;
  }

  void add_attention() {
    const int64_t model_dim = preset_.model_dim;
    const int64_t q_dim = int64_t{preset_.num_heads} * preset_.head_dim;
    const int64_t kv_dim = int64_t{preset_.num_kv_heads} * preset_.head_dim;
    add_matrix("attn_q.weight", {q_dim, model_dim});
    add_matrix("attn_k.weight", {kv_dim, model_dim});
    add_matrix("attn_v.weight", {kv_dim, model_dim});
    add_matrix("attn_output.weight", {model_dim, q_dim});
    if (preset_.norm_heads || preset_.norm_whole) {
      add_norm("attn_q_norm.weight", preset_.norm_whole ? q_dim : preset_.head_dim);
      add_norm("attn_k_norm.weight", preset_.norm_whole ? kv_dim : preset_.head_dim);
    }
    if (preset_.qkv_bias) {
      add_bias("attn_q.bias", {q_dim});
      add_bias("attn_k.bias", {kv_dim});
      add_bias("attn_v.bias", {kv_dim});
    }
    if (preset_.output_bias) add_bias("attn_output.bias", {model_dim});
    if (preset_.sinks) add("attn_sinks.weight", {preset_.num_heads}, DType::kF32, Weights::kMatrix).stddev = 1;
  }

  void add_latent_attention() {
    const int64_t model_dim = preset_.model_dim;
    const int64_t num_heads = preset_.num_heads;
    const int64_t q_rows = num_heads * (preset_.content_dim + preset_.rotated_dim);
    if (preset_.q_latent_dim > 0) {
      add_matrix("attn_q_a.weight", {preset_.q_latent_dim, model_dim});
      add_norm("attn_q_a_norm.weight", preset_.q_latent_dim);
      add_matrix("attn_q_b.weight", {q_rows, preset_.q_latent_dim});
    } else {
      add_matrix("attn_q.weight", {q_rows, model_dim});
    }
    add_matrix("attn_kv_a_mqa.weight", {preset_.latent_dim + preset_.rotated_dim, model_dim});
    add_norm("attn_kv_a_norm.weight", preset_.latent_dim);
    // Stored transposed: what it computes a key from is the latent, not its own rows.
    add_matrix("attn_k_b.weight", {num_heads, preset_.latent_dim, preset_.content_dim}).stddev =
        1 / std::sqrt(static_cast<float>(preset_.latent_dim));
    add_matrix("attn_v_b.weight", {num_heads, preset_.value_dim, preset_.latent_dim});
    add_matrix("attn_output.weight", {model_dim, num_heads * preset_.value_dim});
  }

  void add_ffn(std::string_view suffix, int64_t ffn_dim) {
    const int64_t model_dim = preset_.model_dim;
    add_matrix(fmt::format("ffn_gate{}.weight", suffix), {ffn_dim, model_dim});
    add_matrix(fmt::format("ffn_up{}.weight", suffix), {ffn_dim, model_dim});
    add_matrix(fmt::format("ffn_down{}.weight", suffix), {model_dim, ffn_dim});
  }

  void add_experts() {
    const int64_t model_dim = preset_.model_dim;
    const int64_t num_experts = preset_.num_experts;
    const int64_t expert_dim = preset_.expert_dim;
    add("ffn_gate_inp.weight", {num_experts, model_dim}, DType::kF32, Weights::kRouter);
    add_matrix("ffn_gate_exps.weight", {num_experts, expert_dim, model_dim});
    add_matrix("ffn_up_exps.weight", {num_experts, expert_dim, model_dim});
    add_matrix("ffn_down_exps.weight", {num_experts, model_dim, expert_dim});
    if (preset_.num_shared_experts > 0) add_ffn("_shexp", preset_.num_shared_experts * expert_dim);
    if (preset_.gated_shared_dim > 0) {
      add_ffn("_shexp", preset_.gated_shared_dim);
      add("ffn_gate_inp_shexp.weight", {model_dim}, DType::kF32, Weights::kRouter);
    }
    if (preset_.sigmoid_routing) add_bias("exp_probs_b.bias", {num_experts});
    if (!preset_.expert_bias) return;
    add_bias("ffn_gate_inp.bias", {num_experts});
    add_bias("ffn_gate_exps.bias", {num_experts, expert_dim});
    add_bias("ffn_up_exps.bias", {num_experts, expert_dim});
    add_bias("ffn_down_exps.bias", {num_experts, model_dim});
  }

  const ModelPreset& preset_;
  DType dtype_;
  std::string prefix_;
  std::vector<GeneratedTensor> tensors_;
};

// One sentence for each kind of tensor ("ffn_down_exps.weight") that has not the type asked for because of its rows.
std::vector<std::string> fallback_notes(std::span<const GeneratedTensor> tensors, DType wanted) {
  struct Kind {
    std::string_view name;  // without the layer
    const GgufTensorHeader* first;
    int64_t count;
  };
  std::vector<Kind> kinds;
  for (const GeneratedTensor& tensor : tensors) {
    const GgufTensorHeader& header = tensor.header;
    if (tensor.weights != Weights::kMatrix || header.name.ends_with(".bias") ||
        header.name.ends_with("attn_sinks.weight") || header.row_length() % quant_type(wanted).block_size == 0)
      continue;
    std::string_view name = header.name;
    if (name.starts_with("blk.")) name.remove_prefix(name.find('.', 4) + 1);
    const auto found = std::find_if(kinds.begin(), kinds.end(), [name](const Kind& kind) { return kind.name == name; });
    if (found != kinds.end()) {
      ++found->count;
    } else {
      kinds.push_back({.name = name, .first = &header, .count = 1});
    }
  }
  std::vector<std::string> notes;
  for (const Kind& kind : kinds) {
    notes.push_back(fmt::format("{} ({} tensors) is {}, not {}: its rows of {} are no whole blocks of {}.", kind.name,
                                kind.count, quant_type(kind.first->dtype).name, quant_type(wanted).name,
                                kind.first->row_length(), quant_type(wanted).block_size));
  }
  return notes;
}

// ---- Weights -------------------------------------------------------------------------------------------------------

uint64_t seed_of_tensor(uint64_t seed, std::string_view name) {
  uint64_t hash = mix_bits(seed);
  for (const char c : name) hash = mix_bits(hash ^ static_cast<uint8_t>(c));
  return hash;
}

void generate_row(const GeneratedTensor& tensor, int64_t row, uint64_t seed, std::byte* out) {
  const int64_t length = tensor.header.row_length();
  if (tensor.weights == Weights::kMatrix) {
    const float stddev = row < kNumReservedTokens ? tensor.reserved_stddev.value_or(tensor.stddev) : tensor.stddev;
    quant_type(tensor.header.dtype).random(seed, stddev, out, length);
    return;
  }
  WITAN_CHECK(tensor.header.dtype == DType::kF32);
  auto* values = reinterpret_cast<float*>(out);
  if (tensor.weights == Weights::kNorm) {
    RandomBits bits(seed);
    for (int64_t i = 0; i < length; ++i) values[i] = 1 + 0.1f * bits.next_signed_unit();
    return;
  }
  quant_type(DType::kF32).random(seed, 1.0f, out, length);
  double sum_squares = 0;
  for (int64_t i = 0; i < length; ++i) sum_squares += static_cast<double>(values[i]) * values[i];
  const auto scale = static_cast<float>(1 / std::sqrt(sum_squares));
  for (int64_t i = 0; i < length; ++i) values[i] *= scale;
}

// Consecutive rows of one tensor, about kChunkBytes of them.
struct Chunk {
  size_t tensor;
  int64_t first_row;
  int64_t num_rows;
};

// What one thread makes before it writes: large enough that the calls do not count, small enough to stay in its cache.
constexpr int64_t kChunkBytes = 1 << 19;

std::vector<Chunk> split_into_chunks(std::span<const GeneratedTensor> tensors) {
  std::vector<Chunk> chunks;
  for (size_t tensor = 0; tensor < tensors.size(); ++tensor) {
    const GgufTensorHeader& header = tensors[tensor].header;
    const int64_t num_rows = header.num_rows();
    const int64_t row_bytes = header.num_bytes() / num_rows;
    const int64_t step = std::max<int64_t>(1, kChunkBytes / row_bytes);
    for (int64_t row = 0; row < num_rows; row += step) {
      chunks.push_back({.tensor = tensor, .first_row = row, .num_rows = std::min(step, num_rows - row)});
    }
  }
  return chunks;
}

void generate_chunk(const GeneratedTensor& tensor, const Chunk& chunk, uint64_t seed, std::vector<std::byte>& out) {
  const int64_t row_bytes = quant_type(tensor.header.dtype).row_bytes(tensor.header.row_length());
  out.resize(static_cast<size_t>(chunk.num_rows * row_bytes));
  const uint64_t tensor_seed = seed_of_tensor(seed, tensor.header.name);
  for (int64_t i = 0; i < chunk.num_rows; ++i) {
    const int64_t row = chunk.first_row + i;
    generate_row(tensor, row, tensor_seed + static_cast<uint64_t>(row), out.data() + i * row_bytes);
  }
}

void write_weights(std::span<const GeneratedTensor> tensors, uint64_t seed, GgufWriter& writer, ThreadPool& threads,
                   const MakeProgress& progress) {
  const std::vector<Chunk> chunks = split_into_chunks(tensors);
  std::vector<std::vector<std::byte>> buffers(static_cast<size_t>(threads.num_threads()));
  std::atomic<bool> failed{false};
  int64_t bytes_total = 0;
  for (const GeneratedTensor& tensor : tensors) bytes_total += tensor.header.num_bytes();
  std::mutex mutex;
  int64_t bytes_done = 0;
  std::exception_ptr first_error;  // the body of a loop must not throw
  threads.parallel_for(static_cast<int64_t>(chunks.size()), [&](int64_t item, int thread) {
    if (failed) return;
    const Chunk& chunk = chunks[item];
    std::vector<std::byte>& buffer = buffers[thread];
    try {
      generate_chunk(tensors[chunk.tensor], chunk, seed, buffer);
      const int64_t row_bytes = static_cast<int64_t>(buffer.size()) / chunk.num_rows;
      writer.write(chunk.tensor, chunk.first_row * row_bytes, buffer);
      const std::lock_guard lock(mutex);
      bytes_done += std::ssize(buffer);
      if (progress) progress(bytes_done, bytes_total);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!first_error) first_error = std::current_exception();
      failed = true;
    }
  });
  if (first_error) std::rethrow_exception(first_error);
}

}  // namespace

int64_t count_parameters(const ModelPreset& preset, int32_t num_layers) {
  int64_t count = 0;
  for (const GeneratedTensor& tensor : TensorList(preset, DType::kF32).make(num_layers)) {
    count += tensor.header.num_rows() * tensor.header.row_length();
  }
  return count;
}

MadeModel make_model(const ModelPreset& shape, const MakeModelOptions& options, const std::string& path,
                     ThreadPool& threads, const MakeProgress& progress) {
  ModelPreset preset = shape;
  std::optional<TokenizerSource> tokenizer;
  if (!options.tokenizer_path.empty()) {
    tokenizer.emplace(options.tokenizer_path);
    preset.vocab_size = static_cast<int32_t>(tokenizer->vocab_size());
  }
  constexpr int32_t kMaxLayers = 1024;
  if (options.num_layers < 0 || options.num_layers > kMaxLayers) {
    fail(ErrorCode::kInvalidArgument, "cannot make a model of {} layers: expected 1 to {}, or 0 for the preset's {}",
         options.num_layers, kMaxLayers, preset.num_layers);
  }
  const int32_t num_layers = options.num_layers > 0 ? options.num_layers : preset.num_layers;
  std::vector<GeneratedTensor> tensors = TensorList(preset, options.dtype).make(num_layers);
  if (tokenizer) {
    for (GeneratedTensor& tensor : tensors) tensor.reserved_stddev.reset();
  }
  std::vector<GgufTensorHeader> headers;
  MadeModel made;
  for (const GeneratedTensor& tensor : tensors) headers.push_back(tensor.header);
  made.num_parameters = count_parameters(preset, num_layers);
  made.num_tensors = static_cast<int64_t>(tensors.size());
  made.notes = fallback_notes(tensors, options.dtype);

  GgufWriter writer(path, make_metadata(preset, num_layers, options, tokenizer ? &*tokenizer : nullptr),
                    std::move(headers));
  write_weights(tensors, options.seed, writer, threads, progress);
  made.file_bytes = writer.file_bytes();
  writer.finish();
  return made;
}

}  // namespace witan
