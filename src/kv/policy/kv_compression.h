#pragma once

#include <cstdint>
#include <vector>

#include "kv/kv_cache.h"
#include "kv/policy/kv_policy.h"
#include "kv/policy/query_window.h"
#include "nn/compute_context.h"

namespace witan {

// Which committed entries of a sequence a policy keeps, for KvCache::keep: ascending, by table (layer, then head).
// Layers with a sliding window have none listed: they hold no more than their window anyway. `queries` are those of the
// last tokens, as many as the policy wants; nullptr for one that wants none. All tables must have the same entries.
// Takes scratch for the scores of all heads. Throws Error(kOutOfMemory) when there is no room for them.
std::vector<std::vector<int32_t>> choose_kept(ComputeContext& ctx, const KvCache& kv, SequenceId sequence,
                                              const KvPolicy& policy, const QueryWindow* queries);

}  // namespace witan
