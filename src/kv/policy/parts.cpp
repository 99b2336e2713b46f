// The parts that a KV policy is made of. A new one: a file with its function, a declaration in policy_builder.h, a line
// here.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "base/error.h"
#include "kv/policy/policy_builder.h"
#include "kv/policy/policy_json.h"

namespace witan {
namespace {

using Arguments = std::map<std::string, std::string>;
using MakePart = void (*)(PolicyBuilder& builder, PartArguments& arguments);

struct Part {
  KvPolicyPart part;
  MakePart make;
};

constexpr std::string_view kAutoName = "auto";

constexpr Part kParts[] = {
    {{kAutoName, true,
      "the best types and method measured for the memory of the budget; without one, for the room that there is: "
      "floor=0.5 (the least share of the entries)"},
     choose_automatically},
    {{"streamingllm", true, "the first tokens and the most recent: sinks=4"}, streaming_llm},
    {{"keynorm", true, "keys of small norm"}, key_norm},
    {{"keydiff", true, "keys unlike the mean key"}, key_diff},
    {{"lagkv", true, "keys and values that vary, seen from those behind them: sinks=4, lag=128"}, lag_kv},
    {{"snapkv", true, "what the last tokens attend to: window=32, kernel=5, pool=avg|max"}, snap_kv},
    {{"finch", true,
      "what the question, the last tokens, attends to: window=32, chunk=0 (> 0: the same share of every so many "
      "entries)"},
     finch},
    {{"expectedattention", true,
      "what tokens to come are expected to attend to: future=512, sinks=4, covariance=on|off, values=on|off, "
      "epsilon=0"},
     expected_attention},
    {{"h2o", true, "what all tokens so far attended to, and the most recent: recent=0.5 (their share of the budget)"},
     heavy_hitters},
    {{"kvzip", true,
      "what the model attends to when it reads the prompt again to repeat it, heads of all layers compete: chunk=2048, "
      "sinks=4, heads=compete|alike"},
     kv_zip},
    {{"rkv", true,
      "what the last tokens attend to, less what repeats: window=8, lambda=0.1, threshold=0.5, kernel=7; every=128"},
     r_kv},
    {{"tova", true, "what the last token attends to, all heads of a layer together"}, tova},
    {{"chunkkv", true,
      "snapkv by chunks: chunk=10, reuse=1 (layers per index), heads=together|apart, score=sum|mean, window=32"},
     chunk_kv},
    {{"shotkv", true, "snapkv by examples or paragraphs: separator=paragraph|line, window=32"}, shot_kv},
    {{"pyramidkv", true, "more for the first layers, less for the last: slope=20"}, pyramid_kv},
    {{"layershares", false,
      "snapkv with budgets by layer: shares=2/1*3/0.5 (of the budget, relative to each other), window=32"},
     layer_shares},
    {{"kvcompose", true, "layers compete by what their heads' best entries are worth together"}, kv_compose},
    {{"adakv", true, "heads of a layer compete: floor=0.2 (share of its part that each keeps)"}, ada_kv},
    {{"criticalkv", true,
      "half of the budget by snapkv's score, half by that times the projected value: first=0.5, epsilon=0.0001, "
      "window=32"},
     critical_kv},
    {{"quest", false,
      "generated tokens read the pages that may matter: tokens=2048 or keep=0.1 (of the entries), dense=2 (layers read "
      "whole), page=32|16"},
     quest},
    {{"rocketkv", true,
      "snapkv with kernel=63, of what stays pages are read as by quest: read=512 or a share below 1, dense=2, "
      "page=32|16, window=32"},
     rocket_kv},
    {{"simlayerkv", false,
      "layers that look at little else keep the first and last tokens: threshold=0.9, sinks=4, recent=1024"},
     sim_layer_kv},
    {{"duoattention", false,
      "heads=10/01/..., by layer: heads with 1 keep everything, those with 0 the first and last: sinks=64, recent=256"},
     duo_attention},
    {{"merge", false,
      "values of dropped entries go into the one with the most similar key: threshold=0 (of the cosine)"},
     merge_similar},
    {{"cam", false, "values of dropped entries that had attention go into the next ones: next=32"}, merge_next},
    {{"kivi", false,
      "older keys are rounded by channel, values by entry: bits=2|4, residual=128 (most recent that stay as they are)"},
     kivi},
    {{"kvtuner", false,
      "types of older entries by layer: layers=k8v4-hadamard/int4-hadamard*3/..., residual=128 (most recent that "
      "stay)"},
     kv_tuner},
    {{"think", false,
      "older keys keep the channels that matter most to the last queries: keep=0.5 (of the channels), window=32, "
      "residual=128"},
     think},
    {{"epic", false,
      "documents have the entries that they have elsewhere, but for their first tokens: first=16 (of each, computed "
      "again)"},
     epic},
    {{"cacheblend", false,
      "documents have the entries that they have elsewhere, but for the tokens whose values differ most: "
      "recompute=0.15 "
      "(the share of these), first=0 (of each document, before others), layers=1 (before the one that is compared)"},
     cache_blend},
    {{"routeblend", false,
      "documents have the entries that they have elsewhere, but for the tokens that go to other experts: "
      "recompute=0.15, first=0, layers=1 (that are compared)"},
     route_blend},
    {{"randomblend", false, "the same for tokens chosen by chance, to compare with: recompute=0.15, first=0"},
     random_blend},
    {{"global", false, "heads of all layers compete: floor=0"}, shared_budget},
};

constexpr auto kPartList = [] {
  std::array<KvPolicyPart, std::size(kParts)> parts;
  std::ranges::transform(kParts, parts.begin(), &Part::part);
  return parts;
}();

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

// A text that may be anything, for messages: its beginning.
std::string shown(std::string_view text) {
  constexpr size_t kMostShown = 120;
  return text.size() <= kMostShown ? std::string(text) : fmt::format("{}...", text.substr(0, kMostShown));
}

// Splits at commas outside parentheses.
std::vector<std::string_view> split_parts(std::string_view text) {
  std::vector<std::string_view> parts;
  size_t begin = 0;
  int depth = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i == text.size() || (text[i] == ',' && depth == 0)) {
      parts.push_back(trimmed(text.substr(begin, i - begin)));
      begin = i + 1;
    } else if (text[i] == '(') {
      ++depth;
    } else if (text[i] == ')' && --depth < 0) {
      break;
    }
  }
  if (depth != 0) fail(ErrorCode::kInvalidArgument, "'{}': parentheses do not match", shown(text));
  return parts;
}

