#include "engine/kv_request.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "engine/prompt_text.h"

namespace witan {
namespace {

// Pinned entries have to be there, and to have room beside those that stay in any case.
void check_pinned(const GenerationRequest& request, int32_t num_prompt) {
  std::vector<bool> is_pinned(static_cast<size_t>(num_prompt));
  for (const KvSpan& span : request.kv_pinned) {
    if (span.begin < 0 || span.begin >= span.end || span.end > num_prompt) {
      fail(ErrorCode::kInvalidArgument, "pinned tokens {} to {} are not in the prompt of {} tokens", span.begin,
           span.end, num_prompt);
    }
    std::fill(is_pinned.begin() + span.begin, is_pinned.begin() + span.end, true);
  }
  if (!request.kv_policy || request.kv_policy->scorer == nullptr || request.kv_pinned.empty()) return;
  const KvPolicy& policy = *request.kv_policy;
  if (policy.has_own_budget() || policy.layers != KvLayerBudget::kUniform || !policy.span_separator.empty() ||
      policy.share_chunk > 0) {
    fail(ErrorCode::kInvalidArgument,
         "tokens cannot be pinned with the KV policy {}: not every layer or chunk has room for them", policy.text);
  }
  // In a prompt that is judged several times they need their room from the first time on; under pressure that may be
  // when the prompt is computed.
  const std::vector<KvCompressionPoint> points = policy.compression_points(num_prompt, num_prompt);
  const auto first_judged = std::ranges::find_if(points, &KvCompressionPoint::judges);
  const int32_t num_kept = policy.under_pressure          ? policy.num_kept(num_prompt)
                           : first_judged == points.end() ? num_prompt
                                                          : first_judged->num_kept;
  // Judged once, the most recent tokens are those of the prompt; later they are others.
  const bool is_judged_later = policy.every > 0 && !policy.generated_budget;
  if (num_kept == num_prompt && !is_judged_later) return;
  const bool is_judged_again = is_judged_later || policy.prefill_every > 0;
  const auto [num_sinks, num_recent] = policy.num_protected(num_prompt, num_kept);
  const int32_t last = is_judged_again ? num_prompt : num_prompt - num_recent;
  int32_t num_taken = 0;
  for (int32_t first = num_sinks; first < last; first += policy.chunk) {
    const int32_t end = std::min(first + policy.chunk, last);
    if (std::find(is_pinned.begin() + first, is_pinned.begin() + end, true) != is_pinned.begin() + end) {
      num_taken += end - first;  // chunks stay as a whole
    }
  }
  if (num_taken > num_kept - num_sinks - num_recent) {
    fail(ErrorCode::kInvalidArgument,
         "pinned tokens need the room of {} entries, but of the {} that the KV policy keeps {} are its first and last",
         num_taken, num_kept, num_sinks + num_recent);
  }
}

void check_documents(std::span<const KvSpan> documents, int32_t num_prompt) {
  int32_t reached = 0;
  for (const KvSpan& span : documents) {
    if (span.begin < 0 || span.begin >= span.end || span.end > num_prompt) {
      fail(ErrorCode::kInvalidArgument, "tokens {} to {} of a document are not in the prompt of {} tokens", span.begin,
           span.end, num_prompt);
    }
    if (span.begin < reached) {
      fail(ErrorCode::kInvalidArgument, "the document of tokens {} to {} begins before the one before it ends, at {}",
           span.begin, span.end, reached);
    }
    reached = span.end;
  }
}

// Of the documents, what may be found elsewhere: whole blocks, not of one that begins the prompt, where it is just
// that, nor of the last tokens of the prompt, which are computed in any case.
std::vector<KvSpan> reusable_documents(const GenerationRequest& request, int32_t num_last_tokens) {
  std::vector<KvSpan> documents;
  const int32_t end = static_cast<int32_t>(request.prompt.size()) - num_last_tokens;
  for (const KvSpan& span : request.kv_documents) {
    const int32_t num_tokens = (std::min(span.end, end) - span.begin) / kKvBlockSize * kKvBlockSize;
    if (span.begin > 0 && num_tokens > 0) documents.push_back({span.begin, span.begin + num_tokens});
  }
  return documents;
}

void check_reuse(const KvPolicy& policy, const LoadedModel& model) {
  const ModelInfo& info = model.info();
  const KvReuse& reuse = *policy.reuse;
  if (std::ranges::any_of(info.kv_layers, [](const KvLayerSpec& layer) { return layer.window > 0; })) {
    fail(ErrorCode::kUnsupported,
         "the KV policy {} moves documents' entries, of which layers with a sliding window do not keep all",
         policy.text);
  }
  if (!model.key_rope()) {
    fail(ErrorCode::kUnsupported,
         "the KV policy {} moves documents' entries, and this model's keys cannot be moved to other positions",
         policy.text);
  }
  if (reuse.probes() && reuse.num_layers >= info.num_layers) {
    fail(ErrorCode::kInvalidArgument,
         "the KV policy {} compares tokens in the first {} layers; the model has {} in all", policy.text,
         reuse.num_layers, info.num_layers);
  }
  const int32_t first_moe_layer = info.moe_layers.empty() ? info.num_layers : info.moe_layers.front();
  if (reuse.by == KvReuse::By::kRoutes && first_moe_layer >= reuse.num_layers) {
    fail(ErrorCode::kInvalidArgument, "the KV policy {} compares routes in the first {} layers, which have no experts",
         policy.text, reuse.num_layers);
  }
}

// Tables of layers and heads have to be of this model.
void check_tables(const KvPolicy& policy, const ModelInfo& info) {
  if (policy.head_kinds.empty() && policy.layer_shares.empty()) return;
  std::vector<size_t> num_heads;
  for (const KvLayerSpec& layer : info.kv_layers) {
    if (layer.window == 0) num_heads.push_back(static_cast<size_t>(layer.num_kv_heads));
  }
  if (!policy.layer_shares.empty() && policy.layer_shares.size() != num_heads.size()) {
    fail(ErrorCode::kInvalidArgument, "the KV policy has shares of {} layers; the model has {} without a window",
         policy.layer_shares.size(), num_heads.size());
  }
  if (policy.head_kinds.empty()) return;
  if (policy.head_kinds.size() != num_heads.size()) {
    fail(ErrorCode::kInvalidArgument, "the KV policy has the heads of {} layers; the model has {} without a window",
         policy.head_kinds.size(), num_heads.size());
  }
  for (size_t layer = 0; layer < num_heads.size(); ++layer) {
    if (policy.head_kinds[layer].size() == num_heads[layer]) continue;
    fail(ErrorCode::kInvalidArgument, "the KV policy has {} heads in layer {}; the model has {} KV heads there",
         policy.head_kinds[layer].size(), layer, num_heads[layer]);
  }
}

// Where they are no part of keys.
bool can_merge_values(const ModelInfo& info) {
  return std::ranges::none_of(info.kv_layers, &KvLayerSpec::value_in_key);
}

void check_merging(const KvPolicy& policy, const ModelInfo& info) {
  if (policy.merging && !can_merge_values(info)) {
    fail(ErrorCode::kUnsupported,
         "the KV policy {} merges values of entries, and this model (MLA) has none: they are a part of the keys",
         policy.text);
  }
}

// Where the parts of a prompt begin that a policy keeps together.
std::vector<int32_t> span_starts(const Tokenizer* tokenizer, std::span<const TokenId> prompt,
                                 const std::string& separator) {
  if (tokenizer == nullptr) {
    fail(ErrorCode::kUnsupported,
         "the KV policy keeps parts of the text together, for which the model needs a tokenizer");
  }
  return PromptText(*tokenizer, prompt).part_starts(separator);
}

// The prompt's repetitions, of a policy that wants them. Without a tokenizer no words ask for them.
std::vector<Repetition> repetitions_of_prompt(const LoadedModel& model, std::span<const TokenId> prompt,
                                              int32_t chunk_tokens) {
  RepetitionWords words;
  if (const Tokenizer* tokenizer = model.tokenizer(); tokenizer != nullptr) {
    const auto encode = [&](const char* text) { return tokenizer->encode(text, AddSpecial::kNo, ParseSpecial::kNo); };
    words.first = encode("\n\nRepeat the previous context exactly.");
    words.next = encode("\n\nRepeat the part of the previous context exactly, starting with");
  }
  return repetitions_of(prompt, chunk_tokens, words);
}

bool fits_into_context(const LoadedModel& model, std::span<const TokenId> prompt, const Repetition& repetition) {
  return std::ssize(prompt) + std::ssize(repetition.tokens) <= model.options().context_length;
}

bool fits_twice(const LoadedModel& model, std::span<const TokenId> prompt) {
  const std::vector<Repetition> repetitions = repetitions_of_prompt(model, prompt, KvWants::Repetitions().chunk_tokens);
  return std::ranges::all_of(repetitions, [&](const Repetition& r) {
    const int64_t bytes = model.kv().bytes_for_tokens(std::ssize(prompt) + std::ssize(r.tokens));
    return fits_into_context(model, prompt, r) && std::cmp_less_equal(bytes, model.kv().config().capacity_bytes);
  });
}

std::vector<Repetition> make_repetitions(const LoadedModel& model, std::span<const TokenId> prompt,
                                         int32_t chunk_tokens) {
  std::vector<Repetition> repetitions = repetitions_of_prompt(model, prompt, chunk_tokens);
  for (const Repetition& repetition : repetitions) {
    if (fits_into_context(model, prompt, repetition)) continue;
    fail(ErrorCode::kInvalidArgument,
         "the KV policy reads the prompt a second time: its {} tokens and {} that repeat a chunk do not fit into the "
         "context of {} tokens; smaller chunks, of less than {} tokens, may",
         prompt.size(), repetition.tokens.size(), model.options().context_length,
         repetition.chunk.end - repetition.chunk.begin);
  }
  return repetitions;
}

// Tokens of a request when everything is generated.
int64_t most_tokens(const GenerationRequest& request, const LoadedModel& model) {
  return std::min<int64_t>(std::ssize(request.prompt) + request.max_new_tokens, model.options().context_length);
}

CompressionPlan compression_of(const KvPolicy& policy, int32_t num_prompt, int64_t num_tokens,
                               const LoadedModel& model) {
  const KvWants wants = policy.wants();
  CompressionPlan plan{// With the last token but one computed the last is there, and nothing is computed any more.
                       .points = policy.compression_points(num_prompt, static_cast<int32_t>(num_tokens) - 2),
                       .is_average = !policy.heads_keep_alike(),
                       .may_keep_all = policy.guard > 0.0,
                       .num_query_tokens = wants.sees_all_tokens() ? std::numeric_limits<int32_t>::max()
                                                                   : std::max(1, wants.num_query_tokens)};
  const auto most_entries = static_cast<int32_t>(num_tokens) - 1;
  if (policy.under_pressure && policy.num_kept(most_entries) < most_entries) {
    plan.pressure = KvPressure{.budget = policy.budget, .every = policy.every};
  }
  plan.aside = policy.aside;
  if (policy.demotion) {
    const KvCacheConfig& cache = model.kv().config();
    plan.demotion = policy.demotion->of(cache.layers, cache.codec);
    plan.demotes_others = policy.demotes_others;
    model.kv().check_demotion(*plan.demotion);
  }
  return plan;
}

// Whether what a policy leaves of the prompt, at points before its end, follows from the policy and the tokens up to
// there.
bool leaves_the_same(const KvPolicy& policy, const GenerationRequest& request) {
  const KvWants wants = policy.wants();
  const bool judges_by_entries = wants.num_query_tokens == 0 && !wants.attention_mass && !wants.moments &&
                                 !wants.value_norms && !wants.repetitions;
  return policy.prefill_every > 0 && !policy.aside && judges_by_entries && request.kv_pinned.empty() &&
         policy.span_separator.empty();
}

void plan_reuse(const GenerationRequest& request, const LoadedModel& model, KvRequest& kv) {
  const KvPolicy& policy = *kv.policy;
  check_reuse(policy, model);
  // Where entries are judged by queries, those of the last tokens are wanted.
  const int32_t num_judging = std::min(kv.compression.num_query_tokens, kv.text.num_prompt_tokens);
  std::vector<KvSpan> documents = reusable_documents(request, std::max(1, num_judging));
  if (documents.empty()) return;
  kv.documents.emplace(*policy.reuse, documents, model.info());
  kv.reuse = ReusePlan{.documents = std::move(documents),
                       .probes_alone = policy.reuse->by == KvReuse::By::kRoutes,
                       .probes = policy.reuse->probes(),
                       .num_recomputed = kv.documents->num_recomputed(),
                       .copy = {}};
}

KvRequest plan_policy(const GenerationRequest& request, const LoadedModel& model) {
  const auto num_prompt = static_cast<int32_t>(request.prompt.size());
  KvRequest kv{.policy = request.kv_policy,
               .text = {.num_prompt_tokens = num_prompt, .pinned = request.kv_pinned},
               .compression = {},
               .reuse = {},
               .documents = {}};
  const int64_t num_tokens = most_tokens(request, model);
  kv.policy->max_generated = static_cast<int32_t>(num_tokens) - num_prompt;
  const KvPolicy& policy = *kv.policy;
  check_tables(policy, model.info());
  check_merging(policy, model.info());
  if (num_prompt == 0) return kv;
  if (!policy.span_separator.empty()) {
    kv.text.span_starts = span_starts(model.tokenizer(), request.prompt, policy.span_separator);
  }
  kv.compression = compression_of(policy, num_prompt, num_tokens, model);
  if (leaves_the_same(policy, request)) kv.compression.shared_as = policy.text;
  const std::vector<KvCompressionPoint>& points = kv.compression.points;
  if (const KvWants wants = policy.wants(); wants.repetitions && !points.empty() && points[0].judges) {
    kv.text.repetitions = make_repetitions(model, request.prompt, wants.repetitions->chunk_tokens);
    for (const Repetition& repetition : kv.text.repetitions) {
      kv.compression.repetitions.push_back(static_cast<int32_t>(repetition.tokens.size()));
    }
  }
  if (policy.reuse) plan_reuse(request, model, kv);
  kv.private_generation = policy.pages.has_value();
  kv.acts = !points.empty() || kv.compression.pressure || kv.private_generation;
  kv.most_judged = kv.compression.pressure ? static_cast<int32_t>(num_tokens) - 1 : kv.compression.most_entries();
  kv.side_bytes = model.evidence_bytes(policy, kv.compression, kv.most_judged, static_cast<int32_t>(num_tokens));
  return kv;
}

// Of the types that `auto` may round older entries to, those of fewer bytes than the cache's own.
std::vector<KvAutoTypes> auto_types(const LoadedModel& model, const KvAutoBytes& bytes_for) {
  const KvCache& kv = model.kv();
  std::vector<KvAutoTypes> types;
  for (const std::string_view policy : kv_auto_types(can_merge_values(model.info()))) {
    const KvDemotion demotion = parse_kv_policy(policy).demotion->of(kv.config().layers, kv.config().codec);
    try {
      kv.check_demotion(demotion);
    } catch (const Error&) {
      continue;
    }
    if (kv.demoted_bytes(demotion, kKvBlockSize) >= kKvBlockSize * kv.bytes_per_token()) continue;
    types.push_back({.policy = std::string(policy),
                     .num_recent = demotion.num_recent,
                     .bytes_for = [&kv, demotion, bytes_for](int32_t num_entries, int32_t num_rounded) {
                       return bytes_for(num_entries) - num_rounded * kv.bytes_per_token() +
                              kv.demoted_bytes(demotion, num_rounded);
                     }});
  }
  return types;
}

}  // namespace

KvRequest plan_kv(const GenerationRequest& request, const LoadedModel& model) {
  check_pinned(request, static_cast<int32_t>(request.prompt.size()));
  check_documents(request.kv_documents, static_cast<int32_t>(request.prompt.size()));
  if (!request.kv_policy) return {};
  try {
    return plan_policy(request, model);
  } catch (const Error& error) {
    throw KvPolicyError(error.code(), error.what());
  }
}

KvAutoRequest kv_auto_request(const GenerationRequest& request, const LoadedModel& model) {
  const KvPolicy& policy = *request.kv_policy;
  if (policy.automatic->by_room && !request.kv_pinned.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "tokens cannot be pinned with the KV policy {}: whether they have room depends on other requests; give it a "
         "budget, such as keep=0.5",
         policy.text);
  }
  const int64_t most_entries = most_tokens(request, model) - 1;
  const auto bytes_for = [&kv = model.kv(), most_entries](int32_t num_entries) {
    return kv.bytes_for_entries(num_entries, most_entries, 1);
  };
  return {.num_prompt_tokens = static_cast<int32_t>(request.prompt.size()),
          .num_entries = static_cast<int32_t>(most_entries),
          .num_texts = request.num_choices,
          .values_merge = can_merge_values(model.info()),
          .fits_twice = fits_twice(model, request.prompt),
          .can_drop = !model.info().has_encoder,
          .bytes_for = bytes_for,
          .types = auto_types(model, bytes_for)};
}

}  // namespace witan
