#include "kv/block_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace witan {
namespace {

std::string message_of(int error) { return std::generic_category().message(error); }

// -1, with errno, where there is none.
int open_nameless(const std::string& directory) {
  const int descriptor = open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (descriptor >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return descriptor;
  std::string path = directory + "/witan-kv-XXXXXX";  // of a file system without such files
  const int named = mkostemp(path.data(), O_CLOEXEC);
  if (named >= 0) unlink(path.c_str());
  return named;
}

// 0, or what was wrong. A signal may interrupt it.
int allocate(int descriptor, int64_t offset, int64_t bytes) {
  int error = 0;
  do {
    error = posix_fallocate(descriptor, offset, bytes);
  } while (error == EINTR);
  return error;
}

}  // namespace

BlockFile::BlockFile(std::string directory) : directory_(std::move(directory)), descriptor_(open_nameless(directory_)) {
  if (descriptor_ >= 0) return;
  const int error = errno;
  fail(ErrorCode::kIo, "{}: no file for KV entries can be made there: {}", directory_, message_of(error));
}

BlockFile::~BlockFile() {
  for (const Extent& extent : extents_) munmap(extent.data, extent.bytes);
  close(descriptor_);
}

// The room is had before anything is written, as what is mapped and finds none ends the process: file systems that
// compress or copy what they write (ZFS, Btrfs) may still not have it then.
std::byte* BlockFile::extend(int64_t bytes) {
  static const int64_t kPageBytes = sysconf(_SC_PAGESIZE);
  const int64_t whole_bytes = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (const int error = allocate(descriptor_, num_bytes_, whole_bytes); error != 0) {
    (void)ftruncate(descriptor_, num_bytes_);
    fail(ErrorCode::kIo, "{}: no room for {} bytes of KV entries, beside {} that lie there: {}", directory_,
         whole_bytes, num_bytes_, message_of(error));
  }
  void* data =
      mmap(nullptr, static_cast<size_t>(whole_bytes), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_, num_bytes_);
  if (data == MAP_FAILED) {
    const int error = errno;
    (void)ftruncate(descriptor_, num_bytes_);
    fail(ErrorCode::kIo, "{}: {} bytes of KV entries cannot be mapped: {}", directory_, whole_bytes, message_of(error));
  }
  num_bytes_ += whole_bytes;
  extents_.push_back({static_cast<std::byte*>(data), static_cast<size_t>(whole_bytes)});
  return extents_.back().data;
}

void BlockFile::leave_memory() const {
  for (const Extent& extent : extents_) (void)madvise(extent.data, extent.bytes, MADV_DONTNEED);
}

}  // namespace witan
