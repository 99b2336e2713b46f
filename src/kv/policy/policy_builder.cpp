#include "kv/policy/policy_builder.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <sstream>
#include <type_traits>
#include <utility>

#include "base/error.h"

namespace witan {
namespace {

template <typename Number>
Number parse_number(const std::string& part, std::string_view name, const std::string& text, Number min, Number max) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !(value >= min && value <= max)) {
    fail(ErrorCode::kInvalidArgument, "{}: {} must be a {} from {} to {}, not '{}'", part, name,
         std::is_integral_v<Number> ? "whole number" : "number", min, max, text);
  }
  return value;
}

}  // namespace

const std::string* PartArguments::find(std::string_view name) {
  known_.emplace_back(name);
  const auto found = values_.find(std::string(name));
  return found == values_.end() ? nullptr : &found->second;
}

int32_t PartArguments::integer(std::string_view name, int32_t otherwise, int32_t min, int32_t max) {
  const std::string* text = find(name);
  return text == nullptr ? otherwise : parse_number(part_, name, *text, min, max);
}

int32_t PartArguments::odd_integer(std::string_view name, int32_t otherwise, int32_t min, int32_t max) {
  const int32_t value = integer(name, otherwise, min, max);
  if (value % 2 == 0) fail(ErrorCode::kInvalidArgument, "{}: {} must be odd, not {}", part_, name, value);
  return value;
}

double PartArguments::number(std::string_view name, double otherwise, double min, double max) {
  const std::string* text = find(name);
  return text == nullptr ? otherwise : parse_number(part_, name, *text, min, max);
}

std::string PartArguments::text(std::string_view name) {
  const std::string* text = find(name);
  if (text == nullptr) fail(ErrorCode::kInvalidArgument, "{}: {} is missing", part_, name);
  return *text;
}

std::string PartArguments::text_or(std::string_view name, const std::string& otherwise) {
  const std::string* text = find(name);
  return text == nullptr ? otherwise : *text;
}

std::vector<std::string> PartArguments::by_layer(std::string_view name) {
  std::vector<std::string> layers;
  std::istringstream texts(text(name));
  for (std::string one; std::getline(texts, one, '/');) {
    const size_t star = one.find('*');
    int32_t count = 1;
    if (star != std::string::npos) {
      const char* end = one.data() + one.size();
      const auto [stop, error] = std::from_chars(one.data() + star + 1, end, count);
      if (error != std::errc{} || stop != end || count < 1 || count > 1 << 16) {
        fail(ErrorCode::kInvalidArgument, "{}: {}: '{}': behind the * comes a number of layers", part_, name, one);
      }
    }
    layers.insert(layers.end(), static_cast<size_t>(count), one.substr(0, star));
  }
  if (layers.empty()) fail(ErrorCode::kInvalidArgument, "{}: {}: no layers", part_, name);
  return layers;
}

std::string_view PartArguments::choice(std::string_view name, std::initializer_list<std::string_view> choices) {
  const std::string* text = find(name);
  if (text == nullptr) return *choices.begin();
  const auto* chosen = std::ranges::find(choices, *text);
  if (chosen == choices.end()) {
    fail(ErrorCode::kInvalidArgument, "{}: {} is one of {}, not '{}'", part_, name, fmt::join(choices, ", "), *text);
  }
  return *chosen;
}

void PartArguments::also_known(std::initializer_list<std::string_view> names) {
  known_.insert(known_.end(), names.begin(), names.end());
}

void PartArguments::check_all_known() const {
  for (const auto& [name, value] : values_) {
    if (std::ranges::find(known_, name) != known_.end()) continue;
    if (known_.empty()) fail(ErrorCode::kInvalidArgument, "{} has no arguments; given: {}", part_, name);
    fail(ErrorCode::kInvalidArgument, "{} has no argument {}; it has {}", part_, name, fmt::join(known_, ", "));
  }
}

