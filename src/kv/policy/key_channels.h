#pragma once

#include <cstdint>
#include <vector>

#include "base/isa.h"
#include "base/thread_pool.h"
#include "kv/kv_cache.h"
#include "kv/policy/query_window.h"

namespace witan {

// Which channels the demoted keys of a sequence keep, for KvCache::choose_channels: of each kv head those that its
// scores depend on most, judged by the queries in the window and all keys that the head has (ThinK, Xu et al., arXiv
// 2407.21018, section 3.2). The worth of channel i is || Q_i K_i^T ||_F = || Q_i || || K_i ||, where Q_i are its
// components of the queries and K_i those of the keys; of equal ones the first stays. Where several query heads
// share a kv head Q_i has those of all; the authors' program chooses for each query head, as it repeats the keys.
std::vector<std::vector<int32_t>> choose_key_channels(Isa isa, ThreadPool& threads, const KvCache& kv,
                                                      SequenceId sequence, const KvDemotion& demotion,
                                                      const QueryWindow& queries);

}  // namespace witan
