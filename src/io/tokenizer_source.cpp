#include "io/tokenizer_source.h"

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "base/error.h"
#include "io/gguf_parts.h"
#include "text/json_text.h"
#include "text/tokenizer_export.h"

namespace witan {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTokensKey = "tokenizer.ggml.tokens";

std::string read_if_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error) ? std::string(MappedFile(path.string()).text()) : std::string();
}

void set_id(GgufMetadata& metadata, std::string_view key, const std::optional<int64_t>& id) {
  if (id) metadata.set(key, static_cast<uint32_t>(*id));
}

void set_end_tokens(std::span<const TokenId> ends, GgufTokenizerFields& fields, GgufMetadata& metadata) {
  // Where several tokens end a generation, a file names two: of a text, and of a turn.
  if (!fields.eos && !ends.empty()) fields.eos = ends.front();
  for (const TokenId end : ends) {
    if (end == fields.eos) continue;
    set_id(metadata, "tokenizer.ggml.eot_token_id", end);
    break;
  }
}

// In tokenizer_config.json, or in a file of its own.
void set_chat_template(const fs::path& directory, GgufMetadata& metadata) {
  std::string chat = read_if_there(directory / "chat_template.jinja");
  const fs::path config_path = directory / "tokenizer_config.json";
  const std::string config = read_if_there(config_path);
  if (chat.empty() && !config.empty()) {
    const nlohmann::json parsed = parse_json_object(config, config_path.string());
    const auto found = parsed.find("chat_template");
    if (found != parsed.end() && found->is_string()) chat = found->get<std::string>();
  }
  if (!chat.empty()) metadata.set("tokenizer.chat_template", chat);
}

}  // namespace

void set_directory_tokenizer(const std::string& directory, std::span<const TokenId> ends, int64_t vocab_size,
                             GgufMetadata& metadata) {
  const fs::path path = fs::path(directory) / "tokenizer.json";
  const std::string tokenizer = read_if_there(path);
  set_chat_template(directory, metadata);
  if (tokenizer.empty()) {
    metadata.set("tokenizer.ggml.model", "none");
    return;
  }
  const std::string config = read_if_there(fs::path(directory) / "tokenizer_config.json");
  GgufTokenizerFields fields = gguf_fields_from_json(tokenizer, config, vocab_size, path.string());
  metadata.set("tokenizer.ggml.model", fields.model);
  metadata.set("tokenizer.ggml.pre", fields.pre);
  metadata.set_array(kTokensKey, std::span<const std::string>(fields.tokens));
  metadata.set_array("tokenizer.ggml.token_type", std::span<const int32_t>(fields.token_types));
  if (!fields.scores.empty()) metadata.set_array("tokenizer.ggml.scores", std::span<const float>(fields.scores));
  if (!fields.merges.empty()) metadata.set_array("tokenizer.ggml.merges", std::span<const std::string>(fields.merges));
  set_end_tokens(ends, fields, metadata);
  set_id(metadata, "tokenizer.ggml.bos_token_id", fields.bos);
  set_id(metadata, "tokenizer.ggml.eos_token_id", fields.eos);
  set_id(metadata, "tokenizer.ggml.unknown_token_id", fields.unk);
  set_id(metadata, "tokenizer.ggml.padding_token_id", fields.pad);
  if (fields.add_bos) metadata.set("tokenizer.ggml.add_bos_token", *fields.add_bos);
  if (fields.add_eos) metadata.set("tokenizer.ggml.add_eos_token", *fields.add_eos);
  if (fields.add_space_prefix) metadata.set("tokenizer.ggml.add_space_prefix", *fields.add_space_prefix);
}

struct TokenizerSource::Gguf {
  std::vector<std::unique_ptr<GgufPart>> parts;
};

TokenizerSource::TokenizerSource(const std::string& path) : path_(path) {
  if (fs::is_directory(path)) {
    const fs::path file = fs::path(path) / "tokenizer.json";
    const MappedFile tokenizer(file.string());
    vocab_size_ =
        tokenizer_from_json(tokenizer.text(), read_if_there(fs::path(path) / "tokenizer_config.json"), file.string())
            ->vocab_size();
    return;
  }
  gguf_ = std::make_unique<Gguf>(Gguf{open_gguf_parts(path)});
  const auto& metadata = gguf_->parts.front()->gguf.metadata;
  const auto tokens = metadata.find(kTokensKey);
  if (tokens == metadata.end() || !tokens->second.is_array || tokens->second.type != GgufType::kString) {
    fail(ErrorCode::kUnsupported, "{}: no tokenizer in it: key {} is no array of strings", path, kTokensKey);
  }
  vocab_size_ = static_cast<int64_t>(tokens->second.count);
}

TokenizerSource::~TokenizerSource() = default;

void TokenizerSource::copy_to(GgufMetadata& metadata) const {
  if (gguf_ == nullptr) {
    set_directory_tokenizer(path_, {}, vocab_size_, metadata);
    return;
  }
  const auto& all = gguf_->parts.front()->gguf.metadata;
  for (const auto& [key, value] : std::map(all.begin(), all.end())) {  // always in the same order
    if (key.starts_with("tokenizer.")) metadata.copy(key, value);
  }
}

}  // namespace witan
