#pragma once

#include <cstdint>
#include <set>

#include "sched/sequence.h"

namespace witan {

// The sequences that do not run: those that may be admitted, by value, and those that wait behind a running leader,
// which cost nothing until the leader has computed what they want of it.
class WaitingQueue {
 public:
  void add(Sequence& sequence);
  void remove(Sequence& sequence);

  // The most valuable sequence that waits for no leader, or null.
  Sequence* first() const { return ready_.empty() ? nullptr : *ready_.begin(); }

  // The sequence, waiting for no leader so far, waits until `leader` has computed num_common_tokens.
  void follow(Sequence& sequence, Sequence& leader, int32_t num_common_tokens);

  // Puts followers back among those that may be admitted: the ones whose common tokens are computed, or all.
  void release_served_followers(Sequence& leader);
  void release_followers(Sequence& leader);

  int64_t size() const { return std::ssize(ready_) + num_following_; }
  bool contains(Sequence& sequence) const;

 private:
  std::set<Sequence*, MoreValuable> ready_;
  int64_t num_following_ = 0;
};

}  // namespace witan
