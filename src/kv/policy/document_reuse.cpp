#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

constexpr int32_t kMostTokens = 1 << 30;
constexpr int32_t kMostLayers = 1 << 20;

// Of so many tokens, those that `by` says.
void blend(PolicyBuilder& builder, PartArguments& arguments, KvReuse::By by) {
  KvReuse reuse{.by = by,
                .share = arguments.number("recompute", 0.15, 0.0, 1.0),
                .num_first = arguments.integer("first", 0, 0, kMostTokens)};
  if (reuse.probes()) reuse.num_layers = arguments.integer("layers", 1, 1, kMostLayers);
  builder.choose_reuse(arguments, reuse);
}

}  // namespace

int32_t KvReuse::num_recomputed(std::span<const int32_t> num_tokens) const {
  const int64_t num_all = std::accumulate(num_tokens.begin(), num_tokens.end(), int64_t{0});
  int64_t num_in_any_case = 0;
  for (const int32_t n : num_tokens) num_in_any_case += std::min(n, num_first);
  const auto num_by_share = static_cast<int64_t>(std::ceil(share * static_cast<double>(num_all)));
  return static_cast<int32_t>(std::max(num_in_any_case, num_by_share));
}

// EPIC's LegoLink (Hu et al., arXiv 2410.15332).
void epic(PolicyBuilder& builder, PartArguments& arguments) {
  builder.choose_reuse(arguments, {.num_first = arguments.integer("first", 16, 0, kMostTokens)});
}

// CacheBlend (Yao et al., arXiv 2405.16444).
void cache_blend(PolicyBuilder& builder, PartArguments& arguments) { blend(builder, arguments, KvReuse::By::kValues); }

// The same by routes.
void route_blend(PolicyBuilder& builder, PartArguments& arguments) { blend(builder, arguments, KvReuse::By::kRoutes); }

// What these are compared with: tokens chosen by chance.
void random_blend(PolicyBuilder& builder, PartArguments& arguments) { blend(builder, arguments, KvReuse::By::kRandom); }

}  // namespace witan
