#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace witan {

static_assert(std::endian::native == std::endian::little, "files are read in place: little-endian machines only");

// Reads little-endian values from a file's bytes, front to back. Reading past the end throws Error(kBadFile) naming
// the file, where it happened and how much is missing; the cursor then stays where it was.
class ByteCursor {
 public:
  // `source` is the file's name for messages; both must outlive the cursor.
  ByteCursor(std::span<const std::byte> bytes, const std::string& source) : bytes_(bytes), source_(source) {}

  // What the following reads belong to, for messages: ("tensor", 3).
  void enter(std::string_view part, uint64_t index) {
    part_ = part;
    index_ = index;
  }

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return bytes_.size() - offset_; }
  const std::string& source() const { return source_; }
  // "model.gguf: tensor 3", to begin a message with.
  std::string place() const;

  // The next size_bytes bytes, which are `what`.
  std::span<const std::byte> read_bytes(uint64_t size_bytes, std::string_view what);

  template <typename T>
  T read(std::string_view what) {
    T value;
    std::memcpy(&value, read_bytes(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  // A uint64 length and as many bytes, as GGUF writes strings. The view points into the file.
  std::string_view read_string(std::string_view what);

 private:
  std::span<const std::byte> bytes_;
  const std::string& source_;
  uint64_t offset_ = 0;
  std::string_view part_;
  uint64_t index_ = 0;
};

}  // namespace witan
