#include "model_flags.h"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <map>

#include "base/error.h"

namespace witan {

ModelOptions ModelFlags::finished() const {
  ModelOptions result = options;
  result.precision = exact ? Precision::kExact : Precision::kFast;
  result.prefix_cache = !no_prefix_cache;
  return result;
}

void add_model_flag(CLI::App& app, std::string& path) {
  app.add_option("-m,--model", path, "GGUF file (any part of a split one) or Hugging Face directory")->required();
}

void add_compute_flags(CLI::App& app, ModelFlags& flags) {
  static const std::map<std::string, KvCodec> kCodecs = {
      {"f32", KvCodec::kF32}, {"f16", KvCodec::kF16}, {"bf16", KvCodec::kBF16}, {"q8_0", KvCodec::kQ8}};
  app.add_flag("--exact", flags.exact,
               "Compute with float32 activations whatever the weights' type. Otherwise quantised\n"
               "weights meet 8-bit activations and BF16 weights BF16 ones; F32 weights are always exact");
  app.add_option_function<std::string>(
         "--kv-type", [&flags](const std::string& name) { flags.options.kv_codec = kCodecs.at(name); },
         "Type of the KV cache: f32, f16, bf16, or q8_0 (lossy: 8 bits with a scale per 32 values)")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "q8_0"}))
      ->default_str("f16");
  app.add_option("-t,--threads", flags.options.num_threads, "Threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--memory", flags.options.memory_bytes,
                 "Budget for all big allocations, with a unit (8GB, 512MB); 0: 90 % of what is available")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  app.add_option("-c,--context", flags.options.context_length,
                 "Most tokens of one sequence; 0: the model's, as far as memory allows")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  app.add_option("--step-tokens", flags.options.max_step_tokens, "Tokens computed in one step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--sequences", flags.options.max_sequences, "Sequences running at once")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_flag("--no-prefix-cache", flags.no_prefix_cache, "Do not share KV blocks between equal beginnings");
}

ProgressBar::ProgressBar(std::string title)
    : title_(std::move(title)), enabled_(isatty(STDERR_FILENO) != 0), start_(std::chrono::steady_clock::now()) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fputs("\r\033[K", stderr);
}

void ProgressBar::update(int64_t done, int64_t total) {
  if (!enabled_ || total <= 0) return;
  const int64_t percent = 100 * done / total;
  const bool slow = std::chrono::steady_clock::now() - start_ > std::chrono::milliseconds(300);
  if (!slow || percent == last_percent_) return;
  last_percent_ = percent;
  drawn_ = true;
  constexpr int64_t kWidth = 40;
  const std::string bar(static_cast<size_t>(kWidth * done / total), '#');
  std::fputs(fmt::format("\r{} [{:<40}] {:3} %", title_, bar, percent).c_str(), stderr);
  std::fflush(stderr);
}

std::string read_text_file(const std::string& path) {
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) fail(ErrorCode::kIo, "{}: is a directory", path);
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(ErrorCode::kIo, "{}: {}", path, std::strerror(errno));
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) fail(ErrorCode::kIo, "{}: reading failed", path);
  return text;
}

std::vector<TokenId> read_token_file(const std::string& path) {
  const std::string text = read_text_file(path);
  std::vector<TokenId> tokens;
  constexpr std::string_view kSpace = " \t\r\n";
  for (size_t begin = text.find_first_not_of(kSpace); begin != std::string::npos;) {
    const size_t end = std::min(text.find_first_of(kSpace, begin), text.size());
    TokenId token = 0;
    const auto [rest, error] = std::from_chars(text.data() + begin, text.data() + end, token);
    if (error != std::errc{} || rest != text.data() + end) {
      fail(ErrorCode::kInvalidArgument, "{}: token {} is \"{}\", expected a whole number", path, tokens.size(),
           text.substr(begin, std::min<size_t>(end - begin, 40)));
    }
    tokens.push_back(token);
    begin = text.find_first_not_of(kSpace, end);
  }
  if (tokens.empty()) fail(ErrorCode::kInvalidArgument, "{}: no token ids in it", path);
  return tokens;
}

OutputFile::OutputFile(std::string path) : path_(std::move(path)), partial_(path_) {
  std::error_code ignored;
  const auto status = std::filesystem::status(path_, ignored);
  const bool is_new = status.type() == std::filesystem::file_type::not_found;
  if (is_new || std::filesystem::is_regular_file(status)) partial_ = fmt::format("{}.partial-{}", path_, getpid());
  file_ = std::fopen(partial_.c_str(), "wb");
  if (file_ == nullptr) fail(ErrorCode::kIo, "{}: cannot be written: {}", path_, std::strerror(errno));
}

OutputFile::~OutputFile() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  if (partial_ != path_) std::remove(partial_.c_str());
}

void OutputFile::fail_write() const { fail(ErrorCode::kIo, "{}: writing failed: {}", path_, std::strerror(errno)); }

void OutputFile::write(const void* data, size_t bytes) {
  if (std::fwrite(data, 1, bytes, file_) != bytes) fail_write();
}

void OutputFile::commit() {
  if (std::fflush(file_) != 0) fail_write();
  const int closed = std::fclose(std::exchange(file_, nullptr));
  if (closed != 0 || (partial_ != path_ && std::rename(partial_.c_str(), path_.c_str()) != 0)) fail_write();
}

}  // namespace witan
