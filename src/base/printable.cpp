#include "base/printable.h"

#include <fmt/format.h>

namespace witan {

std::string printable(std::string_view text) {
  constexpr size_t kMaxBytes = 100;
  std::string shown = "\"";
  for (const char c : text.substr(0, kMaxBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7F) {
      shown += fmt::format("\\x{:02x}", byte);
    } else {
      shown += c;
    }
  }
  shown += '"';
  if (text.size() > kMaxBytes) shown += fmt::format("... ({} bytes)", text.size());
  return shown;
}

}  // namespace witan
