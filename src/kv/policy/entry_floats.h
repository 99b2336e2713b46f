#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kv/kv_cache.h"
#include "memory/memory_pool.h"

namespace witan {

// A number for each KV entry of one sequence, in the layers without a sliding window.
//
// Thread safety: distinct heads may be written by many threads.
class EntryFloats {
 public:
  // Of the memory pool.
  static int64_t bytes(std::span<const KvLayerSpec> layers, int32_t max_entries);

  // For at most max_entries entries, all 0. Throws Error(kOutOfMemory) when the pool has no room, naming `what` they
  // are.
  EntryFloats(MemoryPool& pool, std::span<const KvLayerSpec> layers, int32_t max_entries, std::string_view what);

  // [row_floats()] of a head, of which the first are the entries' in their order, and the others 0.
  float* of(int32_t layer, int32_t head) {
    return reinterpret_cast<float*>(region_.data()) + index(layer, head) * row_floats_;
  }
  int64_t row_floats() const { return row_floats_; }

  // A head among those that have numbers.
  int64_t index(int32_t layer, int32_t head) const { return first_heads_[static_cast<size_t>(layer)] + head; }
  int64_t num_heads() const { return num_heads_; }

  // The entries that are left, as KvCache::keep has them.
  void keep(std::span<const KvLayerSpec> layers, std::span<const std::vector<int32_t>> kept);

 private:
  MemoryRegion region_;
  int64_t row_floats_;
  int64_t num_heads_ = 0;
  std::vector<int64_t> first_heads_;  // by layer, among the heads that have any
};

}  // namespace witan
