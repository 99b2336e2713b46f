#include "moe/telemetry.h"

#include <algorithm>

#include "base/check.h"

namespace witan {

double route_overlap(std::span<const int32_t> experts, std::span<const int32_t> others) {
  int64_t num_all = std::ranges::count_if(others, [](int32_t expert) { return expert != kNoExpert; });
  int64_t num_both = 0;
  for (const int32_t expert : experts) {
    if (expert == kNoExpert) continue;
    const bool is_in_both = std::ranges::find(others, expert) != others.end();
    num_both += is_in_both ? 1 : 0;
    num_all += is_in_both ? 0 : 1;
  }
  return num_all == 0 ? 1.0 : static_cast<double>(num_both) / static_cast<double>(num_all);
}

RouterTelemetry::RouterTelemetry(int32_t num_moe_layers, int32_t num_experts, int32_t top_k)
    : num_moe_layers_(num_moe_layers), num_experts_(num_experts), top_k_(top_k) {
  const size_t size = static_cast<size_t>(num_moe_layers) * static_cast<size_t>(num_experts);
  counts_.resize(size);
  weight_sums_.resize(size);
  last_steps_.resize(size);
  last_experts_.resize(static_cast<size_t>(num_moe_layers));
  last_weights_.resize(static_cast<size_t>(num_moe_layers));
}

void RouterTelemetry::begin_step() {
  ++num_steps_;
  distinct_in_last_step_ = 0;
  for (auto& experts : last_experts_) experts.clear();
  for (auto& weights : last_weights_) weights.clear();
}

void RouterTelemetry::record(int32_t moe_layer, std::span<const int32_t> experts, std::span<const float> weights) {
  WITAN_CHECK(experts.size() == weights.size(), "{} experts, {} weights", experts.size(), weights.size());
  std::vector<int32_t>& last = last_experts_[static_cast<size_t>(moe_layer)];
  last.insert(last.end(), experts.begin(), experts.end());
  std::vector<float>& last_weights = last_weights_[static_cast<size_t>(moe_layer)];
  last_weights.insert(last_weights.end(), weights.begin(), weights.end());
  for (size_t i = 0; i < experts.size(); ++i) {
    if (experts[i] == kNoExpert) continue;
    const size_t at = index(moe_layer, experts[i]);
    if (last_steps_[at] != num_steps_) {
      distinct_ever_ += counts_[at] == 0 ? 1 : 0;
      ++distinct_in_last_step_;
      last_steps_[at] = num_steps_;
    }
    ++counts_[at];
    weight_sums_[at] += static_cast<double>(weights[i]);
  }
}

}  // namespace witan
