#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "memory/memory_pool.h"

namespace witan {

// The queries of some consecutive tokens of one sequence, RoPE applied, of all layers: what a KV policy judges entries
// by. Layers write theirs as they compute the tokens.
//
// Thread safety: distinct (layer, token) places may be written by many threads.
class QueryWindow {
 public:
  // Of the memory pool.
  static int64_t bytes(int32_t num_layers, int32_t num_heads, int32_t key_dim, int32_t num_tokens) {
    return int64_t{num_layers} * num_tokens * num_heads * key_dim * static_cast<int64_t>(sizeof(float));
  }

  // Throws Error(kOutOfMemory) when the pool has no room.
  QueryWindow(MemoryPool& pool, int32_t num_layers, int32_t num_heads, int32_t key_dim, int32_t first_token,
              int32_t num_tokens);

  int32_t first_token() const { return first_token_; }
  int32_t num_tokens() const { return num_tokens_; }
  int32_t max_tokens() const { return max_tokens_; }
  int32_t num_heads() const { return num_heads_; }
  int32_t key_dim() const { return key_dim_; }
  // It is of num_tokens tokens from first_token on, at most as many as it was made for. Queries of those among them
  // that it has been of since the token was computed stay.
  void move_to(int32_t first_token, int32_t num_tokens);
  bool has(int32_t token) const { return token >= first_token_ && token < first_token_ + num_tokens_; }

  // [num_heads, key_dim] of a token that it has.
  float* queries(int32_t layer, int32_t token) {
    return floats() + (int64_t{layer} * max_tokens_ + token % max_tokens_) * num_heads_ * key_dim_;
  }
  const float* queries(int32_t layer, int32_t token) const {
    return const_cast<QueryWindow*>(this)->queries(layer, token);
  }

  // How a layer makes scores of its queries: see AttentionRows and finish_attention.
  struct Scoring {
    float scale = 1.0f;
    const float* sinks = nullptr;  // [num_heads]
  };
  Scoring& scoring(int32_t layer) { return scorings_[static_cast<size_t>(layer)]; }
  const Scoring& scoring(int32_t layer) const { return scorings_[static_cast<size_t>(layer)]; }

 private:
  float* floats() { return reinterpret_cast<float*>(region_.data()); }

  MemoryRegion region_;
  int32_t num_heads_;
  int32_t key_dim_;
  int32_t first_token_;
  int32_t num_tokens_;
  int32_t max_tokens_;  // places, of which a token's is its number modulo that
  std::vector<Scoring> scorings_;
};

}  // namespace witan
