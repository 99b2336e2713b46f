#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "base/error.h"
#include "io/checkpoint_formats.h"
#include "io/gguf_config.h"
#include "io/gguf_parts.h"
#include "io/tensor_table.h"
#include "text/tokenizer_factory.h"

namespace witan {
namespace {

constexpr std::string_view kModelKey = "tokenizer.ggml.model";
constexpr std::string_view kTokensKey = "tokenizer.ggml.tokens";
constexpr std::string_view kTokenTypesKey = "tokenizer.ggml.token_type";

constexpr std::string_view kTemplateKey = "tokenizer.chat_template";
constexpr std::string_view kTemplateNamesKey = "tokenizer.chat_templates";

constexpr int32_t kControlToken = 3;  // in token_type

// How models spell a token that ends their turn. Many files name only one of them in eos_token_id.
constexpr std::array<std::string_view, 12> kEndOfTurnPieces = {
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>",         "<end_of_turn>", "<|return|>",
    "<|call|>",   "<|eot|>",    "<EOT>",      "<|end_of_text|>", "<|endoftext|>", "<|end_of_turn|>"};
// In the Harmony format of gpt-oss, "<|end|>" ends one message of a turn that goes on; "<|return|>" and "<|call|>" end
// it.
constexpr std::string_view kEndOfMessagePiece = "<|end|>";
constexpr std::string_view kHarmonyPiece = "<|return|>";

std::optional<int64_t> optional_int(const GgufConfig& config, std::string_view key) {
  return config.has(key) ? std::optional(config.get_int(key)) : std::nullopt;
}

std::optional<bool> optional_bool(const GgufConfig& config, std::string_view key) {
  return config.has(key) ? std::optional(config.get_bool(key)) : std::nullopt;
}

std::vector<int32_t> read_token_types(const GgufConfig& config, const std::string& source) {
  std::vector<int32_t> types;
  if (!config.has(kTokenTypesKey)) return types;
  for (const int64_t type : config.get_ints(kTokenTypesKey)) {
    if (!std::in_range<int32_t>(type)) {
      fail(ErrorCode::kBadFile, "{}: {} holds {}, expected 1 to 6", source, kTokenTypesKey, type);
    }
    types.push_back(static_cast<int32_t>(type));
  }
  return types;
}

class GgufCheckpoint final : public Checkpoint {
 public:
  explicit GgufCheckpoint(const std::string& path)
      : path_(path),
        parts_(open_gguf_parts(path)),
        config_(parts_.front()->gguf, parts_.front()->file.path()),
        architecture_(config_.get_string("general.architecture")) {
    for (const auto& part : parts_) {
      for (const GgufTensor& tensor : part->gguf.tensors) {
        tensors_.add({.name = std::string(tensor.name),
                      .dtype = tensor.dtype,
                      .shape = tensor.shape,
                      .data = tensor.data,
                      .file = part->file.path()});
      }
    }
    add_named_ends();
    add_ends_by_piece();
  }

  CheckpointFormat format() const override { return CheckpointFormat::kGguf; }
  const std::string& path() const override { return path_; }
  const std::string& architecture() const override { return architecture_; }
  const CheckpointConfig& config() const override { return config_; }
  std::span<const TensorEntry> tensors() const override { return tensors_.tensors(); }
  const TensorEntry* find(std::string_view name) const override { return tensors_.find(name); }
  std::vector<TokenId> end_of_generation_tokens() const override { return ends_; }
  std::unique_ptr<Tokenizer> load_tokenizer() const override;
  std::vector<ChatTemplateText> chat_templates() const override;
  SpecialTokenNames special_tokens() const override;

 private:
  const std::string& metadata_file() const { return parts_.front()->file.path(); }
  void add_named_ends();
  void add_ends_by_piece();
  void add_end(TokenId token) {
    if (std::find(ends_.begin(), ends_.end(), token) == ends_.end()) ends_.push_back(token);
  }

