#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <unordered_set>
#include <utility>

#include "base/error.h"
#include "base/printable.h"
#include "io/checkpoint_formats.h"
#include "io/hf_chat_files.h"
#include "io/json_config.h"
#include "io/mapped_file.h"
#include "io/safetensors_reader.h"
#include "io/tensor_table.h"
#include "text/json_text.h"
#include "text/tokenizer_factory.h"

namespace witan {
namespace {

using nlohmann::json;

constexpr size_t kMaxJsonBytes = size_t{64} << 20;  // the index of a model of 90 000 tensors has 9 MB
constexpr const char* kConfigName = "config.json";
constexpr const char* kGenerationConfigName = "generation_config.json";
constexpr const char* kSpecialTokensName = "special_tokens_map.json";
constexpr const char* kWeightsName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kTokenizerName = "tokenizer.json";
constexpr const char* kTokenizerConfigName = "tokenizer_config.json";
constexpr std::string_view kEndKey = "eos_token_id";

bool exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

json read_json(const std::string& path) {
  const MappedFile file(path);
  if (file.bytes().size() > kMaxJsonBytes) {
    fail(ErrorCode::kBadFile, "{}: has {} bytes, expected {} at most", path, file.bytes().size(), kMaxJsonBytes);
  }
  return parse_json_object(file.text(), path);
}

// The first, by name, of a directory's files that end so; empty when there is none.
std::string find_file_ending(const std::string& directory, std::string_view ending) {
  std::set<std::string> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(ending)) found.insert(name);
  }
  return found.empty() ? std::string() : *found.begin();
}

[[noreturn]] void no_config(const std::string& directory) {
  const std::string gguf = find_file_ending(directory, ".gguf");
  fail(ErrorCode::kBadFile, "{}: a directory without {}, expected a Hugging Face model directory or a GGUF file{}",
       directory, kConfigName, gguf.empty() ? "" : fmt::format("; did you mean {} in it?", printable(gguf)));
}

[[noreturn]] void no_weights(const std::string& directory) {
  const std::string pickled = find_file_ending(directory, ".bin");
  fail(ErrorCode::kBadFile, "{}: expected {} or {}, found neither{}", directory, kWeightsName, kIndexName,
       pickled.empty() ? "" : fmt::format("; {} is of a format that Witan does not read", printable(pickled)));
}

// A shard is a file beside its index, never one that a path leads to.
bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

// The tensors that the index says each shard holds.
std::map<std::string, std::vector<std::string>> read_index(const std::string& path) {
  const json index = read_json(path);
  const auto weights = index.find("weight_map");
  if (weights == index.end() || !weights->is_object()) {
    fail(ErrorCode::kBadFile, "{}: weight_map is {}, expected an object", path,
         weights == index.end() ? "missing" : describe_json(*weights));
  }
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& [tensor, shard] : weights->items()) {
    if (!shard.is_string() || !is_plain_name(shard.get_ref<const std::string&>())) {
      fail(ErrorCode::kBadFile, "{}: weight_map puts tensor {} in {}, expected the name of a file beside it", path,
           printable(tensor), describe_json(shard));
    }
    shards[shard.get<std::string>()].push_back(tensor);
  }
  if (shards.empty()) fail(ErrorCode::kBadFile, "{}: weight_map is empty, expected tensors", path);
  return shards;
}

std::vector<TokenId> read_ends(const JsonConfig& config, const std::string& source) {
  std::vector<TokenId> ends;
  if (!config.has(kEndKey)) return ends;
  for (const int64_t token : config.get_ints(kEndKey)) {
    if (token < 0 || !std::in_range<TokenId>(token)) {
      fail(ErrorCode::kBadFile, "{}: {} holds {}, expected tokens from 0 to 2^31 - 1", source, kEndKey, token);
    }
    ends.push_back(static_cast<TokenId>(token));
  }
  return ends;
}

class HuggingFaceCheckpoint final : public Checkpoint {
 public:
  // `directory` has a config.json.
  explicit HuggingFaceCheckpoint(const std::string& directory)
      : path_(directory),
        config_path_(file_path(kConfigName)),
        config_json_(read_json(config_path_)),
        config_(config_json_, config_path_),
        architecture_(config_.get_string("model_type")) {
    if (exists(file_path(kWeightsName))) {
      add_weights(file_path(kWeightsName));
    } else if (exists(file_path(kIndexName))) {
      add_shards();
    } else {
      no_weights(directory);
    }
    if (exists(file_path(kGenerationConfigName))) {
      const std::string source = file_path(kGenerationConfigName);
      const json generation = read_json(source);
      add_ends(read_ends(JsonConfig(generation, source), source));
      generation_defaults_ = read_generation_defaults(JsonConfig(generation, source), source);
    }
    add_ends(read_ends(config_, config_path_));
  }

