#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kv/policy/kv_policy.h"

namespace witan {

// The scores of one layer's heads: [num_heads][num_entries].
struct LayerScores {
  const float* scores = nullptr;
  int32_t num_heads = 0;
  int32_t num_entries = 0;  // the same in all layers
};

// How many entries a head of each layer keeps, on average over its heads, so that the mean over the layers is num_kept:
// between the protected ones and num_entries, with a total of exactly num_kept * num_layers.
std::vector<int32_t> layer_budgets(const KvPolicy& policy, int32_t num_layers, int32_t num_entries, int32_t num_kept);

// The entries that stay, ascending, of each head of each layer: [layers * heads], by layer, then head. Together they
// are num_kept * heads in every layer on average, and in every scope's part of it exactly so. Of equal scores the first
// head's wins, then the first entry's. Chunks are counted from the first entry that is not protected; the last that
// the budget has no room for gives its best entries.
std::vector<std::vector<int32_t>> select_entries(const KvPolicy& policy, std::span<const LayerScores> layers,
                                                 int32_t num_kept);

}  // namespace witan
