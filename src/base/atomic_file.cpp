#include "base/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace witan {
namespace {

[[noreturn]] void fail_io(const std::string& path, const char* what) {
  const int error = errno;
  fail(ErrorCode::kIo, "{}: {}: {}", path, what, std::generic_category().message(error));
}

// The name under which an open file without a name can be given one.
std::string open_file_name(int descriptor) { return fmt::format("/proc/self/fd/{}", descriptor); }

// A file without a name, which vanishes with this process; -1 where the system does not have such files.
int create_nameless(const std::filesystem::path& directory) {
  const int descriptor = open(directory.empty() ? "." : directory.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
  if (descriptor >= 0 && access(open_file_name(descriptor).c_str(), F_OK) != 0) {
    close(descriptor);
    return -1;
  }
  return descriptor;
}

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  static std::atomic<int> num_files{0};
  partial_path_ = fmt::format("{}.partial-{}-{}", path_, getpid(), num_files++);
  descriptor_ = create_nameless(std::filesystem::path(path_).parent_path());
  if (descriptor_ >= 0) return;
  descriptor_ = open(partial_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_io(path_, "cannot be written");
  has_name_ = true;
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (has_name_) std::remove(partial_path_.c_str());
}

void AtomicFile::commit() {
  if (!has_name_) {
    std::remove(partial_path_.c_str());  // of a process that had this one's id
    const std::string source = open_file_name(descriptor_);
    if (linkat(AT_FDCWD, source.c_str(), AT_FDCWD, partial_path_.c_str(), AT_SYMLINK_FOLLOW) != 0) {
      fail_io(path_, "cannot be given its name");
    }
    has_name_ = true;
  }
  if (close(std::exchange(descriptor_, -1)) != 0) fail_io(path_, "writing failed");
  if (std::rename(partial_path_.c_str(), path_.c_str()) != 0) fail_io(path_, "cannot be given its name");
  has_name_ = false;
}

}  // namespace witan
