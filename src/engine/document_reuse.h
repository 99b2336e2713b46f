#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kv/policy/kv_policy.h"
#include "models/model.h"
#include "moe/telemetry.h"
#include "sched/scheduler.h"

namespace witan {

// The documents of a request whose entries are reused, while it runs: what the passes of its ReusePlan compute, and
// which tokens are computed again.
//
// Deviation of a token, by which they are chosen: of its values, the squared distance between those that it has in
// the document alone and those where it is, in the layer behind the probed ones; of its routes, the total variation
// between the weights that its experts have here and there, 1/2 sum_e |w_e - w'_e| with weights that add up to 1, over
// the MoE layers that are probed.
class DocumentReuse {
 public:
  DocumentReuse(const KvReuse& rule, std::vector<KvSpan> documents, const ModelInfo& info);

  // Tokens from the first document's to the last one's that are computed again, those between documents included.
  int32_t num_recomputed() const { return num_recomputed_; }
  int32_t num_document_tokens() const { return num_document_tokens_; }
  // ForwardBatch::last_layer of the passes that probe.
  int32_t last_layer() const { return rule_.num_layers; }

  // The passes begin again.
  void restart();

  // Adds a slice of a pass to the batch that it is computed in.
  void add(const ScheduledSlice& slice, std::span<const TokenId> text, ForwardBatch& batch);

  // Of a slice that probed, from row first_row of the step that `telemetry` saw last.
  void learn(const ScheduledSlice& slice, int32_t first_row, const RouterTelemetry& telemetry);

 private:
  // Of a layer: [num_tokens(), top_k].
  struct Routes {
    std::vector<int32_t> experts;
    std::vector<float> weights;
    void resize(size_t size) {
      experts.resize(size);
      weights.resize(size);
    }
  };

  int32_t begin() const { return documents_.front().begin; }
  int32_t num_tokens() const { return documents_.back().end - begin(); }
  int32_t position(const ReuseSlice& pass, int32_t i) const;  // of token i of a pass, in the text
  void choose();

  KvReuse rule_;
  std::vector<KvSpan> documents_;
  int32_t num_document_tokens_ = 0;
  int32_t num_recomputed_ = 0;
  int32_t num_probed_moe_layers_ = 0;

  std::vector<float> deviations_;     // [num_tokens()]
  std::vector<Routes> routes_alone_;  // [probed MoE layers]
  std::vector<int32_t> recomputed_;   // positions, ascending; empty before they are chosen
};

// Half the sum over all experts of how much their weights differ, of weights that are divided by their sum first: 0
// where both are the same, 1 where they have no expert in common. kNoExpert counts for nothing.
float route_distance(std::span<const int32_t> experts, std::span<const float> weights,
                     std::span<const int32_t> other_experts, std::span<const float> other_weights);

}  // namespace witan
