#include "moe/router.h"

#include <cmath>

#include "kernels/elementwise/elementwise.h"

namespace witan {
namespace {

// What experts are chosen by: their scores, with the bias where there is one.
struct Selection {
  const float* scores;
  const float* bias;

  float operator[](int32_t expert) const { return bias == nullptr ? scores[expert] : scores[expert] + bias[expert]; }
};

float group_rating(const Selection& selection, GroupScore score, int32_t begin, int32_t end) {
  float best = -INFINITY;
  float second = -INFINITY;
  for (int32_t expert = begin; expert < end; ++expert) {
    const float value = selection[expert];
    if (value > best) {
      second = best;
      best = value;
    } else if (value > second) {
      second = value;
    }
  }
  return score == GroupScore::kMax || end - begin < 2 ? best : best + second;
}

// Bit g: experts of group g may be chosen.
uint64_t choose_groups(const RouterSpec& spec, const Selection& selection) {
  const int32_t group_size = spec.num_experts / spec.num_groups;
  float ratings[kMaxExpertGroups];
  for (int32_t g = 0; g < spec.num_groups; ++g) {
    ratings[g] = group_rating(selection, spec.group_score, g * group_size, (g + 1) * group_size);
  }
  uint64_t chosen = 0;
  for (int32_t i = 0; i < spec.num_groups_used; ++i) {
    int32_t best = -1;
    for (int32_t g = 0; g < spec.num_groups; ++g) {
      if ((chosen >> g & 1) == 0 && (best < 0 || ratings[g] > ratings[best])) best = g;
    }
    chosen |= uint64_t{1} << best;
  }
  return chosen;
}

// Insertion into a sorted list of top_k: experts come in ascending index, so an equal one goes behind. `values` is
// working memory [top_k].
void choose_experts(const RouterSpec& spec, const Selection& selection, int32_t* experts, float* values) {
  const int32_t group_size = spec.num_experts / spec.num_groups;
  const uint64_t groups = spec.num_groups > 1 ? choose_groups(spec, selection) : 1;
  int32_t count = 0;
  for (int32_t expert = 0; expert < spec.num_experts; ++expert) {
    if ((groups >> (expert / group_size) & 1) == 0) continue;
    const float value = selection[expert];
    if (count == spec.top_k && !(value > values[count - 1])) continue;
    int32_t place = count < spec.top_k ? count++ : count - 1;
    for (; place > 0 && value > values[place - 1]; --place) {
      values[place] = values[place - 1];
      experts[place] = experts[place - 1];
    }
    values[place] = value;
    experts[place] = expert;
  }
}

}  // namespace

void route(Isa isa, const RouterSpec& spec, const float* selection_bias, float* logits, int32_t* experts,
           float* weights) {
  if (spec.scoring == RouterScoring::kSoftmax) softmax(isa, spec.num_experts, logits);
  if (spec.scoring == RouterScoring::kSigmoid) {
    for (int32_t e = 0; e < spec.num_experts; ++e) logits[e] = 1.0f / (1.0f + std::exp(-logits[e]));
  }
  choose_experts(spec, {.scores = logits, .bias = selection_bias}, experts, weights);
  for (int32_t i = 0; i < spec.top_k; ++i) weights[i] = logits[experts[i]];
  if (spec.scoring == RouterScoring::kSoftmaxOfChosen) softmax(isa, spec.top_k, weights);

  float factor = spec.scale;
  if (spec.normalize) {
    float sum = 1e-20f;  // sigmoids may all be 0
    for (int32_t i = 0; i < spec.top_k; ++i) sum += weights[i];
    factor /= sum;
  }
  for (int32_t i = 0; i < spec.top_k; ++i) weights[i] *= factor;
}

}  // namespace witan
