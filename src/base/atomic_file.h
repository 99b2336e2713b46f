#pragma once

#include <string>

namespace witan {

// A new file that takes its name, replacing what has it, only when complete: no half-written file ever stands under
// the name, and a process that is killed before leaves nothing where the file system has nameless files (Linux:
// O_TMPFILE), elsewhere a file NAME.partial-PID. A power cut just after commit() may still lose it: commit() does not
// wait for the disk.
//   write through descriptor()* commit; without commit the file is dropped.
class AtomicFile {
 public:
  // Throws Error(kIo) naming the path when no file can be made beside it.
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  const std::string& path() const { return path_; }
  int descriptor() const { return descriptor_; }  // for writing; owned by this object

  // Throws Error(kIo). No member may be called after it.
  void commit();

 private:
  std::string path_;
  std::string partial_path_;  // the name while incomplete
  bool has_name_ = false;     // there is a file of that name
  int descriptor_ = -1;
};

}  // namespace witan
