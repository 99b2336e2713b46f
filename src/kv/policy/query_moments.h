#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kv/kv_cache.h"
#include "memory/memory_pool.h"
#include "nn/rope_table.h"

namespace witan {

// The mean and the covariance of a text's queries before their rotary positions, by layer without a sliding window
// and query head: what a token may ask for, wherever it stands (Expected Attention, arXiv 2510.00636). Layers add
// theirs as they compute the tokens, in the order of the text, in double: the sums have the same bits however it is
// cut.
//
// Thread safety: distinct (layer, query head) may be used by many threads.
class QueryMoments {
 public:
  enum class Order : uint8_t { kMean, kCovariance };  // with the mean

  // Of the memory pool.
  static int64_t bytes(std::span<const KvLayerSpec> layers, int32_t num_heads, Order order);

  // Of the tokens from first_token on. Throws Error(kOutOfMemory) when the pool has no room.
  QueryMoments(MemoryPool& pool, std::span<const KvLayerSpec> layers, int32_t num_heads, Order order,
               int32_t first_token);

  int32_t first_token() const { return first_token_; }
  int32_t num_heads() const { return num_heads_; }
  Order order() const { return order_; }
  int32_t key_dim(int32_t layer) const { return places_[static_cast<size_t>(layer)].key_dim; }

  // Adds the queries of consecutive tokens of one head: token i's at first + i * stride, [key_dim].
  void add(int32_t layer, int32_t head, const float* first, int64_t stride, int32_t num_tokens);
  // So many tokens were added to all heads of a layer.
  void count(int32_t layer, int32_t num_tokens) { places_[static_cast<size_t>(layer)].num_tokens += num_tokens; }

  // mean [key_dim], and with Order::kCovariance covariance [key_dim, key_dim], over all tokens (not n - 1); zeros
  // before there is one.
  void mean(int32_t layer, int32_t head, double* mean) const;
  void covariance(int32_t layer, int32_t head, const double* mean, double* covariance) const;

  // How a layer makes scores of its queries: see AttentionRows and finish_attention; and of which components
  // [rope_offset, rope_offset + rope->dim()) are rotated.
  struct Scoring {
    float scale = 1.0f;
    const float* sinks = nullptr;  // [num_heads]
    const RopeTable* rope = nullptr;
    int32_t rope_offset = 0;
  };
  Scoring& scoring(int32_t layer) { return places_[static_cast<size_t>(layer)].scoring; }
  const Scoring& scoring(int32_t layer) const { return places_[static_cast<size_t>(layer)].scoring; }

 private:
  struct Place {  // of a layer
    int64_t first_double = 0;
    int32_t key_dim = 0;
    int64_t num_tokens = 0;
    Scoring scoring;
  };

  static int64_t head_doubles(int32_t key_dim, Order order);
  // Of a head: sums [key_dim], then the sums of products of components i >= j, row by row.
  double* sums(int32_t layer, int32_t head);
  const double* sums(int32_t layer, int32_t head) const { return const_cast<QueryMoments*>(this)->sums(layer, head); }

  MemoryRegion region_;
  int32_t num_heads_;
  Order order_;
  int32_t first_token_;
  std::vector<Place> places_;
};

}  // namespace witan
