#include "io/byte_cursor.h"

#include "base/error.h"

namespace witan {

std::string ByteCursor::place() const {
  return part_.empty() ? source_ : fmt::format("{}: {} {}", source_, part_, index_);
}

std::span<const std::byte> ByteCursor::read_bytes(uint64_t size_bytes, std::string_view what) {
  if (size_bytes > remaining()) {
    fail(ErrorCode::kBadFile, "{}: the file ends in {}: expected {} bytes at offset {}, found {}", place(), what,
         size_bytes, offset_, remaining());
  }
  const std::span<const std::byte> bytes = bytes_.subspan(offset_, size_bytes);
  offset_ += size_bytes;
  return bytes;
}

std::string_view ByteCursor::read_string(std::string_view what) {
  const auto length = read<uint64_t>(what);
  const std::span<const std::byte> bytes = read_bytes(length, what);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace witan
