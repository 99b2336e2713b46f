#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kv/policy/kv_compression_point.h"

namespace witan {

// When a sequence's KV entries are judged, of which some stay. A preempted sequence goes through all of it again.
struct CompressionPlan {
  std::vector<KvCompressionPoint> points;  // ascending; the first not before the end of the prompt; empty: never
  bool is_average = false;                 // heads may keep more or less than a point says, but all together that
  bool may_keep_all = false;               // nothing may be dropped after all, at any of them
  // Tokens before the first point that must be computed, not found in the prefix cache; at least 1. More than there
  // are: all of them.
  int32_t num_query_tokens = 1;

  // The most that any kv head may have when its entries are judged.
  int32_t most_entries() const {
    if ((is_average || may_keep_all) && !points.empty()) return points.back().num_tokens;
    int32_t most = 0;
    KvCompressionPoint last;
    for (const KvCompressionPoint& point : points) {
      most = std::max(most, last.num_kept + point.num_tokens - last.num_tokens);
      last = point;
    }
    return most;
  }

  bool operator==(const CompressionPlan&) const = default;
};

}  // namespace witan
