#pragma once

#include <cstdint>

#include "kv/policy/kv_scorer.h"

namespace witan {

// Each entry's share of what a head's queries attend to, the mean over its rows; sink logits are left out, so that the
// shares of all entries add up to 1. shares [attention_shares_floats], of which the first are the entries'; scratch
// [attention_shares_scratch], 64-byte aligned.
void attention_shares(const HeadEvidence& head, float* shares, float* scratch);
int64_t attention_shares_floats(const KvView& view);
int64_t attention_shares_scratch(const KvView& view);

}  // namespace witan
