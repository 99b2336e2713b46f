#include "kv/policy/kv_auto.h"

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

// Shares of the prompt's entries, largest first, of which the first that there is room for is taken.
constexpr double kShares[] = {0.9, 0.7, 0.5, 0.3, 0.1};

// The last keeps no recent entries as they are: of a short prompt they take most of the room.
constexpr std::string_view kTypes[] = {"k=int8-hadamard,residual=32", "k=int4-hadamard,residual=32",
                                       "k=int4-hadamard,v=int2-hadamard,residual=32",
                                       "k=int4-hadamard,v=int2-hadamard,residual=0"};
constexpr std::string_view kLatentTypes[] = {"k=int8-latent,residual=32", "k=int4-latent,residual=32"};

// An answer of at most so many tokens for each of the prompt's is a short one. No task of docs/kv-cache.md is near:
// they have at most 0.19 or at least 0.24.
constexpr double kShortAnswer = 0.2;

// Below these shares of the entries the prompt is read twice, if it can be: the method that is best at looking things
// up, and for short answers nothing else is asked for. Half way between the shares where one method is better and those
// where the other is, or neither, of rounded entries by length of answers (50 and 60 %, 40 and 50 %).
constexpr std::string_view kReadingTwice = "kvzip";
constexpr double kReadTwiceBelow = 0.45;
constexpr double kReadTwiceForShortAnswersBelow = 0.55;

struct Preset {
  double least_share;  // of the entries, from which on it is taken
  std::string_view parts;
  bool merges = false;  // values, which models that have a head per layer cannot (MLA)
};

// Otherwise the first that is possible is taken: the best mean accuracy in the sweep of entries as they are, at 90, 70,
// 50, 40, 30 and 10 %. Between two budgets that want different ones the limit is half way.
constexpr Preset kPresets[] = {
    {.least_share = 0.45, .parts = "keydiff,merge", .merges = true},
    {.least_share = 0.35, .parts = "keydiff"},
    {.least_share = 0.0, .parts = "keydiff,adakv,merge", .merges = true},
    {.least_share = 0.0, .parts = "keydiff"},
};

std::string join(std::initializer_list<std::string> parts) {
  std::vector<std::string> given;
  std::ranges::copy_if(parts, std::back_inserter(given), [](const std::string& part) { return !part.empty(); });
  return fmt::format("{}", fmt::join(given, ","));
}

// None is behind the token that the last of the answer is sampled from.
std::vector<KvCompressionPoint> points_of(const KvPolicy& policy, const KvAutoRequest& request) {
  KvPolicy of_request = policy;
  of_request.max_generated = request.num_entries + 1 - request.num_prompt_tokens;
  return of_request.compression_points(request.num_prompt_tokens, request.num_entries - 1);
}

// What is kept of the prompt when it is judged, or of all that is judged first where that is later; 1: everything.
double share_kept(const KvPolicy& policy, const KvAutoRequest& request) {
  double share = 1.0;
  for (const KvCompressionPoint& point : points_of(policy, request)) {
    if (share < 1.0 && point.num_tokens > request.num_prompt_tokens) break;
    share = static_cast<double>(point.num_kept) / point.num_tokens;
  }
  return share;
}

// The method for a share of the entries.
std::string_view preset_for(double share, const KvPolicy& any, const KvAutoRequest& request) {
  const int32_t num_answered = request.num_entries + 1 - request.num_prompt_tokens;  // at most
  const bool is_short = num_answered <= kShortAnswer * request.num_prompt_tokens;
  if (request.fits_twice && !any.judges_again() &&
      share < (is_short ? kReadTwiceForShortAnswersBelow : kReadTwiceBelow)) {
    return kReadingTwice;
  }
  return std::ranges::find_if(
             kPresets, [&](const Preset& p) { return share >= p.least_share && (request.values_merge || !p.merges); })
      ->parts;
}

// Entries that stay can be rounded, for good.
bool may_round(const KvPolicy& any, const KvAutoRequest& request) {
  return !request.types.empty() && !any.judges_again() && !any.generated_budget;
}

// Of so many entries, those that are rounded.
int32_t num_rounded(const KvAutoTypes& types, int32_t num_entries) {
  return std::max(0, num_entries - types.num_recent) / kKvBlockSize * kKvBlockSize;
}

int64_t bytes_when_rounded(const KvAutoTypes& types, int32_t num_entries) {
  return types.bytes_for(num_entries, num_rounded(types, num_entries));
}

// The most whole blocks of the prompt's entries that take no more than `bytes`, in entries.
int32_t most_entries(const KvAutoTypes& types, const KvAutoRequest& request, int64_t bytes) {
  int32_t num_entries = request.num_prompt_tokens / kKvBlockSize * kKvBlockSize;
  while (num_entries > 0 && bytes_when_rounded(types, num_entries) > bytes) num_entries -= kKvBlockSize;
  return num_entries;
}