  std::string path_;
  std::vector<std::unique_ptr<GgufPart>> parts_;
  GgufConfig config_;
  std::string architecture_;
  TensorTable tensors_;
  std::vector<TokenId> ends_;
};

void GgufCheckpoint::add_named_ends() {
  const int64_t vocab_size =
      config_.has(kTokensKey) ? std::ssize(config_.view_strings(kTokensKey)) : std::numeric_limits<TokenId>::max();
  for (const std::string_view key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    const std::optional<int64_t> token = optional_int(config_, key);
    if (!token) continue;
    if (*token < 0 || *token >= vocab_size) {
      fail(ErrorCode::kBadFile, "{}: {} is {}, expected a token below {}", metadata_file(), key, *token, vocab_size);
    }
    add_end(static_cast<TokenId>(*token));
  }
}

void GgufCheckpoint::add_ends_by_piece() {
  if (!config_.has(kTokensKey) || !config_.has(kTokenTypesKey)) return;
  const std::span<const std::string_view> pieces = config_.view_strings(kTokensKey);
  const std::vector<int32_t> types = read_token_types(config_, metadata_file());
  if (types.size() != pieces.size()) {
    fail(ErrorCode::kBadFile, "{}: {} has {} elements, expected {} as {} has", metadata_file(), kTokenTypesKey,
         types.size(), pieces.size(), kTokensKey);
  }
  std::vector<size_t> found;
  bool is_harmony = false;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (types[i] != kControlToken) continue;
    if (std::find(kEndOfTurnPieces.begin(), kEndOfTurnPieces.end(), pieces[i]) == kEndOfTurnPieces.end()) continue;
    found.push_back(i);
    is_harmony = is_harmony || pieces[i] == kHarmonyPiece;
  }
  for (const size_t i : found) {
    if (!(is_harmony && pieces[i] == kEndOfMessagePiece)) add_end(static_cast<TokenId>(i));
  }
}

std::unique_ptr<Tokenizer> GgufCheckpoint::load_tokenizer() const {
  if (!config_.has(kModelKey) && !config_.has(kTokensKey)) return nullptr;
  GgufTokenizerFields fields;
  fields.source = metadata_file();
  fields.model = config_.get_string(kModelKey);
  if (fields.model == "none" || fields.model == "no_vocab") return nullptr;
  const CheckpointConfig& config = config_;
  fields.pre = config.get_string("tokenizer.ggml.pre", "");
  fields.tokens = config_.get_strings(kTokensKey);
  if (config_.has("tokenizer.ggml.scores")) fields.scores = config_.get_floats("tokenizer.ggml.scores");
  fields.token_types = read_token_types(config_, fields.source);
  if (config_.has("tokenizer.ggml.merges")) fields.merges = config_.get_strings("tokenizer.ggml.merges");
  fields.bos = optional_int(config_, "tokenizer.ggml.bos_token_id");
  fields.eos = optional_int(config_, "tokenizer.ggml.eos_token_id");
  fields.unk = optional_int(config_, "tokenizer.ggml.unknown_token_id");
  fields.pad = optional_int(config_, "tokenizer.ggml.padding_token_id");
  fields.add_bos = optional_bool(config_, "tokenizer.ggml.add_bos_token");
  fields.add_eos = optional_bool(config_, "tokenizer.ggml.add_eos_token");
  fields.add_space_prefix = optional_bool(config_, "tokenizer.ggml.add_space_prefix");
  fields.remove_extra_whitespaces = optional_bool(config_, "tokenizer.ggml.remove_extra_whitespaces");
  constexpr std::string_view kCharsmapKey = "tokenizer.ggml.precompiled_charsmap";
  if (config_.has(kCharsmapKey)) {
    for (const int64_t byte : config_.get_ints(kCharsmapKey)) {  // uint8 or int8
      if (byte < -128 || byte > 255) {
        fail(ErrorCode::kBadFile, "{}: {} holds {}, expected bytes", fields.source, kCharsmapKey, byte);
      }
      fields.precompiled_charsmap += static_cast<char>(byte);
    }
  }
  return tokenizer_from_gguf(std::move(fields));
}

std::vector<ChatTemplateText> GgufCheckpoint::chat_templates() const {
  std::vector<ChatTemplateText> templates;
  const auto add = [&](std::string_view name, const std::string& key) {
    templates.push_back({std::string(name), config_.get_string(key), fmt::format("{}: {}", metadata_file(), key)});
  };
  if (config_.has(kTemplateKey)) add("default", std::string(kTemplateKey));
  if (!config_.has(kTemplateNamesKey)) return templates;
  for (const std::string_view name : config_.view_strings(kTemplateNamesKey)) {
    if (name != "default" || templates.empty()) add(name, fmt::format("{}.{}", kTemplateKey, name));
  }
  return templates;
}

SpecialTokenNames GgufCheckpoint::special_tokens() const {
  SpecialTokenNames names;
  if (!config_.has(kTokensKey)) return names;
  const std::span<const std::string_view> pieces = config_.view_strings(kTokensKey);
  for (const auto& [name, key] :
       {std::pair("bos_token", "tokenizer.ggml.bos_token_id"), std::pair("eos_token", "tokenizer.ggml.eos_token_id"),
        std::pair("unk_token", "tokenizer.ggml.unknown_token_id"),
        std::pair("pad_token", "tokenizer.ggml.padding_token_id")}) {
    const std::optional<int64_t> id = optional_int(config_, key);
    if (id && *id >= 0 && *id < std::ssize(pieces)) names.emplace_back(name, pieces[static_cast<size_t>(*id)]);
  }
  return names;
}

}  // namespace

std::unique_ptr<Checkpoint> open_gguf_checkpoint(const std::string& path) {
  return std::make_unique<GgufCheckpoint>(path);
}

}  // namespace witan
