#pragma once

#include <cstdint>

#include "base/isa.h"

namespace witan {

// What a router makes of its logits before it chooses.
enum class RouterScoring : uint8_t {
  kSoftmax,          // over all experts; a chosen expert's weight is its probability
  kSigmoid,          // of each logit alone (DeepSeek-V3, arXiv 2412.19437, 2.1.2)
  kSoftmaxOfChosen,  // the logits choose; weights are the softmax over the chosen ones (gpt-oss)
};

// How group-limited routing rates a group of experts.
enum class GroupScore : uint8_t {
  kMax,        // its best expert (DeepSeek-V2, arXiv 2405.04434, 2.1.2)
  kTopTwoSum,  // its two best (DeepSeek-V3)
};

inline constexpr int32_t kMaxExpertGroups = 64;

// How a layer turns router logits into chosen experts and their weights. Plain data: every architecture's router is a
// value of it.
struct RouterSpec {
  int32_t num_experts = 0;
  int32_t top_k = 0;
  RouterScoring scoring = RouterScoring::kSoftmax;
  bool normalize = false;  // divide the chosen weights by their sum
  float scale = 1.0f;      // and multiply them by this

  // Only experts of the best num_groups_used of num_groups equal groups of neighbours may be chosen.
  int32_t num_groups = 1;  // divides num_experts, at most kMaxExpertGroups
  int32_t num_groups_used = 1;
  GroupScore group_score = GroupScore::kMax;
};

// The top_k experts of the largest scores in descending order (ties: the lower index first), and their weights.
// logits [num_experts] f32, overwritten. selection_bias [num_experts]: added to the scores for choosing experts and
// groups, but not to the weights; nullptr: none. experts, weights [top_k].
void route(Isa isa, const RouterSpec& spec, const float* selection_bias, float* logits, int32_t* experts,
           float* weights);

}  // namespace witan
