#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "base/types.h"

namespace witan {

// All of a file, or of standard input for "-". Throws Error(kIo) naming it.
std::string read_text_file(const std::string& path);

// Token ids separated by white space, at least one. Throws Error(kInvalidArgument) naming file, place and text of what
// is no id; Error(kIo) as read_text_file.
std::vector<TokenId> read_token_file(const std::string& path);

// Standard output; what is written may wait for the next flush. Throw Error(kIo): output that is lost is no success.
void write_stdout(std::string_view text);
template <typename... Args>
void print_stdout(fmt::format_string<Args...> format, Args&&... args) {
  write_stdout(fmt::format(format, std::forward<Args>(args)...));
}
void flush_stdout();

// A file to be written. A plain one appears under its name only when complete, as AtomicFile says; what is none (a
// device, a pipe, a link such as /dev/stdout) is written as it is.
//   write* commit; without commit a plain file is dropped.
class OutputFile {
 public:
  // Throws Error(kIo) when it cannot be written.
  explicit OutputFile(std::string path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  // Throw Error(kIo).
  void write(const void* data, size_t bytes);
  void commit();

 private:
  [[noreturn]] void fail_write() const;

  std::string path_;
  std::unique_ptr<AtomicFile> atomic_;  // none for what is no plain file
  std::FILE* file_ = nullptr;
};

}  // namespace witan
