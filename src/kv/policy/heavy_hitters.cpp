// H2O (Zhang et al., arXiv 2306.14048): entries stay that have had the most attention from all tokens so far, and the
// most recent ones, which had no time for it: half of the budget each. With a pool for generated tokens this is the
// decoding of SCOPE (Wu et al., arXiv 2412.13649), sliding or, with every > 1, discontinuous.
#include <algorithm>

#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

class HeavyHitters : public KvScorer {
 public:
  KvWants wants() const override { return {.attention_mass = true}; }

  bool scores_are_attention() const override { return true; }

  void score(const HeadEvidence& head, std::span<float> scores, float*) const override {
    std::copy_n(head.mass, scores.size(), scores.begin());
  }
};

}  // namespace

void heavy_hitters(PolicyBuilder& builder, PartArguments& arguments) {
  builder.choose_score(arguments, std::make_shared<HeavyHitters>());
  builder.policy.recent_share = arguments.number("recent", 0.5, 0.0, 1.0);
}

}  // namespace witan
