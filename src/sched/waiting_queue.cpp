#include "sched/waiting_queue.h"

#include <algorithm>

#include "base/check.h"

namespace witan {

void WaitingQueue::add(Sequence& sequence) { ready_.insert(&sequence); }

void WaitingQueue::remove(Sequence& sequence) {
  if (sequence.leader == nullptr) {
    WITAN_CHECK(ready_.erase(&sequence) == 1, "sequence {} is not waiting", sequence.id);
    return;
  }
  WITAN_CHECK(std::erase(sequence.leader->followers, &sequence) == 1, "sequence {} is not behind its leader {}",
              sequence.id, sequence.leader->id);
  sequence.leader = nullptr;
  --num_following_;
}

void WaitingQueue::follow(Sequence& sequence, Sequence& leader, int32_t num_common_tokens) {
  remove(sequence);
  sequence.leader = &leader;
  sequence.num_common_tokens = num_common_tokens;
  leader.followers.push_back(&sequence);
  ++num_following_;
}

void WaitingQueue::release_served_followers(Sequence& leader) {
  std::erase_if(leader.followers, [&](Sequence* follower) {
    if (follower->num_common_tokens > leader.num_computed) return false;
    follower->leader = nullptr;
    --num_following_;
    add(*follower);
    return true;
  });
}

void WaitingQueue::release_followers(Sequence& leader) {
  for (Sequence* follower : leader.followers) {
    follower->leader = nullptr;
    --num_following_;
    add(*follower);
  }
  leader.followers.clear();
}

bool WaitingQueue::contains(Sequence& sequence) const {
  if (sequence.leader == nullptr) return ready_.contains(&sequence);
  return std::ranges::count(sequence.leader->followers, &sequence) == 1;
}

}  // namespace witan
