#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace witan {

// Memory that lies in a file without a name: on the disk, and in the machine's memory as long as nobody needs the room.
// The file is gone with the object, or with the process.
class BlockFile {
 public:
  // Throws Error(kIo), naming the directory, where no file can be made there.
  explicit BlockFile(std::string directory);
  ~BlockFile();
  BlockFile(const BlockFile&) = delete;
  BlockFile& operator=(const BlockFile&) = delete;

  // So many bytes more, all 0, which stay where they are. Throws Error(kIo), with the numbers, where the disk has no
  // room for them; the file is as it was then.
  std::byte* extend(int64_t bytes);
  int64_t num_bytes() const { return num_bytes_; }

  // Nothing is looked at for a while: the system may take the room in memory, and reads it from the disk when it is.
  void leave_memory() const;

 private:
  struct Extent {
    std::byte* data;
    size_t bytes;
  };

  std::string directory_;
  int descriptor_ = -1;
  int64_t num_bytes_ = 0;
  std::vector<Extent> extents_;
};

}  // namespace witan
