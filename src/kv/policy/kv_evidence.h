#pragma once

#include <memory>

#include "kv/policy/attention_mass.h"
#include "kv/policy/query_window.h"

namespace witan {

// What a KV policy wants to know of a sequence beside its entries (KvWants), collected while its tokens are computed;
// nullptr what it does not want.
struct KvEvidence {
  std::unique_ptr<QueryWindow> window;  // the last queries before entries are judged next
  std::unique_ptr<AttentionMass> mass;
};

}  // namespace witan
