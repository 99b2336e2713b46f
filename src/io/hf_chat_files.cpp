#include "io/hf_chat_files.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/error.h"
#include "io/mapped_file.h"
#include "text/json_text.h"

namespace witan {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kTemplateKey = "chat_template";

void add_template(std::vector<ChatTemplateText>& templates, ChatTemplateText one) {
  const auto same = [&](const ChatTemplateText& known) { return known.name == one.name; };
  if (std::ranges::none_of(templates, same)) templates.push_back(std::move(one));
}

std::string file_text(const fs::path& path) { return std::string(MappedFile(path.string()).text()); }

void add_files(const fs::path& directory, std::vector<ChatTemplateText>& templates) {
  std::error_code error;
  const fs::path file = directory / "chat_template.jinja";
  if (fs::exists(file, error)) add_template(templates, {"default", file_text(file), file.string()});
  std::map<std::string, fs::path> more;  // by name: the order of a directory is nobody's choice
  for (const auto& entry : fs::directory_iterator(directory / "additional_chat_templates", error)) {
    if (entry.path().extension() == ".jinja") more.emplace(entry.path().stem().string(), entry.path());
  }
  for (const auto& [name, path] : more) add_template(templates, {name, file_text(path), path.string()});
}

// The value at `key`, checked to lie in a range: null where absent.
std::optional<double> number_in(const JsonConfig& config, const std::string& source, const char* key, double low,
                                double high, const char* expected) {
  if (!config.has(key)) return std::nullopt;
  const double value = config.get_double(key);
  if (!(value >= low && value <= high)) {
    fail(ErrorCode::kBadFile, "{}: {} is {}, expected {}", source, key, value, expected);
  }
  return value;
}

}  // namespace

std::vector<ChatTemplateText> read_chat_templates(const std::string& directory, const json& tokenizer_config) {
  std::vector<ChatTemplateText> templates;
  add_files(directory, templates);
  const auto found = tokenizer_config.find(kTemplateKey);
  if (found == tokenizer_config.end() || found->is_null()) return templates;
  const std::string source = (fs::path(directory) / "tokenizer_config.json").string();
  if (found->is_string()) {
    add_template(templates, {"default", found->get<std::string>(), fmt::format("{}: {}", source, kTemplateKey)});
    return templates;
  }
  if (!found->is_array()) {
    fail(ErrorCode::kBadFile, "{}: {} is {}, expected a string or an array", source, kTemplateKey,
         describe_json(*found));
  }
  for (size_t i = 0; i < found->size(); ++i) {
    const json& item = (*found)[i];
    const auto has = [&](const char* key) { return item.is_object() && item.contains(key) && item[key].is_string(); };
    if (!has("name") || !has("template")) {
      fail(ErrorCode::kBadFile, "{}: {}[{}] is {}, expected an object with the strings \"name\" and \"template\"",
           source, kTemplateKey, i, describe_json(item));
    }
    add_template(templates, {item["name"].get<std::string>(), item["template"].get<std::string>(),
                             fmt::format("{}: {}[{}]", source, kTemplateKey, i)});
  }
  return templates;
}

SpecialTokenNames read_special_tokens(const json& config, const std::string& source) {
  SpecialTokenNames names;
  for (const char* name : {"bos_token", "eos_token", "unk_token", "pad_token"}) {
    const auto found = config.find(name);
    if (found == config.end() || found->is_null()) continue;
    const json* text = &*found;
    if (text->is_object() && text->contains("content")) text = &(*text)["content"];
    if (!text->is_string()) {
      fail(ErrorCode::kBadFile, "{}: {} is {}, expected a string or an object with the string \"content\"", source,
           name, describe_json(*found));
    }
    names.emplace_back(name, text->get<std::string>());
  }
  return names;
}

GenerationDefaults read_generation_defaults(const JsonConfig& config, const std::string& source) {
  const CheckpointConfig& settings = config;
  constexpr double kMax = std::numeric_limits<float>::max();
  GenerationDefaults defaults;
  defaults.do_sample = settings.get_bool("do_sample", false);
  defaults.temperature = number_in(config, source, "temperature", 0.0, kMax, "a number from 0");
  defaults.top_p =
      number_in(config, source, "top_p", std::numeric_limits<float>::min(), 1.0, "a number over 0, up to 1");
  defaults.min_p = number_in(config, source, "min_p", 0.0, 1.0, "a number from 0 to 1");
  defaults.repetition_penalty =
      number_in(config, source, "repetition_penalty", std::numeric_limits<float>::min(), kMax, "a number over 0");
  const auto integer = [&](const char* key, int64_t low) -> std::optional<int32_t> {
    if (!config.has(key)) return std::nullopt;
    const int64_t value = config.get_int(key);
    if (value < low || !std::in_range<int32_t>(value)) {
      fail(ErrorCode::kBadFile, "{}: {} is {}, expected an integer from {} to 2^31 - 1", source, key, value, low);
    }
    return static_cast<int32_t>(value);
  };
  defaults.top_k = integer("top_k", -1);
  if (defaults.top_k == -1) defaults.top_k = 0;  // both are ways to say "all"
  defaults.max_new_tokens = integer("max_new_tokens", 1);
  return defaults;
}

}  // namespace witan
