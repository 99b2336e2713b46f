#pragma once

#include <cstdint>

namespace witan {

// A prompt whose KV entries are judged once it is computed, of which some stay.
struct PromptCompression {
  int32_t num_kept = 0;          // of each kv head; less than the prompt has
  bool is_average = false;       // heads may keep more or less than num_kept, but all together that
  int32_t num_query_tokens = 1;  // its last tokens that must be computed, not found in the prefix cache; at least 1

  bool operator==(const PromptCompression&) const = default;
};

}  // namespace witan
