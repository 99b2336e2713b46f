// Methods that sort layers or heads into those that need the whole text and those that do not.
#include <algorithm>
#include <sstream>

#include "base/error.h"
#include "kv/policy/attention_shares.h"
#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

// Each entry's share of what the last tokens attend to, the mean over tokens and query heads.
class AttentionShares : public KvScorer {
 public:
  explicit AttentionShares(int32_t window) : window_(window) {}

  KvWants wants() const override { return {.num_query_tokens = window_}; }

  int64_t scratch_floats(const HeadEvidence& head) const override {
    return attention_shares_scratch(head.view) + attention_shares_floats(head.view);
  }

  void score(const HeadEvidence& head, std::span<float> scores, float* scratch) const override {
    float* shares = scratch + attention_shares_scratch(head.view);
    attention_shares(head, shares, scratch);
    std::copy_n(shares, scores.size(), scores.begin());
  }

 private:
  int32_t window_;
};

// What is protected decides, not a score.
class NoScore : public KvScorer {
 public:
  void score(const HeadEvidence&, std::span<float> scores, float*) const override { std::ranges::fill(scores, 0.0f); }
};

}  // namespace

// SimLayerKV (Zhang et al., arXiv 2410.13846). Heads with sink logits are judged without them.
void sim_layer_kv(PolicyBuilder& builder, PartArguments& arguments) {
  const int32_t window = arguments.integer("window", 32, 1, 4096);
  builder.choose_score(arguments, std::make_shared<AttentionShares>(window));
  builder.choose_layers(arguments, KvLayerBudget::kLazy);
  builder.policy.lazy_threshold = arguments.number("threshold", 0.9, 0.0, 1.0);
  builder.protect(arguments.integer("sinks", 4, 0, 1 << 20), arguments.integer("recent", 1024, 1, 1 << 20));
}

// DuoAttention (Xiao et al., arXiv 2410.10819), with the kinds of heads as a table: the paper learns them.
void duo_attention(PolicyBuilder& builder, PartArguments& arguments) {
  std::vector<std::string> kinds;
  std::istringstream layers(arguments.text("heads"));
  for (std::string layer; std::getline(layers, layer, '/'); kinds.push_back(layer)) {
    if (layer.empty() || layer.find_first_not_of("01") != std::string::npos) {
      fail(ErrorCode::kInvalidArgument, "{}: heads: '{}' is no layer; expected a 0 or 1 for each of its KV heads",
           arguments.part(), layer);
    }
  }
  if (kinds.empty()) fail(ErrorCode::kInvalidArgument, "{}: heads: no layers", arguments.part());
  builder.choose_score(arguments, std::make_shared<NoScore>());
  builder.choose_kinds(arguments, std::move(kinds));
  builder.protect(arguments.integer("sinks", 64, 0, 1 << 20), arguments.integer("recent", 256, 1, 1 << 20));
}

}  // namespace witan
