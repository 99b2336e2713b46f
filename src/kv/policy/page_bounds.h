#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kv/kv_cache.h"
#include "kv/policy/kv_policy.h"
#include "memory/memory_pool.h"

namespace witan {

// For each page of one sequence's KV entries, a block of them or half of one, the least and the largest component of
// its keys in every channel (Quest, arXiv 2406.10774). From these follows, for any query, a bound that none of the
// page's scores exceeds, so that generated tokens need to read only the pages that may matter to them. Bounds are
// bfloat16, rounded outward; for pages of 32 entries they take 1/32 of the bytes of bfloat16 keys and values of one
// size.
//
// Thread safety: distinct heads may be used by many threads.
class PageBounds {
 public:
  // Of the memory pool.
  static int64_t bytes(std::span<const KvLayerSpec> layers, const KvPageReader& reader, int32_t max_entries);

  // For at most max_entries entries of a head. Throws Error(kOutOfMemory) when the pool has no room.
  PageBounds(MemoryPool& pool, std::span<const KvLayerSpec> layers, const KvPageReader& reader, int32_t max_entries);

  // Whether a layer's entries are read by pages. The others' are read whole.
  bool has(int32_t layer) const { return first_heads_[static_cast<size_t>(layer)] >= 0; }
  int32_t page_entries() const { return reader_.page_entries; }
  // Of a head with so many entries, at most.
  int32_t num_pages_read(int32_t num_entries) const { return reader_.num_pages(num_entries); }

  // Pages of a head whose bounds are known: the first so many.
  int32_t num_known(int32_t layer, int32_t head) const { return this->head(layer, head).num_known; }

  // Learns the bounds of those whole pages of a head that it does not know yet. Those of pages whose
  // entries are demoted later stay: they are of the entries as they were written.
  void learn(Isa isa, int32_t layer, int32_t head, const KvView& view);

  // What was known is of no more use: learns the bounds of all whole pages of the sequence's committed entries, as
  // they are now.
  void learn_anew(Isa isa, ThreadPool& threads, const KvCache& kv, SequenceId sequence);

  // The pages that query rows may read, ascending and in place: of the view's pages the last one and those of the
  // others whose bounds, at their largest over the rows, are largest; of equal ones the first. Rows see all entries of
  // the view, whose whole pages are known. queries [num_rows] pointers to [key_dim]; they are rounded where
  // attention rounds them to bfloat16 for the view's entries. Returns their number, at most
  // num_pages_read(view.num_entries); pages has room for as many.
  int32_t choose(Isa isa, Precision precision, int32_t layer, int32_t head, const KvView& view,
                 const AttentionRows& rows, int32_t* pages, float* scratch) const;
  int64_t scratch_floats(int32_t layer, const KvView& view, int32_t num_rows) const;

  // Bytes of bounds per entry and head of a layer with keys of key_dim.
  static double bytes_per_entry(int32_t key_dim, int32_t page_entries);

  // What the sequence's generated tokens read, in layers with bounds and without, as those who read tell it.
  KvReads& reads() { return reads_; }

 private:
  struct Head {
    std::vector<const std::byte*> blocks;  // of kKvBlockSize pages each
    int32_t num_known = 0;
  };

  const Head& head(int32_t layer, int32_t head) const {
    return heads_[static_cast<size_t>(first_heads_[static_cast<size_t>(layer)] + head)];
  }
  Head& head(int32_t layer, int32_t head) { return const_cast<Head&>(std::as_const(*this).head(layer, head)); }
  KvView bounds(int32_t layer, int32_t head, int32_t num_pages) const;

  MemoryRegion region_;
  KvPageReader reader_;
  KvReads reads_;
  std::vector<KvBlockFormat> formats_;  // by layer: keys of [largest, least]
  std::vector<int64_t> first_heads_;    // by layer; -1: none
  std::vector<Head> heads_;
};

}  // namespace witan
