#include "io/checkpoint.h"

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

}  // namespace witan
