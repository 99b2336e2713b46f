#pragma once

#include <cstdint>

namespace witan {

// A moment at which a sequence's KV entries are judged, and some of them dropped, or at which older ones are demoted.
struct KvCompressionPoint {
  int32_t num_tokens = 0;  // computed by then
  // Entries that each kv head keeps, or the heads on average: fewer than there are by then, or all where none is
  // judged.
  int32_t num_kept = 0;
  bool judges = true;
  // Of a policy that sets entries aside: those of so many tokens lie there until entries are judged next; 0: never
  // again, and what is not kept is lost.
  int32_t num_aside = 0;

  bool operator==(const KvCompressionPoint&) const = default;
};

}  // namespace witan