std::pair<std::string, std::string> split_assignment(std::string_view text) {
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos) fail(ErrorCode::kInvalidArgument, "'{}': expected name=value", shown(text));
  return {std::string(trimmed(text.substr(0, equals))), std::string(trimmed(text.substr(equals + 1)))};
}

std::string known_names() {
  std::vector<std::string_view> names;
  for (const Part& part : kParts) names.push_back(part.part.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string_view part_name(std::string_view text) { return trimmed(text.substr(0, text.find('('))); }

void add_part(PolicyBuilder& builder, std::string_view text) {
  const size_t open = text.find('(');
  const std::string_view name = part_name(text);
  const auto* part = std::ranges::find(kParts, name, [](const Part& p) { return p.part.name; });
  if (part == std::end(kParts)) {
    fail(ErrorCode::kInvalidArgument,
         "'{}' is no part of a KV policy; there are {} and keep=, tokens=, floor=, sinks=, recent=, when=, "
         "every=, prefill_every=, generated_keep=, generated_tokens=, generated_growth=, guard=, action=, k=, v=, "
         "residual=",
         shown(name), known_names());
  }
  Arguments values;
  if (open != std::string_view::npos) {
    if (text.back() != ')') fail(ErrorCode::kInvalidArgument, "'{}': something follows the arguments", shown(text));
    const std::string_view inside = trimmed(text.substr(open + 1, text.size() - open - 2));
    for (const std::string_view argument : inside.empty() ? std::vector<std::string_view>() : split_parts(inside)) {
      auto [key, value] = split_assignment(argument);
      if (!values.emplace(key, std::move(value)).second) {
        fail(ErrorCode::kInvalidArgument, "{}: {} is given twice", name, key);
      }
    }
  }
  PartArguments arguments(std::string(name), std::move(values));
  part->make(builder, arguments);
  arguments.check_all_known();
}

constexpr int32_t kMost = 1 << 30;
// Of `auto` with a share: a prompt's last entries are not rounded, so that of a short one it would leave little more
// than those. A number of tokens is what it says.
constexpr int32_t kAutoFloor = 128;

// The budget of `keep` and `tokens`, or those with `prefix` before them; none where neither is given.
std::optional<KvBudget> read_budget(const std::string& prefix, const Arguments& keys, PartArguments& arguments) {
  const std::string keep = prefix + "keep";
  const std::string tokens = prefix + "tokens";
  if (keys.contains(keep) && keys.contains(tokens)) {
    fail(ErrorCode::kInvalidArgument,
         "both {0} and {1} are given; say how much to keep by {0}=0.2 (a ratio) or {1}=1024", keep, tokens);
  }
  const KvBudget budget{.ratio = arguments.number(keep, 1.0, 1e-6, 1.0),
                        .tokens = arguments.integer(tokens, 0, 1, kMost)};
  return keys.contains(keep) || keys.contains(tokens) ? std::optional(budget) : std::nullopt;
}

// Takes the keys of entries' types out of `keys`.
void add_entry_types(PolicyBuilder& builder, Arguments& keys) {
  Arguments types;
  for (const char* key : {"k", "v", "residual"}) {
    if (auto found = keys.extract(key)) types.insert(std::move(found));
  }
  if (types.empty()) return;
  const bool has_types = types.contains("k") || types.contains("v");
  if (!has_types && !builder.policy.demotion) {
    fail(ErrorCode::kInvalidArgument,
         "residual is given, but nothing makes older entries smaller; say what does, such as k=int8-hadamard or kivi");
  }
  PartArguments arguments("k, v, residual", std::move(types));
  if (has_types) {
    entry_types(builder, arguments);
  } else {
    builder.choose_residual(arguments);  // of what a part demotes
  }
}

// Entries are demoted for good, and once.
void check_demotion_of_others(const KvPolicy& policy) {
  if (!policy.demotes_others) return;
  const auto refuse = [](std::string_view what) {
    fail(ErrorCode::kInvalidArgument, "{} cannot be combined with action=demote", what);
  };
  if (policy.automatic) refuse("auto, which chooses among methods that evict,");
  if (!policy.demotion) {
    fail(
        ErrorCode::kInvalidArgument,
        "action=demote makes the entries that do not stay smaller; say what becomes of them, by k=int4-hadamard, kivi, "
        "kvtuner or think");
  }
  if (policy.under_pressure) refuse("when=pressure, which is to free the room of entries for good,");
  if (policy.judges_again() || policy.generated_budget) {
    refuse("judging entries again and again (every, prefill_every, rkv, generated_keep, generated_tokens)");
  }
  if (policy.merging) refuse("merging (merge, cam), which is of entries that are lost,");
  if (policy.pages) refuse("reading by pages (quest, rocketkv), which are of neighbouring entries,");
}

// Entries are demoted for good.
void check_demotion(const KvPolicy& policy) {
  constexpr std::string_view kAgain =
      "where some are dropped again and again (by every, which rkv sets, or prefill_every)";
  if (!policy.demotion || !policy.judges_again() || policy.scorer == nullptr) return;
  if (policy.merging) {
    fail(ErrorCode::kInvalidArgument, "values of entries cannot be merged into those of demoted ones {}", kAgain);
  }
  if (policy.pages) {
    fail(ErrorCode::kInvalidArgument, "pages cannot be read of demoted entries {}: what stays would not be whole pages",
         kAgain);
  }
  for (const KvCodec codec : policy.demotion->codecs) {
    if (!kv_codec_is_blockwise(codec)) continue;
    fail(ErrorCode::kInvalidArgument,
         "entries of type {} share what they are rounded by, 32 at a time, and are not to be had {}",
         kv_codec_name(codec), kAgain);
  }
}

// Entries are judged once the prompt is computed, at a moment that is not known before.
void check_pressure(const KvPolicy& policy) {
  if (!policy.under_pressure) return;
  const auto refuse = [](std::string_view what) {
    fail(ErrorCode::kInvalidArgument, "{} cannot be combined with when=pressure", what);
  };
  if (policy.automatic) refuse("auto, which chooses by the room when a request arrives,");
  if (policy.demotion)
    refuse("making older entries smaller (k, v, kivi, kvtuner, think), which is done at points of the text,");
  if (policy.generated_budget) refuse("a budget for generated tokens alone (generated_keep, generated_tokens)");
  if (policy.prefill_every > 0) refuse("prefill_every, which has entries judged while the prompt is computed,");
  if (policy.wants().repetitions) refuse("kvzip, which reads the prompt a second time when it is computed,");
  if (!policy.span_separator.empty()) refuse("shotkv, whose parts that stay together are those of a prompt,");
}

// What is left of documents is judged when the prompt is computed.
void check_reuse(const KvPolicy& policy) {
  if (!policy.reuse) return;
  if (policy.prefill_every > 0) {
    fail(ErrorCode::kInvalidArgument,
         "prefill_every cannot be combined with the reuse of documents: their entries are not there, or not all "
         "computed, when the prompt before them is");
  }
  if (policy.wants().sees_all_tokens()) {
    fail(ErrorCode::kInvalidArgument,
         "a part that judges by the queries of all tokens, such as h2o or expectedattention, cannot be combined with "
         "the reuse of documents: their queries are not computed");
  }
}

std::optional<KvAside> aside_of(std::string_view action) {
  if (action == "hide") return KvAside::kBlocks;
  if (action == "offload") return KvAside::kFile;
  return std::nullopt;
}

// What lies aside is as it was computed, and comes back when all entries are judged again.
void check_aside(const KvPolicy& policy) {
  if (!policy.aside) return;
  const std::string_view action = *policy.aside == KvAside::kBlocks ? "action=hide" : "action=offload";
  const auto refuse = [&](std::string_view what) {
    fail(ErrorCode::kInvalidArgument, "{} cannot be combined with {}", what, action);
  };
  if (policy.automatic) refuse("auto, which chooses among methods that evict,");
  if (policy.under_pressure) refuse("when=pressure, which is to free the room of entries for good,");
  if (policy.generated_budget) {
    refuse(
        "a budget for generated tokens alone (generated_keep, generated_tokens), beside which the prompt's entries "
        "stay for good,");
  }
  if (policy.merging) refuse("merging (merge, cam), after which entries that come back would count twice,");
  if (policy.demotion) refuse("making older entries smaller (k, v, kivi, kvtuner, think), which is done for good,");
  if (policy.guard > 0.0) refuse("guard, which asks what would be lost,");
  if (policy.wants().attention_mass) {
    refuse("h2o, which judges by attention that entries which are not read do not get,");
  }
  if (policy.wants().repetitions) refuse("kvzip, which reads a prompt twice to judge it once,");
  if (!policy.span_separator.empty()) refuse("shotkv, whose parts that stay together are judged once,");
  if (!policy.judges_again()) {
    fail(ErrorCode::kInvalidArgument,
         "{}: what is set aside comes back where entries are judged again; say when, by every=64 or prefill_every",
         action);
  }
}

void set_budget(KvPolicy& policy, const Arguments& keys) {
  PartArguments arguments("a KV policy", keys);
  policy.generated_budget = read_budget("generated_", keys, arguments);
  const std::optional<KvBudget> budget = read_budget("", keys, arguments);
  for (const auto& [key, value] : keys) {
    if (policy.has_own_budget() && key != "every" && key != "prefill_every" && key != "guard" && key != "action") {
      fail(ErrorCode::kInvalidArgument, "{} is given, but the policy decides by itself how much stays", key);
    }
  }
  const bool only_demotes = keys.size() == 1 && keys.contains("prefill_every") && policy.demotion;
  if (policy.scorer == nullptr && !keys.empty() && !only_demotes) {
    fail(ErrorCode::kInvalidArgument, "{} is given, but no part says which entries stay; add a method, such as snapkv",
         keys.begin()->first);
  }
  if (policy.automatic) policy.automatic->by_room = !budget && !policy.generated_budget;
  const bool finds_budget = policy.has_own_budget() || (policy.automatic && policy.automatic->by_room);
  if (policy.scorer != nullptr && !finds_budget && !budget && !policy.generated_budget) {
    fail(ErrorCode::kInvalidArgument, "no budget: say how much to keep, by keep=0.2 (a ratio) or tokens=1024");
  }
  policy.budget = budget.value_or(KvBudget());
  if (policy.automatic && policy.automatic->by_room) policy.budget.ratio = policy.automatic->floor;
  policy.budget.floor =
      arguments.integer("floor", policy.automatic && !keys.contains("tokens") ? kAutoFloor : 0, 0, kMost);
  policy.num_sinks = arguments.integer("sinks", policy.num_sinks, 0, kMost);
  policy.num_recent = arguments.integer("recent", policy.num_recent, 0, kMost);
  policy.generated_grows = arguments.choice("generated_growth", {"none", "adaptive"}) == "adaptive";
  policy.guard = arguments.number("guard", 0.0, 0.0, 1.0);
  const std::string_view action = arguments.choice("action", {"evict", "demote", "hide", "offload"});
  policy.aside = aside_of(action);
  policy.demotes_others = action == "demote";
  policy.under_pressure = arguments.choice("when", {"prompt", "pressure"}) == "pressure";
  const bool has_every = policy.every > 0 || policy.generated_budget || policy.under_pressure;
  policy.every = arguments.integer("every", has_every && policy.every == 0 ? 64 : policy.every, 1, kMost);
  policy.prefill_every = arguments.integer("prefill_every", 0, 1, kMost);
  arguments.also_known({"k", "v", "residual"});  // which add_entry_types has taken
  arguments.check_all_known();
}

void check_growth(const KvPolicy& policy) {
  if (!policy.generated_grows) return;
  if (!policy.generated_budget) {
    fail(ErrorCode::kInvalidArgument,
         "generated_growth=adaptive is of a budget for generated tokens; give one by generated_tokens or "
         "generated_keep");
  }
  if (policy.num_recent == 0 && policy.recent_share == 0.0) {
    fail(ErrorCode::kInvalidArgument,
         "generated_growth=adaptive begins with the most recent tokens alone, and the policy keeps none in any case; "
         "give recent=N");
  }
}

void keep_rest_of_auto(KvPolicy& policy, const Arguments& keys, std::vector<std::string_view> parts) {
  std::erase_if(parts, [](std::string_view part) { return part_name(part) == kAutoName; });
  const std::string floor = fmt::format("floor={}", policy.budget.floor);
  KvAuto& automatic = *policy.automatic;
  automatic.rest = fmt::format("{}", fmt::join(parts, ","));
  if (!keys.contains("floor") && policy.budget.floor > 0) automatic.rest += (parts.empty() ? "" : ",") + floor;
  std::erase_if(parts, [](std::string_view part) {
    const std::string_view key = trimmed(part.substr(0, part.find('=')));
    return key == "keep" || key == "tokens" || key == "floor";
  });
  automatic.unbudgeted_rest = fmt::format("{}", fmt::join(parts, ","));
}

}  // namespace

std::span<const KvPolicyPart> kv_policy_parts() { return kPartList; }

KvPolicy parse_kv_policy(std::string_view text) {
  if (trimmed(text).starts_with('{')) return parse_kv_policy(kv_policy_text_of_json(text));
  PolicyBuilder builder;
  Arguments keys;
  const std::vector<std::string_view> parts = split_parts(text);
  for (const std::string_view part : parts) {
    if (part.empty()) fail(ErrorCode::kInvalidArgument, "'{}': a part is empty", shown(text));
    if (part.find('=') < part.find('(')) {
      auto [key, value] = split_assignment(part);
      if (!keys.emplace(key, std::move(value)).second) fail(ErrorCode::kInvalidArgument, "{} is given twice", key);
    } else {
      add_part(builder, part);
    }
  }
  add_entry_types(builder, keys);
  if (const auto action = keys.find("action"); action != keys.end() && action->second == "demote") {
    builder.choose_recent(PartArguments("action=demote", {}));
  }
  KvPolicy policy = builder.finish();
  set_budget(policy, keys);
  check_pressure(policy);
  check_growth(policy);
  check_aside(policy);
  check_reuse(policy);
  check_demotion_of_others(policy);
  check_demotion(policy);
  if (!policy.span_separator.empty() && policy.every > 0 && !policy.generated_budget) {
    fail(ErrorCode::kInvalidArgument,
         "generated tokens are to be judged every {} tokens, but only the prompt has parts that stay together; give "
         "generated tokens a budget of their own, by generated_keep or generated_tokens",
         policy.every);
  }
  if (policy.judges_again() && policy.wants().repetitions) {
    fail(ErrorCode::kInvalidArgument,
         "entries are to be judged again and again, but only the whole prompt is read a second time to judge it; leave "
         "every and prefill_every out");
  }
  const bool layers_stay_alike = policy.layers == KvLayerBudget::kUniform && policy.scope != KvScope::kModel;
  if ((!policy.span_separator.empty() || policy.share_chunk > 0) && policy.prefill_every > 0) {
    fail(ErrorCode::kInvalidArgument,
         "prefill_every is not for this policy: what stays together, or an equal share of each chunk, is of a whole "
         "prompt");
  }
  if (policy.reused_layers > 1 && policy.judges_again() && !layers_stay_alike) {
    fail(ErrorCode::kInvalidArgument,
         "reuse={} cannot be combined with layers of different budgets when entries are judged again: what one layer "
         "keeps, "
         "another may have dropped",
         policy.reused_layers);
  }
  policy.text = text;
  if (policy.automatic) keep_rest_of_auto(policy, keys, parts);
  return policy;
}

}  // namespace witan
