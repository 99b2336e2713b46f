#pragma once

#include <memory>

#include "kv/policy/attention_mass.h"
#include "kv/policy/page_bounds.h"
#include "kv/policy/query_moments.h"
#include "kv/policy/query_window.h"
#include "kv/policy/repetition.h"
#include "kv/policy/value_norms.h"

namespace witan {

// What a KV policy knows of a sequence beside its entries, collected while its tokens are computed; nullptr what it
// does not want.
struct KvEvidence {
  std::unique_ptr<QueryWindow> window;  // the last queries before entries are judged next
  std::unique_ptr<AttentionMass> mass;
  std::unique_ptr<QueryMoments> moments;
  std::unique_ptr<ValueNorms> value_norms;  // of what was judged, and at that time of all
  std::unique_ptr<RepetitionAttention> repetition;
  std::unique_ptr<PageBounds> pages;  // for generated tokens that do not read all entries
};

}  // namespace witan
