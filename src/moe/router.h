#pragma once

#include <cstdint>

#include "base/isa.h"

namespace witan {

// How a layer turns router logits into chosen experts and their weights.
struct RouterSpec {
  int32_t num_experts = 0;
  int32_t top_k = 0;
  bool normalize = false;  // divide the chosen weights by their sum
  float scale = 1.0f;      // and multiply them by this
};

// softmax over all experts, then the top_k largest probabilities in descending order (ties: the lower index first).
// logits [num_experts] f32, overwritten; experts, weights [top_k].
void route(Isa isa, const RouterSpec& spec, float* logits, int32_t* experts, float* weights);

}  // namespace witan
