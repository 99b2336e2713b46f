#pragma once

#include <utility>

#include "kv/kv_merge.h"
#include "kv/policy/entry_floats.h"

namespace witan {

// How much the value of each KV entry of one sequence weighs once it is projected: the sum of |Wo_h v|, over the
// model's dimension, where Wo_h are the columns of the output projection that query head h has; the mean over the
// query heads of the entry's kv head (CriticalKV, arXiv 2502.03805). A model learns those of new entries from the
// cache, before they are judged: Model::learn_value_norms.
//
// Thread safety: distinct heads may be used by many threads.
class ValueNorms {
 public:
  // Of the memory pool.
  static int64_t bytes(std::span<const KvLayerSpec> layers, int32_t max_entries) {
    return EntryFloats::bytes(layers, max_entries);
  }

  // For at most max_entries entries. Throws Error(kOutOfMemory) when the pool has no room.
  ValueNorms(MemoryPool& pool, std::span<const KvLayerSpec> layers, int32_t max_entries);

  // [entries] of a head, of which the first num_known are known.
  float* of(int32_t layer, int32_t head) { return norms_.of(layer, head); }
  int32_t num_known(int32_t layer, int32_t head) const { return num_known_[at(layer, head)]; }
  void set_num_known(int32_t layer, int32_t head, int32_t count) { num_known_[at(layer, head)] = count; }

  // The entries that are left, as KvCache::keep has them: known, but of heads whose values were merged.
  void keep(std::span<const KvLayerSpec> layers, std::span<const std::vector<int32_t>> kept,
            std::span<const KvMerge> merges = {});

 private:
  size_t at(int32_t layer, int32_t head) const { return static_cast<size_t>(norms_.index(layer, head)); }

  EntryFloats norms_;
  std::vector<int32_t> num_known_;  // by head
};

}  // namespace witan