  CheckpointFormat format() const override { return CheckpointFormat::kHuggingFace; }
  const std::string& path() const override { return path_; }
  const std::string& architecture() const override { return architecture_; }
  const CheckpointConfig& config() const override { return config_; }
  std::span<const TensorEntry> tensors() const override { return tensors_.tensors(); }
  const TensorEntry* find(std::string_view name) const override { return tensors_.find(name); }
  std::vector<TokenId> end_of_generation_tokens() const override { return ends_; }

  GenerationDefaults generation_defaults() const override { return generation_defaults_; }
  std::vector<ChatTemplateText> chat_templates() const override {
    return read_chat_templates(path_, tokenizer_config());
  }
  SpecialTokenNames special_tokens() const override {
    const std::string source = file_path(kSpecialTokensName);
    const json map = exists(source) ? read_json(source) : json::object();
    SpecialTokenNames names = read_special_tokens(tokenizer_config(), file_path(kTokenizerConfigName));
    for (auto& [name, token] : read_special_tokens(map, source)) {
      const auto same = [&wanted = name](const auto& known) { return known.first == wanted; };
      if (std::none_of(names.begin(), names.end(), same)) names.emplace_back(name, std::move(token));
    }
    return names;
  }

  std::unique_ptr<Tokenizer> load_tokenizer() const override {
    const std::string source = file_path(kTokenizerName);
    if (!exists(source)) return nullptr;
    const MappedFile tokenizer(source);
    if (!exists(file_path(kTokenizerConfigName))) return tokenizer_from_json(tokenizer.text(), "", source);
    const MappedFile tokenizer_config(file_path(kTokenizerConfigName));
    return tokenizer_from_json(tokenizer.text(), tokenizer_config.text(), source);
  }

 private:
  // An empty object where there is no such file.
  json tokenizer_config() const {
    const std::string source = file_path(kTokenizerConfigName);
    return exists(source) ? read_json(source) : json::object();
  }
  std::string file_path(std::string_view name) const { return (std::filesystem::path(path_) / name).string(); }

  // Returns the names of all tensors in the file, also of those left out.
  std::unordered_set<std::string> add_weights(const std::string& path) {
    files_.push_back(std::make_unique<MappedFile>(path));
    const MappedFile& file = *files_.back();
    std::unordered_set<std::string> names;
    for (SafetensorsTensor& tensor : parse_safetensors(file.bytes(), file.path())) {
      names.insert(tensor.name);
      if (!tensor.dtype) continue;
      tensors_.add({.name = std::move(tensor.name),
                    .dtype = *tensor.dtype,
                    .shape = std::move(tensor.shape),
                    .data = tensor.data,
                    .file = file.path(),
                    .is_part = tensor.is_part});
    }
    return names;
  }

  void add_shards() {
    const std::string index_path = file_path(kIndexName);
    for (const auto& [shard, expected] : read_index(index_path)) {
      if (!exists(file_path(shard))) {
        fail(ErrorCode::kBadFile, "{}: names the shard {}, which is not there", index_path, printable(shard));
      }
      const std::unordered_set<std::string> found = add_weights(file_path(shard));
      for (const std::string& tensor : expected) {
        if (!found.contains(tensor)) {
          fail(ErrorCode::kBadFile, "{}: tensor {} is missing, expected by {}", file_path(shard), printable(tensor),
               index_path);
        }
      }
    }
  }

  void add_ends(std::span<const TokenId> tokens) {
    for (const TokenId token : tokens) {
      if (std::find(ends_.begin(), ends_.end(), token) == ends_.end()) ends_.push_back(token);
    }
  }

  std::string path_;
  std::string config_path_;
  json config_json_;
  JsonConfig config_;
  std::string architecture_;
  std::vector<std::unique_ptr<MappedFile>> files_;  // TensorEntry::file and data point into them
  TensorTable tensors_;
  std::vector<TokenId> ends_;
  GenerationDefaults generation_defaults_;
};

}  // namespace

std::unique_ptr<Checkpoint> open_huggingface_checkpoint(const std::string& directory) {
  if (!exists((std::filesystem::path(directory) / kConfigName).string())) no_config(directory);
  return std::make_unique<HuggingFaceCheckpoint>(directory);
}

}  // namespace witan
