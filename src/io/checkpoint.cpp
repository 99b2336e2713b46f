#include "io/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "base/error.h"
#include "io/checkpoint_formats.h"

namespace witan {

int64_t TensorEntry::num_elements() const {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  return count;
}

std::unique_ptr<Checkpoint> Checkpoint::open(const std::string& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    fail(ErrorCode::kIo, "{}: {}; expected a GGUF file or a directory with config.json and model.safetensors",
         path.empty() ? "(empty path)" : path, error ? error.message() : "not found");
  }
  if (std::filesystem::is_directory(status)) return open_huggingface_checkpoint(path);
  if (path.ends_with(".safetensors") || path.ends_with(".json")) {
    fail(ErrorCode::kBadFile, "{}: one file of a Hugging Face model, pass its directory", path);
  }
  return open_gguf_checkpoint(path);
}

std::unique_ptr<ChatTemplate> Checkpoint::load_chat_template(std::string_view name, bool has_tools) const {
  std::vector<ChatTemplateText> templates = chat_templates();
  const auto find = [&](std::string_view wanted) {
    return std::ranges::find_if(templates, [&](const ChatTemplateText& one) { return one.name == wanted; });
  };
  auto found = templates.end();
  if (!name.empty()) {
    found = find(name);
    if (found == templates.end()) {
      std::string names;
      for (const ChatTemplateText& one : templates) names += (names.empty() ? "" : ", ") + one.name;
      fail(ErrorCode::kInvalidArgument, "{}: no chat template named '{}'; it has: {}", path(), name,
           names.empty() ? "none" : names);
    }
  } else {
    if (has_tools) found = find("tool_use");
    if (found == templates.end()) found = find("default");
    if (found == templates.end()) found = templates.begin();
    if (found == templates.end()) return nullptr;
  }
  return std::make_unique<ChatTemplate>(std::move(found->text), found->source, special_tokens());
}

}  // namespace witan
