#pragma once

#include <cstdint>

#include "base/isa.h"
#include "base/thread_pool.h"
#include "kv/kv_cache.h"
#include "kv/policy/kv_span.h"
#include "nn/rope_table.h"

namespace witan {

// How the keys of a model know their positions: components [offset, offset + rope->dim()) are rotated by them.
struct KeyRope {
  const RopeTable* rope = nullptr;  // can_shift()
  int32_t offset = 0;
};

// Copies the first place.end - place.begin entries of `from`, committed and none dropped, to the entries of `to` from
// place.begin on, which are reserved. Keys are rotated further as if the tokens stood there (that of CacheBlend, arXiv
// 2405.16444, section 4.2), and rounded to the cache's type again; values keep their bits where that type is a float.
// For caches without sliding windows.
void copy_shifted(KvCache& kv, const KeyRope& keys, SequenceId from, SequenceId to, const KvSpan& place, Isa isa,
                  ThreadPool& threads);

}  // namespace witan
