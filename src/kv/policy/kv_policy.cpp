// How much a policy keeps, and when.
#include "kv/policy/kv_policy.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"

namespace witan {
namespace {

// Rounded down; 0.29 of 100 are 29, although the double nearest to 0.29 is less.
int64_t share_of(int64_t count, double ratio) {
  const auto number = static_cast<double>(count);
  return static_cast<int64_t>(ratio * number + 1e-9 * number);
}

// Channels of a key that stay: the share, rounded to what its codec stores without waste, and at least that.
int32_t num_channels(const KvLayerSpec& layer, KvCodec codec, double share) {
  const int32_t unit = kv_key_unit(codec);
  const auto rounded = static_cast<int32_t>(std::lround(share * layer.key_dim / unit)) * unit;
  return std::min(std::max(rounded, unit), layer.key_dim);
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
  KvWants wants = scorer == nullptr ? KvWants() : scorer->wants();
  wants.value_norms = second_stage.has_value();
  if (demotion && demotion->drops_channels()) {
    wants.num_query_tokens = std::max(wants.num_query_tokens, demotion->num_query_tokens);
  }
  const bool merges_by_attention = merging && merging->into == KvMerging::Into::kNext && !wants.attention_mass;
  if (guard > 0.0 || merges_by_attention) wants.num_query_tokens = std::max(wants.num_query_tokens, kKvLastTokens);
  return wants;
}

int32_t KvPolicy::num_kept(int32_t num_prompt_tokens, int32_t num_generated_tokens) const {
  if (has_own_budget()) return num_kept_by_itself(*this, num_prompt_tokens + num_generated_tokens);
  if (!generated_budget) return budget.of(num_prompt_tokens + num_generated_tokens);
  return budget.of(num_prompt_tokens) + num_generated_kept(num_generated_tokens);
}

int32_t KvPolicy::num_recent_of_pool() const {
  const int32_t most = generated_budget->of(max_generated);
  return num_protected(max_generated, most, false).num_recent;
}

// With `heavy` entries beside the recent ones in the end, the pool has one more of them every (max_generated -
// recent) / heavy tokens.
int32_t KvPolicy::num_generated_kept(int32_t num_generated_tokens) const {
  if (!generated_grows || num_generated_tokens >= max_generated) return generated_budget->of(num_generated_tokens);
  const int32_t recent = num_recent_of_pool();
  if (num_generated_tokens <= recent) return num_generated_tokens;
  const int64_t heavy = generated_budget->of(max_generated) - recent;
  const int64_t num_grown = heavy * (num_generated_tokens - recent) / (max_generated - recent);
  return static_cast<int32_t>(std::min<int64_t>(recent + num_grown, num_generated_tokens));
}

int32_t KvPolicy::num_entries(int32_t num_prompt_tokens, int32_t num_tokens) const {
  const std::vector<KvCompressionPoint> points = compression_points(num_prompt_tokens, num_tokens);
  return points.empty() || demotes_others ? num_tokens : points.back().num_kept + num_tokens - points.back().num_tokens;
}

KvDemotion KvDemotionRule::of(std::span<const KvLayerSpec> layers, KvCodec own) const {
  const auto num_layers = std::ranges::count(layers, 0, &KvLayerSpec::window);
  if (is_by_layer && std::ssize(codecs) != num_layers) {
    fail(ErrorCode::kInvalidArgument,
         "the KV policy has the types of entries of {} layers; the model has {} without a window", codecs.size(),
         num_layers);
  }
  KvDemotion demotion{.codecs = {}, .num_recent = num_recent};
  std::vector<int32_t> key_dims;
  bool drops_any = false;
  for (size_t next = 0; const KvLayerSpec& layer : layers) {
    const bool stays = layer.window > 0;
    const KvCodec codec = stays || codecs.empty() ? own : codecs[is_by_layer ? next++ : 0];
    demotion.codecs.push_back(codec);
    key_dims.push_back(stays ? layer.key_dim : num_channels(layer, codec, key_share));
    drops_any |= key_dims.back() < layer.key_dim;
  }
  if (drops_any) demotion.key_dims = std::move(key_dims);
  return demotion;
}

std::vector<KvCompressionPoint> KvPolicy::judgements(int32_t num_prompt_tokens, int32_t num_tokens) const {
  std::vector<KvCompressionPoint> points;
  if (scorer == nullptr || under_pressure) return points;
  int64_t num_entries = 0;
  int64_t reached = 0;
  const auto judge_at = [&](int64_t so_far) {
    num_entries = aside ? so_far : num_entries + so_far - std::exchange(reached, so_far);
    const auto num_prompt = static_cast<int32_t>(std::min<int64_t>(so_far, num_prompt_tokens));
    // Whether a layer is lazy is found out each time anew.
    const int32_t kept = layers == KvLayerBudget::kLazy
                             ? num_kept_by_itself(*this, static_cast<int32_t>(num_entries))
                             : num_kept(num_prompt, static_cast<int32_t>(so_far) - num_prompt);
    if (kept >= num_entries) return;
    points.push_back({.num_tokens = static_cast<int32_t>(so_far), .num_kept = kept});
    num_entries = kept;
  };
  for (const int32_t so_far : times_in_prompt(num_prompt_tokens, num_tokens)) judge_at(so_far);
  for (int64_t so_far = num_prompt_tokens; so_far <= num_tokens; so_far += every) {
    judge_at(so_far);
    if (every == 0) break;
  }
  for (size_t i = 0; aside && i + 1 < points.size(); ++i) points[i].num_aside = points[i + 1].num_tokens;
  return points;
}

std::vector<int32_t> KvPolicy::times_in_prompt(int32_t num_prompt_tokens, int32_t num_tokens) const {
  std::vector<int32_t> times;
  if (prefill_every == 0) return times;
  const int64_t end = std::min<int64_t>(num_prompt_tokens, int64_t{num_tokens} + 1);
  for (int64_t so_far = prefill_every; so_far < end; so_far += prefill_every) {
    times.push_back(static_cast<int32_t>(so_far));
  }
  return times;
}

std::vector<KvCompressionPoint> KvPolicy::compression_points(int32_t num_prompt_tokens, int32_t num_tokens) const {
  std::vector<KvCompressionPoint> judged = judgements(num_prompt_tokens, num_tokens);
  if (!demotion || demotes_others) return judged;
  std::vector<int32_t> times = times_in_prompt(num_prompt_tokens, num_tokens);
  for (int64_t so_far = num_prompt_tokens; so_far <= num_tokens; so_far += kKvBlockSize) {
    times.push_back(static_cast<int32_t>(so_far));
  }
  std::vector<KvCompressionPoint> points;
  size_t next = 0;
  for (const int32_t so_far : times) {
    while (next < judged.size() && judged[next].num_tokens <= so_far) points.push_back(judged[next++]);
    const KvCompressionPoint last = points.empty() ? KvCompressionPoint() : points.back();
    const int32_t num_entries = last.num_kept + so_far - last.num_tokens;
    const bool is_too_few = heads_keep_alike() && guard == 0.0 && num_entries < demotion->num_recent + kKvBlockSize;
    if (last.num_tokens == so_far || is_too_few) continue;
    points.push_back({.num_tokens = so_far, .num_kept = num_entries, .judges = false});
  }
  points.insert(points.end(), judged.begin() + static_cast<int64_t>(next), judged.end());
  return points;
}

}  // namespace witan
