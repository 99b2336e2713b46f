#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>

#include "sched/sequence.h"

namespace witan {

// Which prefix block each running sequence is about to complete, so that a sequence with the same beginning can wait
// for it instead of computing it a second time. Valid while no running sequence's num_computed changes.
class InFlightPrefixes {
 public:
  explicit InFlightPrefixes(std::span<Sequence* const> running);
  void add(Sequence& running);

  struct Match {
    Sequence* leader;
    int32_t num_common_tokens;  // whole blocks, more than num_cached, less than the follower's tokens
  };
  // The running sequence that is about to compute the first block of `waiting` behind its num_cached (whole blocks)
  // cached tokens, if there is one and it is more valuable. Waiting for a less valuable one would let what is between
  // them in value delay the more valuable.
  std::optional<Match> find(const Sequence& waiting, int32_t num_cached) const;

 private:
  std::unordered_multimap<size_t, Sequence*> by_block_;  // by hash of the block and its place
};

}  // namespace witan
