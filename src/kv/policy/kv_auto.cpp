#include "kv/policy/kv_auto.h"

#include <algorithm>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

// Shares of the prompt, largest first, of which the first that there is room for is taken.
constexpr double kShares[] = {0.9, 0.7, 0.5, 0.3, 0.1};

struct Preset {
  double least_share;  // of the entries, from which on it is taken
  std::string_view parts;
  bool merges = false;       // values, which models that have a head per layer cannot (MLA)
  bool reads_twice = false;  // the prompt
};

// The first that is possible is taken: those with the best mean accuracy in the sweep of docs/kv-cache.md, at 90, 70,
// 50, 40, 30 and 10 %. Between two budgets that want different ones the limit is half way.
constexpr Preset kPresets[] = {
    {.least_share = 0.45, .parts = "keydiff,merge", .merges = true},      {.least_share = 0.45, .parts = "keydiff"},
    {.least_share = 0.0, .parts = "kvzip", .reads_twice = true},          {.least_share = 0.35, .parts = "keydiff"},
    {.least_share = 0.0, .parts = "keydiff,adakv,merge", .merges = true}, {.least_share = 0.0, .parts = "keydiff"},
};

std::string join(std::initializer_list<std::string> parts) {
  std::vector<std::string> given;
  std::ranges::copy_if(parts, std::back_inserter(given), [](const std::string& part) { return !part.empty(); });
  return fmt::format("{}", fmt::join(given, ","));
}

std::string with_share(const KvAuto& automatic, double share) {
  return join({automatic.rest, fmt::format("keep={}", share)});
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

// The policy with the preset for what it keeps; empty where it has nothing to drop.
std::string with_preset(const std::string& rest, const KvAutoRequest& request) {
  const KvPolicy any = parse_kv_policy(join({"keydiff", rest}));
  const double share = share_kept(any, request);
  if (share == 1.0) return {};
  const bool can_read_twice = request.fits_twice && !any.judges_again();
  const auto* preset = std::ranges::find_if(kPresets, [&](const Preset& p) {
    return share >= p.least_share && (request.values_merge || !p.merges) && (can_read_twice || !p.reads_twice);
  });
  return join({std::string(preset->parts), rest});
}

// Of the KV cache, when everything is generated.
int64_t bytes_in_the_end(const std::string& policy, const KvAutoRequest& request) {
  int32_t num_entries = request.num_entries;
  if (!policy.empty()) {
    const KvCompressionPoint last = points_of(parse_kv_policy(policy), request).back();
    num_entries -= last.num_tokens - last.num_kept;
  }
  return request.num_texts * request.bytes_for(num_entries);
}

// By falling share: those between 1 and the floor, and the floor.
std::vector<double> shares_down_to(double floor) {
  std::vector<double> shares;
  std::ranges::copy_if(kShares, std::back_inserter(shares), [&](double share) { return share > floor; });
  shares.push_back(floor);
  return shares;
}

KvAutoChoice choose_by_room(const KvAuto& automatic, const KvAutoRequest& request) {
  const int64_t bytes = bytes_in_the_end({}, request);
  if (bytes <= request.free_bytes) return {.policy = {}, .reason = "the KV cache has room for every entry"};
  for (const double share : shares_down_to(automatic.floor)) {
    const std::string policy = with_preset(with_share(automatic, share), request);
    const int64_t bytes_of_share = bytes_in_the_end(policy, request);
    const bool has_room = bytes_of_share <= request.free_bytes;
    if (!has_room && share > automatic.floor) continue;
    return {.policy = policy,
            .reason = fmt::format(
                "the KV cache has {} bytes beside other requests; every entry would take {}, a share of {} takes {}{}",
                request.free_bytes, bytes, share, bytes_of_share, has_room ? "" : ", and that is the floor")};
  }
  return {};
}

}  // namespace

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
  if (automatic.by_room) return choose_by_room(automatic, request);
  KvAutoChoice choice{.policy = with_preset(automatic.rest, request),
                      .reason = "the best one measured for this budget"};
  if (choice.policy.empty()) choice.reason = "the text is within the budget";
  return choice;
}

// `auto`: until a request arrives, what any model could do.
void choose_automatically(PolicyBuilder& builder, PartArguments& arguments) {
  key_diff(builder, arguments);
  builder.choose_later(arguments, arguments.number("floor", 0.5, 0.01, 1.0));
}

}  // namespace witan
