#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace witan {

// A file mapped read-only for as long as the object lives. The bytes are the operating system's page cache, not memory
// of this process. Another process that truncates the file meanwhile makes reading past its new end fatal (SIGBUS), as
// with any mapping.
class MappedFile {
 public:
  // Throws Error(kIo) naming the path when it cannot be opened, is not a regular file, or cannot be mapped.
  // An empty file gives no bytes.
  explicit MappedFile(std::string path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }

 private:
  std::string path_;
  std::span<const std::byte> bytes_;
};

// Tells the operating system that these bytes of a mapped file will not be read again soon: the pages leave this
// process's memory, not the page cache. Reading them is still allowed.
void drop_pages(std::span<const std::byte> bytes);

}  // namespace witan
