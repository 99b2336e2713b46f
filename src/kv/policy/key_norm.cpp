// The L2 norm of keys (Devoto et al., arXiv 2406.11430): keys of small norm are attended to most.
#include <cmath>

#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

class SmallKeys : public KvScorer {
 public:
  int64_t scratch_floats(const HeadEvidence& head) const override { return head.view.format.key_dim; }

  void score(const HeadEvidence& head, std::span<float> scores, float* key) const override {
    const KvView& view = head.view;
    for (int32_t i = 0; i < view.num_entries; ++i) {
      view.load(i, key, nullptr);
      double squares = 0.0;
      for (int32_t d = 0; d < view.format.key_dim; ++d)
        squares += static_cast<double>(key[d]) * static_cast<double>(key[d]);
      scores[static_cast<size_t>(i)] = static_cast<float>(-std::sqrt(squares));
    }
  }
};

}  // namespace

void key_norm(PolicyBuilder& builder, PartArguments& arguments) {
  builder.choose_score(arguments, std::make_shared<SmallKeys>());
}

}  // namespace witan
