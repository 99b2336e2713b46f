#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/quant_type.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace witan {

enum class CheckpointFormat : uint8_t { kGguf, kHuggingFace };

struct ConversionLog;

struct TensorEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;       // outermost first, in both formats
  std::span<const std::byte> data;  // row-major, in the mapped file; may be unaligned
  std::string_view file;            // which file holds it, for messages
  // Codes or scales of weights that are `dtype` only together (tensor/huggingface_rows.h): a byte per element.
  bool is_part = false;

  int64_t num_elements() const;
};

// Typed access to a checkpoint's settings: GGUF metadata, or config.json. Keys are spelled as the format does
// ("qwen3moe.block_count", "num_hidden_layers"; "rope_scaling.factor" walks into a JSON object).
// Getters without a default throw Error(kBadFile) naming file and key when it is absent; all throw, naming file, key,
// expected and found, when it has another type or does not fit (a fraction where an integer is wanted, 2^40 for int32).
class CheckpointConfig {
 public:
  virtual ~CheckpointConfig() = default;
  virtual bool has(std::string_view key) const = 0;  // present and not null
  virtual int64_t get_int(std::string_view key) const = 0;
  virtual double get_double(std::string_view key) const = 0;  // integers are accepted
  virtual bool get_bool(std::string_view key) const = 0;
  virtual std::string get_string(std::string_view key) const = 0;
  virtual std::vector<int64_t> get_ints(std::string_view key) const = 0;  // a scalar counts as one element
  virtual std::vector<std::string> get_strings(std::string_view key) const = 0;

  int64_t get_int(std::string_view key, int64_t fallback) const { return has(key) ? get_int(key) : fallback; }
  double get_double(std::string_view key, double fallback) const { return has(key) ? get_double(key) : fallback; }
  bool get_bool(std::string_view key, bool fallback) const { return has(key) ? get_bool(key) : fallback; }
  std::string get_string(std::string_view key, std::string_view fallback) const {
    return has(key) ? get_string(key) : std::string(fallback);
  }
};

// A chat template that a model's files carry.
struct ChatTemplateText {
  std::string name;  // "default", "tool_use", ...
  std::string text;
  std::string source;  // file, and key where the file has several, for messages
};

// How a model's authors want it sampled (generation_config.json); what the file does not say is absent. Values are in
// the ranges of SamplingParams.
struct GenerationDefaults {
  bool do_sample = false;  // false: greedy, and temperature, top_k and top_p are not to be used
  std::optional<double> temperature;
  std::optional<int32_t> top_k;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<int32_t> max_new_tokens;
};

// An opened model: a GGUF file (any part of a split one: the others are found beside it) or a Hugging Face directory
// (config.json, model.safetensors or model.safetensors.index.json with its shards). Files are mapped read-only and
// everything their headers claim is checked on opening: sizes, offsets, alignment, overlap, dtypes, duplicates, shards.
class Checkpoint {
 public:
  // Throws Error: kIo when it cannot be read, kBadFile naming file, key or tensor, expected and found, kUnsupported
  // for a tensor type that Witan does not read.
  static std::unique_ptr<Checkpoint> open(const std::string& path);
  virtual ~Checkpoint() = default;

  virtual CheckpointFormat format() const = 0;
  virtual const std::string& path() const = 0;
  // GGUF general.architecture ("llama", "qwen3moe"), or config.json model_type ("mixtral", "qwen3_moe").
  virtual const std::string& architecture() const = 0;
  virtual const CheckpointConfig& config() const = 0;

  virtual std::span<const TensorEntry> tensors() const = 0;
  virtual const TensorEntry* find(std::string_view name) const = 0;

  // The tokenizer it carries, from GGUF metadata or tokenizer.json + tokenizer_config.json; nullptr when it has none
  // (GGUF tokenizer.ggml.model = "none", or no tokenizer.json). Throws as open does.
  virtual std::unique_ptr<Tokenizer> load_tokenizer() const = 0;

  // Tokens that end a generation, from metadata, config.json and generation_config.json. May be empty.
  virtual std::vector<TokenId> end_of_generation_tokens() const = 0;

  // From GGUF tokenizer.chat_template and tokenizer.chat_template.NAME; or chat_template.jinja,
  // additional_chat_templates/NAME.jinja and tokenizer_config.json, the files before that key. The default one first.
  virtual std::vector<ChatTemplateText> chat_templates() const { return {}; }
  // Text of the special tokens by the names that templates use: bos_token, eos_token, unk_token, pad_token.
  virtual SpecialTokenNames special_tokens() const { return {}; }
  // From generation_config.json; GGUF files have none.
  virtual GenerationDefaults generation_defaults() const { return {}; }

  // The template named so; with an empty name "tool_use" where there are tools and such a template, else "default",
  // else the first. nullptr when the model has no template at all. Throws Error(kInvalidArgument), listing the names,
  // for one that it does not have; errors of ChatTemplate.
  std::unique_ptr<ChatTemplate> load_chat_template(std::string_view name = {}, bool has_tools = false) const;

  // Where whoever reads this checkpoint notes what GGUF files call what it reads; nullptr: nobody converts. Weights are
  // then named, not loaded. Only for Hugging Face directories.
  ConversionLog* conversion_log() const { return conversion_log_; }
  void set_conversion_log(ConversionLog* log) { conversion_log_ = log; }

 private:
  ConversionLog* conversion_log_ = nullptr;
};

}  // namespace witan
