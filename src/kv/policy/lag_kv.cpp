// LagKV (Liang et al., arXiv 2504.04704). Behind the sinks, entries are cut into partitions of `lag`. Each partition's
// keys and values are normalised, per channel, by the range of the next partition's; an entry's score is the spread
// over its channels, softmax over the partition, keys and values averaged, and of that its rank in the partition. What
// has no next partition stays first.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

// Where a partition's vectors lie, per channel.
struct Range {
  std::vector<float> min;
  std::vector<float> max;

  explicit Range(int32_t dim)
      : min(static_cast<size_t>(dim), std::numeric_limits<float>::infinity()),
        max(static_cast<size_t>(dim), -std::numeric_limits<float>::infinity()) {}

  void include(const std::vector<float>& x) {
    for (size_t d = 0; d < x.size(); ++d) {
      min[d] = std::min(min[d], x[d]);
      max[d] = std::max(max[d], x[d]);
    }
  }

  // The standard deviation over the channels of x, normalised.
  double spread(const std::vector<float>& x) const {
    const auto dim = static_cast<double>(x.size());
    double sum = 0.0;
    double squares = 0.0;
    for (size_t d = 0; d < x.size(); ++d) {
      const double width = static_cast<double>(max[d]) - static_cast<double>(min[d]);
      const double scaled = width > 0.0 ? (static_cast<double>(x[d]) - static_cast<double>(min[d])) / width : 0.0;
      sum += scaled;
      squares += scaled * scaled;
    }
    return std::sqrt(std::max(0.0, squares - sum * sum / dim) / std::max(1.0, dim - 1.0));
  }
};

void softmax(std::vector<double>& x) {
  const double max = *std::ranges::max_element(x);
  double sum = 0.0;
  for (double& v : x) sum += v = std::exp(v - max);
  for (double& v : x) v /= sum;
}

class LaggedSpread : public KvScorer {
 public:
  LaggedSpread(int32_t num_sinks, int32_t lag) : num_sinks_(num_sinks), lag_(lag) {}

  void score(const HeadEvidence& head, std::span<float> scores, float*) const override {
    const int32_t n = head.view.num_entries;
    const int32_t num_partitions = std::max(0, n - num_sinks_) / lag_;
    std::ranges::fill(scores, 1.0f);
    if (num_partitions < 2) {  // too short to be judged: the most recent stay
      for (int32_t i = num_sinks_; i < n; ++i) scores[static_cast<size_t>(i)] = static_cast<float>(i - n);
      return;
    }
    for (int32_t p = 0; p + 1 < num_partitions; ++p) {
      const int32_t begin = num_sinks_ + p * lag_;
      score_partition(head.view, begin, scores.subspan(static_cast<size_t>(begin), static_cast<size_t>(lag_)));
    }
  }

 private:
  void score_partition(const KvView& view, int32_t begin, std::span<float> scores) const {
    Range key_range(view.format.key_dim);
    Range value_range(view.format.value_dim);
    std::vector<float> key(static_cast<size_t>(view.format.key_dim));
    std::vector<float> value(static_cast<size_t>(view.format.value_dim));
    const auto load = [&](int32_t i) { view.load(i, key.data(), value.data()); };
    for (int32_t i = begin + lag_; i < begin + 2 * lag_; ++i) {
      load(i);
      key_range.include(key);
      value_range.include(value);
    }
    std::vector<double> of_keys;
    std::vector<double> of_values;
    for (int32_t i = begin; i < begin + lag_; ++i) {
      load(i);
      of_keys.push_back(key_range.spread(key));
      of_values.push_back(value_range.spread(value));
    }
    softmax(of_keys);
    softmax(of_values);
    std::vector<int32_t> ascending(scores.size());
    std::iota(ascending.begin(), ascending.end(), 0);
    const auto both = [&](int32_t i) { return of_keys[static_cast<size_t>(i)] + of_values[static_cast<size_t>(i)]; };
    std::ranges::stable_sort(ascending, std::less<>(), both);
    for (size_t rank = 0; rank < ascending.size(); ++rank) {
      scores[static_cast<size_t>(ascending[rank])] = static_cast<float>(rank) / static_cast<float>(lag_);
    }
  }

  int32_t num_sinks_;
  int32_t lag_;
};

}  // namespace

void lag_kv(PolicyBuilder& builder, PartArguments& arguments) {
  const int32_t num_sinks = arguments.integer("sinks", 4, 0, 1 << 20);
  const int32_t lag = arguments.integer("lag", 128, 2, 1 << 20);
  builder.choose_score(arguments, std::make_shared<LaggedSpread>(num_sinks, lag));
  builder.protect(num_sinks, 0);
}

}  // namespace witan