void PolicyBuilder::claim(const char* what, const PartArguments& by) {
  const auto [found, is_new] = chosen_by_.emplace(what, by.part());
  if (!is_new) {
    fail(ErrorCode::kInvalidArgument, "{} and {} cannot be combined: each decides {}", found->second, by.part(), what);
  }
}

void PolicyBuilder::choose_score(const PartArguments& by, std::shared_ptr<const KvScorer> scorer) {
  claim("which entries are worth most", by);
  policy.scorer = std::move(scorer);
}

void PolicyBuilder::suggest_score(std::shared_ptr<const KvScorer> scorer) {
  if (suggested_ == nullptr) suggested_ = std::move(scorer);
}

void PolicyBuilder::choose_scope(const PartArguments& by, KvScope scope, double head_floor) {
  claim("how heads share their budget", by);
  policy.scope = scope;
  policy.head_floor = head_floor;
}

void PolicyBuilder::choose_layers(const PartArguments& by, KvLayerBudget layers) {
  claim("how layers share their budget", by);
  policy.layers = layers;
}

void PolicyBuilder::choose_layer_shares(const PartArguments& by, std::vector<double> shares) {
  choose_layers(by, KvLayerBudget::kTable);
  policy.layer_shares = std::move(shares);
}

void PolicyBuilder::choose_second_stage(const PartArguments& by, const KvSecondStage& stage) {
  claim("which entries are judged twice", by);
  policy.second_stage = stage;
}

void PolicyBuilder::choose_pages(const PartArguments& by, const KvPageReader& pages) {
  claim("which entries are read", by);
  policy.pages = pages;
}

void PolicyBuilder::choose_kinds(const PartArguments& by, std::vector<std::string> head_kinds) {
  claim("how heads share their budget", by);
  claim("how layers share their budget", by);
  claim("which entries stay together", by);
  policy.head_kinds = std::move(head_kinds);
}

void PolicyBuilder::choose_grouping(const PartArguments& by) { claim("which entries stay together", by); }

void PolicyBuilder::choose_merging(const PartArguments& by, const KvMerging& merging) {
  claim("what becomes of the values of dropped entries", by);
  policy.merging = merging;
}

KvDemotionRule& PolicyBuilder::demotion() {
  if (!policy.demotion) policy.demotion.emplace();
  return *policy.demotion;
}

void PolicyBuilder::choose_types(const PartArguments& by, std::vector<KvCodec> codecs) {
  claim("the types of older entries", by);
  demotion().codecs = std::move(codecs);
}

void PolicyBuilder::choose_layer_types(const PartArguments& by, std::vector<KvCodec> codecs) {
  choose_types(by, std::move(codecs));
  demotion().is_by_layer = true;
}

void PolicyBuilder::choose_channels(const PartArguments& by, double key_share, int32_t num_query_tokens) {
  claim("the channels of older keys", by);
  demotion().key_share = key_share;
  demotion().num_query_tokens = num_query_tokens;
}

void PolicyBuilder::choose_residual(PartArguments& by) {
  const int32_t num_recent = by.integer("residual", -1, 0, 1 << 30);
  if (num_recent < 0) return;
  choose_recent(by);
  demotion().num_recent = num_recent;
}

void PolicyBuilder::choose_recent(const PartArguments& by) { claim("how many recent entries stay as they are", by); }

void PolicyBuilder::choose_reuse(const PartArguments& by, const KvReuse& reuse) {
  claim("which tokens of documents are computed again", by);
  policy.reuse = reuse;
}

void PolicyBuilder::choose_later(const PartArguments& by, double floor) {
  claim("how heads share their budget", by);
  claim("how layers share their budget", by);
  claim("which entries are judged twice", by);
  claim("which entries stay together", by);
  claim("what becomes of the values of dropped entries", by);
  claim("which entries are read", by);
  claim("the types of older entries", by);
  claim("the channels of older keys", by);
  claim("which tokens of documents are computed again", by);
  policy.automatic = KvAuto{.floor = floor, .by_room = false, .rest = {}, .unbudgeted_rest = {}};
}

