#pragma once

#include <cstdint>

namespace witan {

// Tokens [begin, end) of a text.
struct KvSpan {
  int32_t begin = 0;
  int32_t end = 0;

  bool empty() const { return begin == end; }
  bool operator==(const KvSpan&) const = default;
};

}  // namespace witan
