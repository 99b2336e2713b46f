// R-KV (Cai et al., arXiv 2505.24133), for long generated texts that repeat themselves: entries stay that the last
// tokens attend to and whose keys are unlike the others'. The score is lambda * importance - (1 - lambda) * redundancy.
//
// Importance: per token of the window the largest logit over the query heads, softmax over the entries before the
// window, the mean over the tokens, the maximum over `kernel` neighbours. Redundancy: of the cosines between keys,
// where each key's most recent one above `threshold` does not count, the mean over all keys, softmax over the entries.
// All pairs of keys are compared: the cost is quadratic in the number of entries, which the method keeps small.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "kernels/elementwise/elementwise.h"
#include "kv/policy/policy_builder.h"
#include "kv/policy/row_weights.h"

namespace witan {
namespace {

struct Options {
  int32_t window;
  int32_t kernel;
  double lambda;
  double threshold;
};

int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

class ImportanceLessRedundancy : public KvScorer {
 public:
  explicit ImportanceLessRedundancy(const Options& options) : options_(options) {}

  KvWants wants() const override { return {.num_query_tokens = options_.window}; }

  int64_t scratch_floats(const HeadEvidence& head) const override {
    const int64_t n = padded(head.view.num_entries);
    return std::max(RowWeights::scratch_floats(head.view) + 2 * n, (head.view.format.key_dim + 1) * n) + n;
  }

  void score(const HeadEvidence& head, std::span<float> scores, float* scratch) const override {
    const auto n = static_cast<int32_t>(scores.size());
    const int32_t num_judged = n - head.num_query_tokens();
    float* redundancy = scratch;
    scratch += padded(n);
    std::ranges::fill(scores, 0.0f);
    if (num_judged == 0) return;
    judge_importance(head, num_judged, scores, scratch);
    judge_redundancy(head, redundancy, scratch);
    const auto lambda = static_cast<float>(options_.lambda);
    for (int32_t i = 0; i < num_judged; ++i) scores[i] = lambda * scores[i] - (1.0f - lambda) * redundancy[i];
  }

 private:
  void judge_importance(const HeadEvidence& head, int32_t num_judged, std::span<float> scores, float* scratch) const {
    RowWeights weights(head.view, scratch);
    float* largest = scratch + RowWeights::scratch_floats(head.view);
    float* of_row = largest + padded(std::ssize(scores));
    const float share = 1.0f / static_cast<float>(head.num_query_tokens());
    for (int32_t token = 0; token < head.num_query_tokens(); ++token) {
      const auto rows_of = [&](int32_t first, int32_t count) {
        AttentionRows rows = head.queries;
        rows.queries += token * head.group + first;
        rows.positions += token * head.group + first;
        rows.num_rows = count;
        return rows;
      };
      weights.find_largest(head.isa, head.group, rows_of, largest, of_row);
      double total = 0.0;
      for (int32_t i = 0; i < num_judged; ++i) total += static_cast<double>(largest[i]);
      if (total > 0.0) axpy(head.isa, static_cast<float>(share / total), largest, num_judged, scores.data());
    }
    std::copy_n(scores.data(), num_judged, largest);
    const int32_t reach = options_.kernel / 2;
    for (int32_t i = 0; i < num_judged; ++i) {
      scores[i] = *std::max_element(largest + std::max(0, i - reach), largest + std::min(num_judged, i + reach + 1));
    }
  }

  void judge_redundancy(const HeadEvidence& head, float* redundancy, float* scratch) const {
    const int32_t n = head.view.num_entries;
    const int32_t dim = head.view.format.key_dim;
    const int64_t stride = padded(n);
    float* directions = scratch;  // [dim][stride]
    float* cosines = scratch + dim * stride;
    std::vector<float> key(static_cast<size_t>(dim));
    for (int32_t i = 0; i < n; ++i) {
      head.view.load(i, key.data(), nullptr);
      double squares = 0.0;
      for (const float x : key) squares += static_cast<double>(x) * static_cast<double>(x);
      const auto factor = static_cast<float>(1.0 / (std::sqrt(squares) + 1e-8));
      for (int32_t d = 0; d < dim; ++d) directions[d * stride + i] = key[static_cast<size_t>(d)] * factor;
    }
    std::fill_n(redundancy, n, 0.0f);
    for (int32_t i = 0; i < n; ++i) {
      std::fill_n(cosines, n, 0.0f);
      for (int32_t d = 0; d < dim; ++d) axpy(head.isa, directions[d * stride + i], directions + d * stride, n, cosines);
      cosines[i] = 0.0f;
      for (int32_t j = n - 1; j >= 0; --j) {
        if (static_cast<double>(cosines[j]) <= options_.threshold) continue;
        cosines[j] = 0.0f;
        break;
      }
      add(head.isa, cosines, n, redundancy);
    }
    for (int32_t i = 0; i < n; ++i) redundancy[i] /= static_cast<float>(n);
    softmax(head.isa, n, redundancy);
  }

  Options options_;
};

}  // namespace

void r_kv(PolicyBuilder& builder, PartArguments& arguments) {
  const Options options{.window = arguments.integer("window", 8, 1, 4096),
                        .kernel = arguments.odd_integer("kernel", 7, 1, 1023),
                        .lambda = arguments.number("lambda", 0.1, 0.0, 1.0),
                        .threshold = arguments.number("threshold", 0.5, -1.0, 1.0)};
  builder.choose_score(arguments, std::make_shared<ImportanceLessRedundancy>(options));
  builder.protect(0, options.window);
  builder.policy.every = 128;
}

}  // namespace witan
