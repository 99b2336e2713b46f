#pragma once

#include <cstdint>

namespace witan {

// A moment at which a sequence's KV entries are judged, and some of them dropped.
struct KvCompressionPoint {
  int32_t num_tokens = 0;  // computed by then
  int32_t num_kept = 0;    // entries that each kv head keeps, or the heads on average; fewer than there are by then

  bool operator==(const KvCompressionPoint&) const = default;
};

}  // namespace witan
