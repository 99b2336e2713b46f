#include "kv/policy/window_attention.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "kernels/elementwise/elementwise.h"
#include "kv/policy/row_weights.h"

namespace witan {
namespace {

class WindowAttention : public KvScorer {
 public:
  WindowAttention(int32_t window, int32_t kernel, Pooling pooling, TokenWeight token_weight)
      : window_(window), kernel_(kernel), pooling_(pooling), token_weight_(token_weight) {}

  KvWants wants() const override { return {.num_query_tokens = window_}; }

  bool scores_are_attention() const override { return true; }

  int64_t scratch_floats(const HeadEvidence& head) const override {
    return RowWeights::scratch_floats(head.view) + 2 * RowWeights(head.view, nullptr).row_floats();
  }

  void score(const HeadEvidence& head, std::span<float> scores, float* scratch) const override {
    RowWeights weights(head.view, scratch);
    float* sum = scratch + RowWeights::scratch_floats(head.view);
    float* pooled = sum + weights.row_floats();
    const int32_t num_tokens = head.num_query_tokens();
    WITAN_CHECK(num_tokens > 0, "no queries");
    const int32_t num_judged = head.view.num_entries - num_tokens;
    std::ranges::fill(scores, 0.0f);
    for (int32_t g = 0; g < head.group; ++g) {
      std::fill_n(sum, weights.row_floats(), 0.0f);
      for (int32_t first = 0; first < num_tokens; first += RowWeights::kMaxRows) {
        const int32_t count = std::min(RowWeights::kMaxRows, num_tokens - first);
        const float* queries[RowWeights::kMaxRows];
        int32_t positions[RowWeights::kMaxRows];
        weights.compute(head.isa, head.rows(first * head.group + g, count, head.group, queries, positions));
        for (int32_t r = 0; r < count; ++r) {
          const int32_t num_seen = num_judged + first + r + 1;
          const float factor = token_weight_ == TokenWeight::kEqual ? 1.0f : static_cast<float>(num_seen);
          weights.add_to(head.isa, r, head.sink(g), factor, sum);
        }
      }
      pool(sum, num_judged, pooled);
      // Sums over the tokens: their number is the same for all.
      axpy(head.isa, 1.0f / static_cast<float>(num_tokens * head.group), pooled, num_judged, scores.data());
    }
  }

 private:
  void pool(const float* in, int32_t n, float* out) const {
    const int32_t reach = kernel_ / 2;
    for (int32_t i = 0; i < n; ++i) {
      const int32_t begin = std::max(0, i - reach);
      const int32_t end = std::min(n, i + reach + 1);
      float value = in[begin];
      for (int32_t j = begin + 1; j < end; ++j)
        value = pooling_ == Pooling::kMax ? std::max(value, in[j]) : value + in[j];
      out[i] = pooling_ == Pooling::kMax ? value : value / static_cast<float>(kernel_);
    }
  }

  int32_t window_;
  int32_t kernel_;
  Pooling pooling_;
  TokenWeight token_weight_;
};

}  // namespace

std::shared_ptr<const KvScorer> window_attention(int32_t window, int32_t kernel, Pooling pooling,
                                                 TokenWeight token_weight) {
  return std::make_shared<WindowAttention>(window, kernel, pooling, token_weight);
}

std::shared_ptr<const KvScorer> window_attention(PolicyBuilder& builder, PartArguments& arguments, int32_t kernel) {
  const int32_t window = arguments.integer("window", 32, 1, 4096);
  kernel = arguments.odd_integer("kernel", kernel, 1, 1023);
  const bool max = arguments.choice("pool", {"avg", "max"}) == "max";
  builder.protect(0, window);
  return window_attention(window, kernel, max ? Pooling::kMax : Pooling::kMean);
}

}  // namespace witan
