#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

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

// A file that appears under its name, replacing one that has it, only when complete; a process that is killed before
// leaves nothing where the file system has nameless files. What is no plain file (a device, a pipe, a link such as
// /dev/stdout) is written as it is.
//   write* commit; without commit the file is dropped.
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
  std::string partial_;    // the name while incomplete; path_ itself for what is no plain file
  bool nameless_ = false;  // has not even that name
  std::FILE* file_ = nullptr;
};

}  // namespace witan
