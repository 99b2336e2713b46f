#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "io/make_model.h"

namespace witan::test {

// A small random-weight model in the test's temporary folder, made once per process and removed at its end. num_layers:
// 0: as many as the preset has.
inline std::string made_model(const char* arch, const char* preset, DType dtype, int32_t num_layers = 0) {
  struct Folder {
    std::filesystem::path path = std::filesystem::temp_directory_path() / fmt::format("witan-test-{}", getpid());
    Folder() { std::filesystem::create_directories(path); }
    ~Folder() { std::filesystem::remove_all(path); }
  };
  static const Folder folder;
  const std::filesystem::path path = folder.path / fmt::format("{}-{}-{}-{}.gguf", arch, preset, quant_type(dtype).name, num_layers);
  if (!std::filesystem::exists(path)) {
    ThreadPool threads(1);
    make_model(find_model_preset(arch, preset), {.num_layers = num_layers, .dtype = dtype, .seed = 7}, path.string(), threads);
  }
  return path.string();
}

}  // namespace witan::test
