#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kv/kv_cache.h"
#include "memory/memory_pool.h"

namespace witan {

// How much attention each KV entry of one sequence has had from all tokens so far: softmax weights, added up over the
// tokens and the query heads of its kv head (H2O, arXiv 2306.14048). Layers add theirs as they compute the tokens; with
// a sliding window they have none.
//
// Thread safety: distinct heads may be written by many threads.
class AttentionMass {
 public:
  // Of the memory pool.
  static int64_t bytes(std::span<const KvLayerSpec> layers, int32_t max_entries);

  // For at most max_entries entries. Throws Error(kOutOfMemory) when the pool has no room.
  AttentionMass(MemoryPool& pool, std::span<const KvLayerSpec> layers, int32_t max_entries);

  // [row_floats()] of a head, of which the first are the entries' in their order, and the others 0.
  float* of(int32_t layer, int32_t head) {
    return reinterpret_cast<float*>(region_.data()) + (first_heads_[static_cast<size_t>(layer)] + head) * row_floats_;
  }
  int64_t row_floats() const { return row_floats_; }

  // The entries that are left, as KvCache::keep has them.
  void keep(std::span<const KvLayerSpec> layers, std::span<const std::vector<int32_t>> kept);

 private:
  MemoryRegion region_;
  int64_t row_floats_;
  std::vector<int64_t> first_heads_;  // by layer, among the heads that have any
};

}  // namespace witan
