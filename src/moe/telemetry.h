#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace witan {

// In place of an expert's id: the token was beyond the expert's capacity (moe_ffn.h).
inline constexpr int32_t kNoExpert = -1;

// Of a token's experts in two computations, [top_k] each: how many both chose, as a share of those that either did (the
// Jaccard index). 1 where there are none.
double route_overlap(std::span<const int32_t> experts, std::span<const int32_t> others);

// What the routers chose: the signal for caching, prefetching and scheduling experts. Written once per MoE layer and
// step by moe_ffn, read between steps.
//
//   (begin_step record*)*
//
// Thread safety: none.
class RouterTelemetry {
 public:
  // MoE layers are counted from 0 here, dense layers left out.
  RouterTelemetry(int32_t num_moe_layers, int32_t num_experts, int32_t top_k);

  void begin_step();

  // experts, weights [num_tokens, top_k], descending selection score, of one layer in this step, following those it has
  // already (an encoder runs once per input); kNoExpert counts for nothing.
  void record(int32_t moe_layer, std::span<const int32_t> experts, std::span<const float> weights);

  int32_t num_moe_layers() const { return num_moe_layers_; }
  int32_t num_experts() const { return num_experts_; }
  int32_t top_k() const { return top_k_; }

  // The routes of the last step: [num_tokens, top_k] of one layer, which has none if the step did not reach it.
  std::span<const int32_t> last_experts(int32_t moe_layer) const { return last_experts_[moe_layer]; }
  std::span<const float> last_weights(int32_t moe_layer) const { return last_weights_[moe_layer]; }

  // How often an expert was chosen since the start.
  int64_t count(int32_t moe_layer, int32_t expert) const { return counts_[index(moe_layer, expert)]; }
  // The sum of its weights when chosen.
  double weight_sum(int32_t moe_layer, int32_t expert) const { return weight_sums_[index(moe_layer, expert)]; }
  // The step (from 1) it was last chosen in; 0: never.
  int64_t last_step(int32_t moe_layer, int32_t expert) const { return last_steps_[index(moe_layer, expert)]; }

  int64_t num_steps() const { return num_steps_; }
  // Distinct (layer, expert) pairs chosen in the last step, and since the start.
  int64_t distinct_in_last_step() const { return distinct_in_last_step_; }
  int64_t distinct_ever() const { return distinct_ever_; }

 private:
  size_t index(int32_t moe_layer, int32_t expert) const {
    return static_cast<size_t>(moe_layer) * static_cast<size_t>(num_experts_) + static_cast<size_t>(expert);
  }

  int32_t num_moe_layers_;
  int32_t num_experts_;
  int32_t top_k_;
  int64_t num_steps_ = 0;
  int64_t distinct_in_last_step_ = 0;
  int64_t distinct_ever_ = 0;
  std::vector<int64_t> counts_;      // [num_moe_layers, num_experts]
  std::vector<double> weight_sums_;  // [num_moe_layers, num_experts]
  std::vector<int64_t> last_steps_;  // [num_moe_layers, num_experts]
  std::vector<std::vector<int32_t>> last_experts_;
  std::vector<std::vector<float>> last_weights_;
};

}  // namespace witan
