#pragma once

#include <cstdint>
#include <vector>

#include "kv/kv_cache.h"
#include "kv/policy/kv_evidence.h"
#include "kv/policy/kv_policy.h"
#include "nn/compute_context.h"

namespace witan {

// Which committed entries of a sequence a policy keeps, for KvCache::keep: ascending, by table (layer, then head).
// Layers with a sliding window have none listed: they hold no more than their window anyway. The sequence's first
// num_prompt_tokens tokens are its prompt. `evidence` has what the policy's scorer wants, of queries as many as there
// are since entries were judged before; nullptr for one that wants nothing. Takes scratch for the scores of all heads.
// Throws Error(kOutOfMemory) when there is no room for them.
std::vector<std::vector<int32_t>> choose_kept(ComputeContext& ctx, const KvCache& kv, SequenceId sequence,
                                              int32_t num_prompt_tokens, const KvPolicy& policy,
                                              const KvEvidence* evidence);

}  // namespace witan
