#pragma once

#include <cstdint>
#include <span>

#include "kv/kv_merge.h"
#include "kv/policy/kv_policy.h"
#include "kv/policy/kv_scorer.h"

namespace witan {

// What the values of the entries of one kv head that a policy drops do to those that it keeps. Keys have positions
// in them, so that sums of keys would mean nothing: they stay as they are.
//
// KvMerging::Into::kSimilar: each dropped entry e goes to the kept entry t whose key k_t has the largest cosine with
// k_e, of equal ones the first, unless that is less than the threshold:
//
//   w_e  = max(0, cos(k_e, k_t)) * |v_e| / (|v_e| + |v_t| + 1e-6)
//   v_t <- (v_t + sum of w_e v_e) / (1 + sum of w_e)
//
// so that a value stays within what was merged into it. Its cost is the products of all dropped with all kept keys.
//
// KvMerging::Into::kNext: each dropped entry e is added to the next m kept ones j, m = num_next or as many as there
// are, by chance, with the probability p_e:
//
//   p_e  = min(1, A_e / mean of A_j)
//   v_j <- v_j + v_e / m
//
// so that what e added to the output is made up for, on average, as far as these get the attention A. That is the
// mean over the last tokens, or over all tokens where the policy's score counts that (HeadEvidence::mass), as in the
// paper. The draw is merging_draw. Sums may grow: float16 values stop at the largest that there is.
KvMerge plan_merge(const KvMerging& merging, const HeadEvidence& head, std::span<const int32_t> kept, int32_t layer,
                   int32_t index, float* scratch);

// Floats of scratch, 64-byte aligned, for a head of which num_kept entries stay.
int64_t plan_merge_scratch(const KvMerging& merging, const HeadEvidence& head, int32_t num_kept);

// A number in [0, 1) for the entry at a position of a kv head of a layer: the same whatever else is computed.
double merging_draw(int32_t layer, int32_t head, int32_t position);

}  // namespace witan
