#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kv/kv_cache.h"
#include "kv/policy/kv_evidence.h"
#include "kv/policy/kv_policy.h"
#include "nn/compute_context.h"

namespace witan {

// What a policy has to know of the text, beside its entries.
struct KvText {
  int32_t num_prompt_tokens = 0;
  std::vector<KvSpan> pinned = {};           // of the prompt: their entries are worth more than all others
  std::vector<int32_t> span_starts = {};     // of the prompt, ascending: where policies that keep spans together cut it
  std::vector<Repetition> repetitions = {};  // of policies that read the prompt a second time
};

struct KvChoice {
  // Entries that stay, for KvCache::keep or set_aside: ascending, by table (layer, then head). Layers with a sliding
  // window have none listed: they hold no more than their window anyway.
  std::vector<std::vector<int32_t>> kept;
  std::vector<KvMerge> merges = {};  // of a policy that merges values, by table, for KvCache::keep too
  std::optional<double> attention_kept =
      {};                  // with a guard: of what the last tokens attend to, the share that stays, on average
  bool fell_back = false;  // that is below the guard: all entries stay
};

// Which committed entries of a sequence a policy keeps, of all that it has, those aside (gathered) included. `evidence`
// has what the policy wants: of queries as many as there are since entries were judged before, of value norms all;
// nullptr for one that wants nothing. Takes scratch for the scores of all heads. Throws Error(kOutOfMemory) when there
// is no room for them.
KvChoice choose_kept(ComputeContext& ctx, const KvCache& kv, SequenceId sequence, const KvText& text,
                     const KvPolicy& policy, const KvEvidence* evidence);

}  // namespace witan
