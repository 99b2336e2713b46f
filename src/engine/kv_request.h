#pragma once

#include <cstdint>
#include <optional>

#include "engine/document_reuse.h"
#include "engine/engine.h"
#include "engine/loaded_model.h"
#include "kv/policy/kv_auto.h"
#include "kv/policy/kv_compression.h"
#include "sched/compression_plan.h"
#include "sched/reuse_plan.h"

namespace witan {

// What a request's KV policy becomes with this model and this prompt; nothing without a policy.
struct KvRequest {
  std::optional<KvPolicy> policy;  // the request's, which knows how many tokens will be generated at most
  KvText text;
  CompressionPlan compression;
  std::optional<ReusePlan> reuse;          // but for its `copy`; with documents
  std::optional<DocumentReuse> documents;  // as they are when the request begins
  bool acts = false;                       // whether anything may be judged, demoted or read by pages
  int32_t most_judged = 0;                 // entries of a head at once
  bool private_generation = false;         // see SequenceRequest
  int64_t side_bytes = 0;                  // of the memory pool, for what the policy collects while the sequence runs
};

// Throws KvPolicyError for a policy that the model cannot have, and for a prompt that does not fit into the context
// twice where the policy reads it twice; Error for pinned tokens and documents that are not in the prompt, and pinned
// ones that have no room in the budget. `auto` must have been chosen.
KvRequest plan_kv(const GenerationRequest& request, const LoadedModel& model);

// What `auto` goes by, but for the room that the KV cache has. Throws Error(kInvalidArgument) for pinned tokens without
// a budget that is known.
KvAutoRequest kv_auto_request(const GenerationRequest& request, const LoadedModel& model);

}  // namespace witan
