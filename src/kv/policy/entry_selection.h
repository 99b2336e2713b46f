#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kv/policy/kv_policy.h"

namespace witan {

// The entries of one kv head, judged.
struct HeadScores {
  const float* scores = nullptr;  // [num_entries]
  int32_t num_entries = 0;
  int32_t num_fixed = 0;  // of which so many, from the first, stay and are not counted: the prompt's, in a pool apart
  const float* second_scores = nullptr;  // [num_entries] of policies with a second stage
};

// The heads of one layer.
using LayerScores = std::vector<HeadScores>;

// How many entries a head of each layer keeps, on average over its heads, so that the mean over the layers is num_kept:
// no less than the protected ones, no more than num_entries [layers], with a total of exactly num_kept * layers.
std::vector<int32_t> layer_budgets(const KvPolicy& policy, std::span<const int32_t> num_entries, int32_t num_kept);

// The entries that stay, ascending, of each head of each layer: [layers * heads], by layer, then head. Beside the fixed
// ones they are num_kept * heads in every layer on average, and in every scope's part of it exactly so; there must be
// as many. Of equal scores the first head's wins, then the first entry's. Chunks are counted from the first entry that
// is not protected; the last that the budget has no room for gives its best entries. Where the policy keeps spans
// together they begin at span_starts, ascending, and entries are tokens; fixed ones have none.
//
// Where of every share_chunk entries an equal share stays, the chunks are those of the entries that are not
// protected; a chunk gets what its share adds to the whole entries of those before it.
std::vector<std::vector<int32_t>> select_entries(const KvPolicy& policy, std::span<const LayerScores> layers,
                                                 int32_t num_kept, std::span<const int32_t> span_starts = {});

}  // namespace witan
