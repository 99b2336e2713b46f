#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kv/policy/kv_policy.h"

namespace witan {

// Of the KV cache, for so many entries of each kv head.
using KvAutoBytes = std::function<int64_t(int32_t num_entries)>;

// Types that older entries can be rounded to.
struct KvAutoTypes {
  std::string policy;  // that says so: "k=int4-hadamard"
  int32_t num_recent;  // of a kv head, which are not rounded
  // Of the KV cache, for so many entries of each kv head of which so many are rounded, in whole blocks.
  std::function<int64_t(int32_t num_entries, int32_t num_rounded)> bytes_for;
};

// What `auto` goes by when a request arrives.
struct KvAutoRequest {
  int32_t num_prompt_tokens = 0;
  int32_t num_entries = 0;   // most of a kv head: one per token, but for the last of the answer, which is only sampled
  int32_t num_texts = 1;     // answers to the prompt, each of which keeps its own entries
  bool values_merge = true;  // false: values are a part of keys (MLA)
  bool fits_twice = true;    // the prompt and a chunk of it that repeats it fit into the context
  bool can_drop = true;      // false: the prompt is no KV entries (encoder)
  int64_t free_bytes = 0;    // of the KV cache, beside all that other requests are to hold in the end
  KvAutoBytes bytes_for = {};           // of entries as they are
  std::vector<KvAutoTypes> types = {};  // by falling bytes
};

// Types of older entries that a choice is made among, by falling bits: those of which the sweep of docs/kv-cache.md has
// most answers right for their bytes. Values that are a part of keys (MLA) have others.
std::span<const std::string_view> kv_auto_types(bool values_merge);

struct KvAutoChoice {
  std::string policy;  // as parse_kv_policy reads it; empty: every entry stays
  std::string reason;  // in words
};

// The policy for a request, of one that `automatic` says is to be chosen. A budget is the memory of so many entries as
// they are. Every entry stays, rounded to the type of most bits with which they fit into it; with none, as many as fit
// when rounded to the one of fewest, or where these are no more than the budget says, so many as they are, by the
// method that kept most answers right at that share, among answers as long for their prompt as this one may be
// (docs/kv-cache.md has the figures). Where entries are judged again and again they stay as they are, and so many as
// the budget says.
//
// The budget is the policy's own if it has one; then the choice depends on the request alone. If not, it is the room
// that the cache has; where it has none for the share KvAuto::floor of the entries, it is that share.
//
// Throws Error(kUnsupported) for a budget that the model cannot keep to.
KvAutoChoice choose_kv_policy(const KvPolicy& policy, const KvAutoRequest& request);

}  // namespace witan
