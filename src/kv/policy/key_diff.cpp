// KeyDiff (Park et al., arXiv 2504.15364): keys stay that differ in direction from the mean of all.
#include <algorithm>
#include <cmath>

#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

class DistinctKeys : public KvScorer {
 public:
  int64_t scratch_floats(const HeadEvidence& head) const override { return 2 * int64_t{head.view.format.key_dim}; }

  void score(const HeadEvidence& head, std::span<float> scores, float* scratch) const override {
    const int32_t key_dim = head.view.format.key_dim;
    float* key = scratch;
    float* anchor = scratch + key_dim;  // the mean of the keys' directions; its length does not change the cosine
    std::fill_n(anchor, key_dim, 0.0f);
    for (int32_t i = 0; i < head.view.num_entries; ++i) {
      load_direction(head.view, i, key);
      for (int32_t d = 0; d < key_dim; ++d) anchor[d] += key[d];
    }
    normalize(anchor, key_dim);
    for (int32_t i = 0; i < head.view.num_entries; ++i) {
      load_direction(head.view, i, key);
      double cosine = 0.0;
      for (int32_t d = 0; d < key_dim; ++d) cosine += static_cast<double>(key[d]) * static_cast<double>(anchor[d]);
      scores[static_cast<size_t>(i)] = static_cast<float>(-cosine);
    }
  }

 private:
  static void normalize(float* x, int32_t dim) {
    double squares = 0.0;
    for (int32_t d = 0; d < dim; ++d) squares += static_cast<double>(x[d]) * static_cast<double>(x[d]);
    const auto factor = squares > 0.0 ? static_cast<float>(1.0 / std::sqrt(squares)) : 0.0f;
    for (int32_t d = 0; d < dim; ++d) x[d] *= factor;
  }

  static void load_direction(const KvView& view, int32_t entry, float* key) {
    view.load(entry, key, nullptr);
    normalize(key, view.format.key_dim);
  }
};

}  // namespace

void key_diff(PolicyBuilder& builder, PartArguments& arguments) {
  builder.choose_score(arguments, std::make_shared<DistinctKeys>());
}

}  // namespace witan