// The policy for the budget of `automatic`; empty where nothing has to be smaller.
std::string within_budget(const KvAuto& automatic, const KvAutoRequest& request) {
  const KvPolicy any = parse_kv_policy(join({"keydiff", automatic.rest}));
  const double share = share_kept(any, request);
  if (share == 1.0) return {};
  std::string plain = join({std::string(preset_for(share, any, request)), automatic.rest});
  if (!may_round(any, request)) return plain;
  const auto bytes = static_cast<int64_t>(share * static_cast<double>(request.bytes_for(request.num_prompt_tokens)));
  for (const KvAutoTypes& types : request.types) {
    if (bytes_when_rounded(types, request.num_prompt_tokens) <= bytes) return types.policy;
  }
  const KvAutoTypes& smallest = request.types.back();
  const int32_t num_kept = most_entries(smallest, request, bytes);
  const double rounded_share = static_cast<double>(num_kept) / request.num_prompt_tokens;
  // Of a short prompt all that stays may be among the most recent, which are not rounded.
  if (rounded_share <= share) return plain;
  return join({std::string(preset_for(rounded_share, any, request)), automatic.unbudgeted_rest, smallest.policy,
               fmt::format("tokens={}", num_kept)});
}

// By falling share: those between 1 and the floor, and the floor.
std::vector<double> shares_down_to(double floor) {
  std::vector<double> shares;
  std::ranges::copy_if(kShares, std::back_inserter(shares), [&](double share) { return share > floor; });
  shares.push_back(floor);
  return shares;
}

// A policy that may be chosen by the room.
struct Candidate {
  std::string policy;
  const KvAutoTypes* types;  // nullptr: entries stay as they are
  std::string name;
};

// Of the KV cache, when everything is generated. What comes behind the last point stays as it is.
int64_t bytes_in_the_end(const Candidate& candidate, const KvAutoRequest& request) {
  KvCompressionPoint last;
  if (!candidate.policy.empty()) {
    const std::vector<KvCompressionPoint> points = points_of(parse_kv_policy(candidate.policy), request);
    if (!points.empty()) last = points.back();
  }
  const int32_t num_entries = request.num_entries - (last.num_tokens - last.num_kept);
  const int64_t bytes = candidate.types == nullptr
                            ? request.bytes_for(num_entries)
                            : candidate.types->bytes_for(num_entries, num_rounded(*candidate.types, last.num_kept));
  return request.num_texts * bytes;
}

// In the order in which they are wanted; the last one is taken in any case.
std::vector<Candidate> candidates(const KvPolicy& policy, const KvAutoRequest& request) {
  const KvAuto& automatic = *policy.automatic;
  std::vector<Candidate> found{{.policy = {}, .types = nullptr, .name = "every entry"}};
  const auto with_share = [&](double share) {
    return join({automatic.unbudgeted_rest, fmt::format("keep={},floor={}", share, policy.budget.floor)});
  };
  const KvPolicy any = parse_kv_policy(join({"keydiff", with_share(automatic.floor)}));
  const bool rounds = may_round(any, request);
  if (rounds) {
    for (const KvAutoTypes& types : request.types) {
      found.push_back({.policy = types.policy, .types = &types, .name = "every entry with " + types.policy});
    }
  }
  for (const double share : shares_down_to(automatic.floor)) {
    const KvPolicy of_share = parse_kv_policy(join({"keydiff", with_share(share)}));
    const double kept = share_kept(of_share, request);
    if (kept == 1.0) continue;
    const KvAutoTypes* types = rounds ? &request.types.back() : nullptr;
    const std::string rounding = rounds ? types->policy : "";
    found.push_back({.policy = join({std::string(preset_for(kept, of_share, request)), with_share(share), rounding}),
                     .types = types,
                     .name = fmt::format("a share of {}{}{}", share, rounds ? " with " : "", rounding)});
  }
  return found;
}

KvAutoChoice choose_by_room(const KvPolicy& policy, const KvAutoRequest& request) {
  const std::vector<Candidate> wanted = candidates(policy, request);
  const auto bytes_of = [&](const Candidate& of) { return bytes_in_the_end(of, request); };
  const auto has_room = [&](const Candidate& of) { return bytes_of(of) <= request.free_bytes; };
  const auto first = std::ranges::find_if(wanted, has_room);
  if (first == wanted.begin()) return {.policy = {}, .reason = "the KV cache has room for every entry"};
  const Candidate& chosen = first == wanted.end() ? wanted.back() : *first;
  return {
      .policy = chosen.policy,
      .reason = fmt::format("the KV cache has {} bytes beside other requests; every entry would take {}, {} takes {}{}",
                            request.free_bytes, bytes_of(wanted.front()), chosen.name, bytes_of(chosen),
                            first == wanted.end() ? ", and that is the floor" : "")};
}

}  // namespace

std::span<const std::string_view> kv_auto_types(bool values_merge) {
  return values_merge ? std::span<const std::string_view>(kTypes) : kLatentTypes;
}

KvAutoChoice choose_kv_policy(const KvPolicy& policy, const KvAutoRequest& request) {
  const KvAuto& automatic = *policy.automatic;
  if (!request.can_drop) {
    if (!automatic.by_room) {
      fail(ErrorCode::kUnsupported,
           "the KV policy {} has a budget, and the model reads its prompt with an encoder, whose entries cannot be "
           "dropped",
           policy.text);
    }
    return {.policy = {}, .reason = "the model reads its prompt with an encoder, whose entries cannot be dropped"};
  }
  if (automatic.by_room) return choose_by_room(policy, request);
  KvAutoChoice choice{.policy = within_budget(automatic, request),
                      .reason = "the best one measured for this budget and this length of answers"};
  if (choice.policy.empty()) choice.reason = "the text is within the budget";
  return choice;
}

// `auto`: until a request arrives, what any model could do.
void choose_automatically(PolicyBuilder& builder, PartArguments& arguments) {
  key_diff(builder, arguments);
  builder.choose_later(arguments, arguments.number("floor", 0.5, 0.01, 1.0));
}

}  // namespace witan
