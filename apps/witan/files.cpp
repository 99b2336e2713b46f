#include "files.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

#include "base/error.h"

namespace witan {
namespace {

std::string read_all(std::FILE* file, const std::string& name) {
  std::string text;
  std::array<char, 1 << 16> buffer;
  while (const size_t bytes = std::fread(buffer.data(), 1, buffer.size(), file)) text.append(buffer.data(), bytes);
  if (std::ferror(file) != 0) fail(ErrorCode::kIo, "{}: {}", name, std::strerror(errno));
  return text;
}

}  // namespace

std::string read_text_file(const std::string& path) {
  if (path == "-") return read_all(stdin, "standard input");
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (file == nullptr) fail(ErrorCode::kIo, "{}: {}", path, std::strerror(errno));
  return read_all(file.get(), path);
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

void write_stdout(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) {
    fail(ErrorCode::kIo, "standard output: {}", std::strerror(errno));
  }
}

void flush_stdout() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    fail(ErrorCode::kIo, "standard output: {}", std::strerror(errno));
  }
}

OutputFile::OutputFile(std::string path) : path_(std::move(path)) {
  std::error_code ignored;  // what it hides, opening reports
  const auto type = std::filesystem::symlink_status(path_, ignored).type();
  const bool is_new = type == std::filesystem::file_type::not_found && !path_.empty();
  if (is_new || type == std::filesystem::file_type::regular) {
    atomic_ = std::make_unique<AtomicFile>(path_);
    // A descriptor of the stream's own, which it closes.
    file_ = fdopen(fcntl(atomic_->descriptor(), F_DUPFD_CLOEXEC, 0), "wb");
  } else {
    file_ = std::fopen(path_.c_str(), "wb");
  }
  if (file_ == nullptr) fail(ErrorCode::kIo, "{}: cannot be written: {}", path_, std::strerror(errno));
}

OutputFile::~OutputFile() {
  if (file_ != nullptr) std::fclose(file_);
}

void OutputFile::fail_write() const { fail(ErrorCode::kIo, "{}: writing failed: {}", path_, std::strerror(errno)); }

void OutputFile::write(const void* data, size_t bytes) {
  if (std::fwrite(data, 1, bytes, file_) != bytes) fail_write();
}

void OutputFile::commit() {
  if (std::fclose(std::exchange(file_, nullptr)) != 0) fail_write();
  if (atomic_) atomic_->commit();
}

}  // namespace witan
