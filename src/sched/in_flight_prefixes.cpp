#include "sched/in_flight_prefixes.h"

#include <algorithm>
#include <functional>
#include <string_view>

namespace witan {
namespace {

size_t block_hash(const Sequence& sequence, int32_t first_token) {
  const std::string_view bytes(reinterpret_cast<const char*>(sequence.tokens.data() + first_token),
                               kKvBlockSize * sizeof(TokenId));
  return std::hash<std::string_view>()(bytes) + static_cast<size_t>(first_token);
}

// Tokens from the beginning that are the same to the KV cache.
int32_t num_common_tokens(const Sequence& a, const Sequence& b) {
  const auto tokens = std::ranges::mismatch(a.tokens, b.tokens).in1 - a.tokens.begin();
  const auto roles = std::ranges::mismatch(a.kv_roles, b.kv_roles).in1 - a.kv_roles.begin();
  return static_cast<int32_t>(std::min(tokens, roles));
}

}  // namespace

InFlightPrefixes::InFlightPrefixes(std::span<Sequence* const> running) {
  for (Sequence* sequence : running) add(*sequence);
}

void InFlightPrefixes::add(Sequence& running) {
  const int32_t first_token = whole_block_tokens(running.num_computed);
  if (first_token + kKvBlockSize > running.num_tokens()) return;
  by_block_.emplace(block_hash(running, first_token), &running);
}

std::optional<InFlightPrefixes::Match> InFlightPrefixes::find(const Sequence& waiting, int32_t num_cached) const {
  if (num_cached + kKvBlockSize > waiting.num_attachable()) return std::nullopt;
  const auto [begin, end] = by_block_.equal_range(block_hash(waiting, num_cached));
  for (auto entry = begin; entry != end; ++entry) {
    Sequence* leader = entry->second;
    if (!MoreValuable()(leader, &waiting) || whole_block_tokens(leader->num_computed) != num_cached) continue;
    const int32_t num_common = whole_block_tokens(
        std::min({num_common_tokens(*leader, waiting), leader->num_publishable(), waiting.num_attachable()}));
    if (num_common > num_cached) return Match{leader, num_common};
  }
  return std::nullopt;
}

}  // namespace witan