void PolicyBuilder::protect(int32_t num_sinks, int32_t num_recent) {
  policy.num_sinks = std::max(policy.num_sinks, num_sinks);
  policy.num_recent = std::max(policy.num_recent, num_recent);
}

KvPolicy PolicyBuilder::finish() {
  if (policy.scorer == nullptr) policy.scorer = suggested_;
  const bool decides_sharing = std::ranges::any_of(
      std::array{"how heads share their budget", "how layers share their budget", "which entries stay together"},
      [&](const char* what) { return chosen_by_.contains(what); });
  if (suggested_scope_ && !decides_sharing) policy.scope = *suggested_scope_;
  constexpr std::array kWithoutScore = {"which entries are read", "the types of older entries",
                                        "the channels of older keys", "how many recent entries stay as they are",
                                        "which tokens of documents are computed again"};
  const bool needs_none = !chosen_by_.empty() && std::ranges::all_of(chosen_by_, [&](const auto& choice) {
    return std::ranges::find(kWithoutScore, choice.first) != kWithoutScore.end();
  });
  if (policy.scorer == nullptr && !needs_none) {
    fail(ErrorCode::kInvalidArgument, "no part says which entries stay; add a method, such as snapkv");
  }
  if (policy.scope == KvScope::kModel && policy.layers != KvLayerBudget::kUniform) {
    fail(ErrorCode::kInvalidArgument,
         "{} and {} cannot be combined: layers that compete for a budget have none of their own",
         chosen_by_["how heads share their budget"], chosen_by_["how layers share their budget"]);
  }
  const bool is_shared = policy.scope != KvScope::kHead || chosen_by_.contains("which entries stay together");
  if (policy.layers == KvLayerBudget::kLazy && is_shared) {
    fail(ErrorCode::kInvalidArgument,
         "{} cannot be combined with parts that share or group entries: it decides by layers what stays",
         chosen_by_["how layers share their budget"]);
  }
  if (policy.layers == KvLayerBudget::kComposite && policy.scope != KvScope::kHead) {
    fail(ErrorCode::kInvalidArgument,
         "{} and {} cannot be combined: heads that keep equally many entries cannot compete for them",
         chosen_by_["how layers share their budget"], chosen_by_["how heads share their budget"]);
  }
  if (policy.heads_agree && policy.scope != KvScope::kHead) {
    fail(ErrorCode::kInvalidArgument,
         "{} and {} cannot be combined: heads that keep the same entries cannot compete for them",
         chosen_by_["which entries stay together"], chosen_by_["how heads share their budget"]);
  }
  if (policy.share_chunk > 0 && policy.scope != KvScope::kHead) {
    fail(ErrorCode::kInvalidArgument,
         "{} and {} cannot be combined: heads that keep the same share of each chunk cannot compete for entries",
         chosen_by_["which entries stay together"], chosen_by_["how heads share their budget"]);
  }
  if (policy.second_stage) check_second_stage();
  return std::move(policy);
}

void PolicyBuilder::check_second_stage() {
  const std::string& by = chosen_by_["which entries are judged twice"];
  if (chosen_by_.contains("which entries stay together")) {
    fail(ErrorCode::kInvalidArgument, "{} and {} cannot be combined: entries that are judged twice are so one by one",
         chosen_by_["which entries stay together"], by);
  }
  if (policy.layers == KvLayerBudget::kLazy) {
    fail(ErrorCode::kInvalidArgument, "{} and {} cannot be combined: there is no budget to divide",
         chosen_by_["how layers share their budget"], by);
  }
  if (!policy.scorer->scores_are_attention()) {
    fail(ErrorCode::kInvalidArgument, "{} and {} cannot be combined: the score to be weighed has to be attention",
         chosen_by_["which entries are worth most"], by);
  }
}

}  // namespace witan
