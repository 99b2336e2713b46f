#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "kv/policy/kv_policy.h"

namespace witan {

// What `auto` goes by when a request arrives.
struct KvAutoRequest {
  int32_t num_prompt_tokens = 0;
  int32_t num_entries = 0;   // most of a kv head: one per token, but for the last of the answer, which is only sampled
  int32_t num_texts = 1;     // answers to the prompt, each of which keeps its own entries
  bool values_merge = true;  // false: values are a part of keys (MLA)
  bool fits_twice = true;    // the prompt and a chunk of it that repeats it fit into the context
  bool can_drop = true;      // false: the prompt is no KV entries (encoder)
  int64_t free_bytes = 0;    // of the KV cache, beside all that other requests are to hold in the end
  std::function<int64_t(int32_t num_entries)> bytes_for = {};  // of the KV cache, for entries of each kv head
};

struct KvAutoChoice {
  std::string policy;  // as parse_kv_policy reads it; empty: every entry stays
  std::string reason;  // in words
};

// The policy for a request, of one that `automatic` says is to be chosen. The method is the preset that kept most
// answers right at the request's budget (docs/kv-cache.md has the figures). The budget is the policy's own if it has
// one; then the choice depends on the request alone. If not, it is everything where the cache has room for that, and
// else the largest of a few that it has room for, or KvAuto::floor where it has for none.
//
// Throws Error(kUnsupported) for a budget that the model cannot keep to.
KvAutoChoice choose_kv_policy(const KvPolicy& policy, const KvAutoRequest& request);

}  // namespace witan
