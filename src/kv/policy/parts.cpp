// The parts that a KV policy is made of. A new one: a file with its function, a declaration in policy_builder.h, a line
// here.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "base/error.h"
#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

using MakePart = void (*)(PolicyBuilder& builder, PartArguments& arguments);

struct Part {
  KvPolicyPart part;
  MakePart make;
};

constexpr Part kParts[] = {
    {{"streamingllm", true, "the first tokens and the most recent: sinks=4"}, streaming_llm},
    {{"keynorm", true, "keys of small norm"}, key_norm},
    {{"keydiff", true, "keys unlike the mean key"}, key_diff},
    {{"lagkv", true, "keys and values that vary, seen from those behind them: sinks=4, lag=128"}, lag_kv},
    {{"snapkv", true, "what the last tokens attend to: window=32, kernel=5, pool=avg|max"}, snap_kv},
    {{"tova", true, "what the last token attends to, all heads of a layer together"}, tova},
    {{"chunkkv", true,
      "snapkv by chunks: chunk=10, reuse=1 (layers per index), heads=together|apart, score=sum|mean, window=32"},
     chunk_kv},
    {{"pyramidkv", true, "more for the first layers, less for the last: slope=20"}, pyramid_kv},
    {{"adakv", true, "heads of a layer compete: floor=0.2 (share of its part that each keeps)"}, ada_kv},
    {{"global", false, "heads of all layers compete: floor=0"}, shared_budget},
};

constexpr auto kPartList = [] {
  std::array<KvPolicyPart, std::size(kParts)> parts;
  std::ranges::transform(kParts, parts.begin(), &Part::part);
  return parts;
}();

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
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
  if (depth != 0) fail(ErrorCode::kInvalidArgument, "'{}': parentheses do not match", text);
  return parts;
}

std::pair<std::string, std::string> split_assignment(std::string_view text) {
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos) fail(ErrorCode::kInvalidArgument, "'{}': expected name=value", text);
  return {std::string(trimmed(text.substr(0, equals))), std::string(trimmed(text.substr(equals + 1)))};
}

std::string known_names() {
  std::vector<std::string_view> names;
  for (const Part& part : kParts) names.push_back(part.part.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

void add_part(PolicyBuilder& builder, std::string_view text) {
  const size_t open = text.find('(');
  const std::string_view name = trimmed(text.substr(0, open));
  const auto* part = std::ranges::find(kParts, name, [](const Part& p) { return p.part.name; });
  if (part == std::end(kParts)) {
    fail(ErrorCode::kInvalidArgument,
         "'{}' is no part of a KV policy; there are {} and keep=, tokens=, floor=, sinks=, recent=", name,
         known_names());
  }
  std::map<std::string, std::string> values;
  if (open != std::string_view::npos) {
    if (text.back() != ')') fail(ErrorCode::kInvalidArgument, "'{}': something follows the arguments", text);
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

void set_budget(KvPolicy& policy, PartArguments& budget, bool has_keep, bool has_tokens) {
  constexpr int32_t kMost = 1 << 30;
  if (has_keep == has_tokens) {
    fail(ErrorCode::kInvalidArgument, "{}: say how much of the prompt to keep, by keep=0.2 (a ratio) or tokens=1024",
         has_keep ? "both keep and tokens are given" : "no budget");
  }
  policy.keep_ratio = budget.number("keep", 1.0, 1e-6, 1.0);
  policy.keep_tokens = budget.integer("tokens", 0, 1, kMost);
  policy.floor_tokens = budget.integer("floor", 0, 0, kMost);
  policy.num_sinks = budget.integer("sinks", policy.num_sinks, 0, kMost);
  policy.num_recent = budget.integer("recent", policy.num_recent, 0, kMost);
  budget.check_all_known();
}

}  // namespace

std::span<const KvPolicyPart> kv_policy_parts() { return kPartList; }

KvPolicy parse_kv_policy(std::string_view text) {
  PolicyBuilder builder;
  std::map<std::string, std::string> keys;
  for (const std::string_view part : split_parts(text)) {
    if (part.empty()) fail(ErrorCode::kInvalidArgument, "'{}': a part is empty", text);
    if (part.find('=') < part.find('(')) {
      auto [key, value] = split_assignment(part);
      if (!keys.emplace(key, std::move(value)).second) fail(ErrorCode::kInvalidArgument, "{} is given twice", key);
    } else {
      add_part(builder, part);
    }
  }
  KvPolicy policy = builder.finish();
  const bool has_keep = keys.contains("keep");
  const bool has_tokens = keys.contains("tokens");
  PartArguments budget("a KV policy", std::move(keys));
  set_budget(policy, budget, has_keep, has_tokens);
  policy.text = text;
  return policy;
}

int32_t KvPolicy::num_kept(int32_t num_tokens) const {
  const auto wanted = keep_tokens > 0 ? int64_t{keep_tokens} : static_cast<int64_t>(keep_ratio * num_tokens);
  const int64_t at_least = std::max(floor_tokens, 1);
  return static_cast<int32_t>(std::min<int64_t>(std::max(wanted, at_least), num_tokens));
}

}  // namespace witan
