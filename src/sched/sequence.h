#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/types.h"
#include "kernels/attention/kv_block.h"
#include "kv/kv_cache.h"
#include "sched/compression_plan.h"

namespace witan {

// A sequence as the scheduler keeps it.
//
//   waiting   in the queue by value, or behind a leader; no KV sequence
//   running   has a KV sequence; entries [0, num_computed) are committed in it, tokens
//             [num_computed, num_computed + num_planned) are in the plan that is not committed yet
struct Sequence {
  SequenceId id = 0;  // ascends with arrival
  int32_t priority = 0;
  int32_t num_prompt_tokens = 0;
  int32_t max_tokens = 0;       // prompt and generated together
  std::vector<TokenId> input;   // of the encoder; not counted in num_tokens
  std::vector<TokenId> tokens;  // prompt, then generated
  CompressionPlan compression;
  int64_t side_bytes = 0;
  bool private_generation = false;
  std::vector<TokenRole> kv_roles;  // [tokens.size()], as the KV cache is told

  std::optional<SequenceId> kv_sequence;
  int32_t num_computed = 0;
  int32_t num_planned = 0;
  size_t num_compressions = 0;    // points of the plan that its KV sequence is past
  int32_t num_dropped = 0;        // tokens that a kv head has no entry of any more, on average, rounded down
  int32_t num_ever_computed = 0;  // the most that num_computed was, preemptions or not
  std::optional<int32_t> num_prefix_hit_tokens;  // set by the first admission

  // A waiting sequence may wait for the running `leader` to compute their common tokens [0, num_common_tokens).
  Sequence* leader = nullptr;
  int32_t num_common_tokens = 0;
  std::vector<Sequence*> followers;  // of a running sequence: who waits for it

  int32_t num_tokens() const { return static_cast<int32_t>(tokens.size()); }
  int32_t num_uncomputed() const { return num_tokens() - num_computed; }
  const KvCompressionPoint* next_compression() const {
    return num_compressions < compression.points.size() ? &compression.points[num_compressions] : nullptr;
  }
  bool awaits_compression() const {
    return next_compression() != nullptr && num_computed == next_compression()->num_tokens;
  }
  // What may be computed in one slice: none goes beyond a point before entries are judged there.
  int32_t num_computable() const {
    const KvCompressionPoint* next = next_compression();
    return next == nullptr ? num_uncomputed() : std::min(num_uncomputed(), next->num_tokens - num_computed);
  }
  // Tokens from the beginning that it may find in the prefix cache; and that it leaves there.
  int32_t num_attachable() const {
    const int32_t most = std::min(num_tokens() - 1, num_shareable());
    if (compression.points.empty()) return most;
    return std::min(most, std::max(0, compression.points[0].num_tokens - compression.num_query_tokens));
  }
  int32_t num_publishable() const {
    const int32_t most = num_shareable();
    return compression.points.empty() ? most : std::min(most, compression.points[0].num_tokens);
  }
  int32_t num_shareable() const { return private_generation ? num_prompt_tokens : num_tokens(); }
  // The last token that a sequence may have is sampled, never computed.
  int32_t max_entries() const { return max_tokens - 1; }
};

// The order of service: priority, then arrival. Total, so there is always one most valuable sequence.
struct MoreValuable {
  bool operator()(const Sequence* a, const Sequence* b) const {
    return a->priority != b->priority ? a->priority > b->priority : a->id < b->id;
  }
};

// Blocks that each table needs for `num_tokens` entries.
inline int64_t num_block_rows(int64_t num_tokens) { return (num_tokens + kKvBlockSize - 1) / kKvBlockSize; }

// `num_tokens` rounded down to whole blocks.
inline int32_t whole_block_tokens(int32_t num_tokens) { return num_tokens / kKvBlockSize * kKvBlockSize; }

}  // namespace witan
