#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "engine/loaded_model.h"

namespace witan {

// The flags of every command that computes with a model.
struct ModelFlags {
  ModelOptions options;
  bool exact = false;
  bool no_prefix_cache = false;

  // The options as the flags set them.
  ModelOptions finished() const;
};
void add_model_flag(CLI::App& app, std::string& path);
void add_compute_flags(CLI::App& app, ModelFlags& flags);

// A progress bar on standard error for work over a second; nothing when that is no terminal.
class ProgressBar {
 public:
  explicit ProgressBar(std::string title);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  void update(int64_t done, int64_t total);

 private:
  std::string title_;
  bool enabled_;
  bool drawn_ = false;
  int64_t last_percent_ = -1;
  std::chrono::steady_clock::time_point start_;
};

// All of a file, or of standard input for "-". Throws Error(kIo) naming it.
std::string read_text_file(const std::string& path);

// Token ids separated by white space. Throws Error(kInvalidArgument) naming file, place and text of what is no id.
std::vector<TokenId> read_token_file(const std::string& path);

// A file that appears under its name only when complete. Devices and pipes are written as they are.
class OutputFile {
 public:
  // Throws Error(kIo) when it cannot be written.
  explicit OutputFile(std::string path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(const void* data, size_t bytes);
  void commit();

 private:
  [[noreturn]] void fail_write() const;

  std::string path_;
  std::string partial_;  // the name while incomplete; path_ itself for devices
  std::FILE* file_ = nullptr;
};

}  // namespace witan
