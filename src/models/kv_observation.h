#pragma once

#include <cstdint>
#include <vector>

#include "models/decoder.h"
#include "models/model.h"
#include "models/paged_attention.h"

namespace witan {

// Gives the KV policies of the slices what they want of this layer's queries [num_tokens, num_heads, key_dim], RoPE
// applied, as they meet the entries, which are written already.
void observe_queries(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const AttentionSpec& spec,
                     const float* queries);

// The rows of the batch whose queries observe_queries reads.
std::vector<int32_t> observed_rows(const ForwardBatch& batch);

// The same for queries before RoPE, of which `angles` are to rotate the components from rope_offset on.
void observe_unrotated_queries(ForwardContext& ctx, const ForwardBatch& batch, int32_t layer, const AttentionSpec& spec,
                               const RopeAngles& angles, int32_t rope_offset, const float* queries);
std::vector<int32_t> observed_unrotated_rows(const ForwardBatch& batch);

}  // namespace witan
