#include "engine/document_reuse.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace witan {
namespace {

// Numbers without a pattern, the same for the same text.
float chance_of(int32_t position) {
  uint64_t x = static_cast<uint64_t>(position) + 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;  // splitmix64
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return static_cast<float>((x ^ (x >> 31)) >> 40);
}

float weight_sum(std::span<const int32_t> experts, std::span<const float> weights) {
  float sum = 0.0f;
  for (size_t i = 0; i < experts.size(); ++i) sum += experts[i] == kNoExpert ? 0.0f : weights[i];
  return sum > 0.0f ? sum : 1.0f;
}

}  // namespace

float route_distance(std::span<const int32_t> experts, std::span<const float> weights,
                     std::span<const int32_t> other_experts, std::span<const float> other_weights) {
  const float sum = weight_sum(experts, weights);
  const float other_sum = weight_sum(other_experts, other_weights);
  float distance = 0.0f;
  for (size_t i = 0; i < experts.size(); ++i) {
    if (experts[i] == kNoExpert) continue;
    const auto same = std::ranges::find(other_experts, experts[i]);
    const float other =
        same == other_experts.end() ? 0.0f : other_weights[static_cast<size_t>(same - other_experts.begin())];
    distance += std::abs(weights[i] / sum - other / other_sum);
  }
  for (size_t i = 0; i < other_experts.size(); ++i) {
    if (other_experts[i] == kNoExpert || std::ranges::find(experts, other_experts[i]) != experts.end()) continue;
    distance += other_weights[i] / other_sum;
  }
  return distance / 2;
}

DocumentReuse::DocumentReuse(const KvReuse& rule, std::vector<KvSpan> documents, const ModelInfo& info)
    : rule_(rule), documents_(std::move(documents)) {
  std::vector<int32_t> lengths;
  for (const KvSpan& document : documents_) lengths.push_back(document.end - document.begin);
  num_document_tokens_ = std::accumulate(lengths.begin(), lengths.end(), 0);
  num_recomputed_ = num_tokens() - num_document_tokens_ + rule.num_recomputed(lengths);
  if (rule_.by != KvReuse::By::kRoutes) return;
  num_probed_moe_layers_ = static_cast<int32_t>(
      std::ranges::count_if(info.moe_layers, [&](int32_t layer) { return layer < rule.num_layers; }));
}

void DocumentReuse::restart() {
  deviations_.clear();
  routes_alone_.clear();
  recomputed_.clear();
}

int32_t DocumentReuse::position(const ReuseSlice& pass, int32_t i) const {
  switch (pass.pass) {
    case ReuseSlice::Pass::kDocument:
    case ReuseSlice::Pass::kProbeAlone:
      return documents_[static_cast<size_t>(pass.document)].begin + pass.first + i;
    case ReuseSlice::Pass::kProbe:
      return begin() + pass.first + i;
    case ReuseSlice::Pass::kRecompute:
      break;
  }
  return recomputed_[static_cast<size_t>(pass.first) + static_cast<size_t>(i)];
}

void DocumentReuse::add(const ScheduledSlice& slice, std::span<const TokenId> text, ForwardBatch& batch) {
  using enum ReuseSlice::Pass;
  const ReuseSlice& pass = *slice.reuse;
  if (pass.pass == kRecompute && recomputed_.empty()) choose();
  const bool is_alone = pass.pass == kDocument || pass.pass == kProbeAlone;
  SequenceSlice added{.kv_sequence = slice.kv_sequence,
                      .first_row = static_cast<int32_t>(batch.tokens.size()),
                      .num_tokens = slice.num_tokens,
                      .first_token = pass.first};
  if (pass.pass != kDocument) {
    added.in_place = pass.pass == kProbeAlone ? SequenceSlice::InPlace::kReads : SequenceSlice::InPlace::kReplaces;
  }
  if (pass.pass == kProbe) {
    deviations_.resize(static_cast<size_t>(num_tokens()));
    if (rule_.by == KvReuse::By::kValues) added.value_deviations = deviations_.data() + pass.first;
  }
  batch.slices.push_back(added);
  for (int32_t i = 0; i < slice.num_tokens; ++i) {
    const int32_t in_text = position(pass, i);
    batch.tokens.push_back(text[static_cast<size_t>(in_text)]);
    batch.positions.push_back(is_alone ? pass.first + i : in_text);
    batch.roles.push_back(TokenRole::kPrompt);
  }
}

void DocumentReuse::learn(const ScheduledSlice& slice, int32_t first_row, const RouterTelemetry& telemetry) {
  if (rule_.by != KvReuse::By::kRoutes) return;
  const bool is_alone = slice.reuse->pass == ReuseSlice::Pass::kProbeAlone;
  const auto top_k = static_cast<size_t>(telemetry.top_k());
  routes_alone_.resize(static_cast<size_t>(num_probed_moe_layers_));
  for (Routes& routes : routes_alone_) routes.resize(static_cast<size_t>(num_tokens()) * top_k);
  for (int32_t i = 0; i < slice.num_tokens; ++i) {
    const auto token = static_cast<size_t>(position(*slice.reuse, i) - begin());
    const size_t row = (static_cast<size_t>(first_row) + static_cast<size_t>(i)) * top_k;
    float distance = 0.0f;
    for (int32_t layer = 0; layer < num_probed_moe_layers_; ++layer) {
      const std::span<const int32_t> experts = telemetry.last_experts(layer).subspan(row, top_k);
      const std::span<const float> weights = telemetry.last_weights(layer).subspan(row, top_k);
      Routes& alone = routes_alone_[static_cast<size_t>(layer)];
      const std::span<int32_t> experts_alone = std::span(alone.experts).subspan(token * top_k, top_k);
      const std::span<float> weights_alone = std::span(alone.weights).subspan(token * top_k, top_k);
      if (is_alone) {
        std::ranges::copy(experts, experts_alone.begin());
        std::ranges::copy(weights, weights_alone.begin());
      } else {
        distance += route_distance(experts, weights, experts_alone, weights_alone);
      }
    }
    if (!is_alone) deviations_[token] = distance;
  }
}

// Tokens between documents, then the first ones of each, then those that deviate most, the earlier ones first.
void DocumentReuse::choose() {
  int32_t reached = begin();
  std::vector<int32_t> others;
  for (const KvSpan& document : documents_) {
    for (; reached < document.begin; ++reached) recomputed_.push_back(reached);
    const int32_t first = std::min(document.end, document.begin + rule_.num_first);
    for (; reached < first; ++reached) recomputed_.push_back(reached);
    for (; reached < document.end; ++reached) others.push_back(reached);
  }
  const auto num_chosen = num_recomputed_ - std::ssize(recomputed_);
  WITAN_CHECK(0 <= num_chosen && num_chosen <= std::ssize(others), "{} of {} tokens to be chosen", num_chosen,
              others.size());
  const auto deviation = [&](int32_t position) {
    return rule_.probes() ? deviations_[static_cast<size_t>(position - begin())] : chance_of(position);
  };
  std::ranges::stable_sort(others, std::ranges::greater(), deviation);
  recomputed_.insert(recomputed_.end(), others.begin(), others.begin() + num_chosen);
  std::ranges::sort(recomputed_);
}

}  // namespace witan
