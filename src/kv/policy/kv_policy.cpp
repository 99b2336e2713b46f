// How much a policy keeps, and when.
#include "kv/policy/kv_policy.h"

#include <algorithm>

namespace witan {
namespace {

// Rounded down; 0.29 of 100 are 29, although the double nearest to 0.29 is less.
int64_t share_of(int64_t count, double ratio) {
  const auto number = static_cast<double>(count);
  return static_cast<int64_t>(ratio * number + 1e-9 * number);
}

// Of a policy with its own budget: of a table of heads the mean, and of lazy layers the most when there is one.
int32_t num_kept_by_itself(const KvPolicy& policy, int32_t num_tokens) {
  const int32_t num_protected = std::min(num_tokens, policy.num_sinks + policy.num_recent);
  if (policy.head_kinds.empty()) return std::max(num_protected, num_tokens - 1);
  int64_t num_heads = 0;
  int64_t num_full = 0;
  for (const std::string& kinds : policy.head_kinds) {
    num_heads += std::ssize(kinds);
    num_full += std::ranges::count(kinds, '1');
  }
  const int64_t sum = num_full * num_tokens + (num_heads - num_full) * num_protected;
  return static_cast<int32_t>((sum + num_heads - 1) / num_heads);
}

}  // namespace

int32_t KvPageReader::num_pages(int64_t num_entries) const {
  // A share ends in a page that is read whole: the share of everything is everything.
  const int64_t wanted = ratio > 0.0 ? share_of(num_entries, ratio) + page_entries - 1 : num_tokens;
  return static_cast<int32_t>(std::max<int64_t>(3, wanted / page_entries));
}

int32_t KvBudget::of(int32_t num_entries) const {
  const int64_t wanted = tokens > 0 ? tokens : share_of(num_entries, ratio);
  return static_cast<int32_t>(std::min<int64_t>(std::max<int64_t>(wanted, std::max(floor, 1)), num_entries));
}

KvPolicy::Protected KvPolicy::num_protected(int32_t num_entries, int32_t num_kept, bool has_sinks) const {
  const int32_t most_recent = std::max(num_recent, static_cast<int32_t>(recent_share * num_kept));
  const int32_t sinks = has_sinks ? std::min({num_sinks, num_entries, num_kept}) : 0;
  return {.num_sinks = sinks, .num_recent = std::min({most_recent, num_entries - sinks, num_kept - sinks})};
}

KvWants KvPolicy::wants() const {
  // The last tokens whose attention a guard looks at, or a merging, of policies that want the queries of fewer.
  constexpr int32_t kLastTokens = 32;
  KvWants wants = scorer == nullptr ? KvWants() : scorer->wants();
  wants.value_norms = second_stage.has_value();
  const bool merges_by_attention = merging && merging->into == KvMerging::Into::kNext && !wants.attention_mass;
  if (guard > 0.0 || merges_by_attention) wants.num_query_tokens = std::max(wants.num_query_tokens, kLastTokens);
  return wants;
}

int32_t KvPolicy::num_kept(int32_t num_prompt_tokens, int32_t num_generated_tokens) const {
  if (has_own_budget()) return num_kept_by_itself(*this, num_prompt_tokens + num_generated_tokens);
  if (!generated_budget) return budget.of(num_prompt_tokens + num_generated_tokens);
  return budget.of(num_prompt_tokens) + generated_budget->of(num_generated_tokens);
}

int32_t KvPolicy::num_entries(int32_t num_prompt_tokens, int32_t num_tokens) const {
  const std::vector<KvCompressionPoint> points = compression_points(num_prompt_tokens, num_tokens);
  return points.empty() ? num_tokens : points.back().num_kept + num_tokens - points.back().num_tokens;
}

std::vector<KvCompressionPoint> KvPolicy::compression_points(int32_t num_prompt_tokens, int32_t num_tokens) const {
  std::vector<KvCompressionPoint> points;
  int64_t num_entries = num_prompt_tokens;
  for (int64_t num_judged = num_prompt_tokens; num_judged <= num_tokens; num_judged += every, num_entries += every) {
    // Whether a layer is lazy is found out each time anew.
    const auto so_far = static_cast<int32_t>(num_judged);
    const int32_t kept = layers == KvLayerBudget::kLazy ? num_kept_by_itself(*this, static_cast<int32_t>(num_entries))
                                                        : num_kept(num_prompt_tokens, so_far - num_prompt_tokens);
    if (kept < num_entries) {
      points.push_back({.num_tokens = static_cast<int32_t>(num_judged), .num_kept = kept});
      num_entries = kept;
    }
    if (every == 0) break;
  }
  return points;
}

}  // namespace witan
