#include "moe/router.h"

#include "kernels/elementwise/elementwise.h"

namespace witan {

void route(Isa isa, const RouterSpec& spec, float* logits, int32_t* experts, float* weights) {
  softmax(isa, spec.num_experts, logits);
  // Insertion into a sorted list of top_k: experts come in ascending index, so an equal one goes behind.
  int32_t count = 0;
  for (int32_t expert = 0; expert < spec.num_experts; ++expert) {
    const float weight = logits[expert];
    if (count == spec.top_k && !(weight > weights[count - 1])) continue;
    int32_t place = count < spec.top_k ? count++ : count - 1;
    for (; place > 0 && weight > weights[place - 1]; --place) {
      weights[place] = weights[place - 1];
      experts[place] = experts[place - 1];
    }
    weights[place] = weight;
    experts[place] = expert;
  }
  float factor = spec.scale;
  if (spec.normalize) {
    float sum = 0.0f;
    for (int32_t i = 0; i < spec.top_k; ++i) sum += weights[i];
    factor /= sum;
  }
  for (int32_t i = 0; i < spec.top_k; ++i) weights[i] *= factor;
}

}  // namespace witan
