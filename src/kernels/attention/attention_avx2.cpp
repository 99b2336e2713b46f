#include <immintrin.h>

#include "kernels/attention/attention_variants.h"

namespace witan {
namespace {

// Of the 16 registers, 8 sums of scores: 4 rows x 16 entries.
constexpr int kMaxRows = 4;
// Vectors of value components per row: 6 to 8 sums.
constexpr int vectors_per_row(int num_rows) { return num_rows == 1 ? 8 : num_rows == 2 ? 4 : 2; }

// In this order: each uses names of the ones before.
#include "kernels/simd/vector_avx2.inl"
//
#include "kernels/simd/exp.inl"
//
#include "kernels/attention/transpose_avx2.inl"
//
#include "kernels/attention/codecs.inl"
//
#include "kernels/attention/hadamard_avx2.inl"
//
#include "kernels/attention/hadamard.inl"
//
#include "kernels/attention/tiles.inl"
//
#include "kernels/attention/weights.inl"
//
#include "kernels/attention/split.inl"
//
#include "kernels/attention/load_keys.inl"
//
#include "kernels/attention/state.inl"

}  // namespace

void attention_split_avx2(const SplitTask& task) {
  with_codec(task, [&](auto codec) { attend(task, codec); });
}
void attention_weights_avx2(const SplitTask& task) {
  with_codec(task, [&](auto codec) { weigh(with_turned_queries(task), SeenBlocks(task), codec); });
}
void attention_largest_scores_avx2(const SplitTask& task) {
  with_codec(task, [&](auto codec) {
    score_blocks<decltype(codec)>(with_turned_queries(task), SeenBlocks(task), decodes_first(task, codec));
  });
  keep_largest(task);
}
void kv_load_keys_avx2(const SplitTask& task, const std::byte* block, int count, float* keys, int64_t stride) {
  with_codec(task, [&](auto codec) { load_keys<decltype(codec)>(task, block, count, keys, stride); });
}
void merge_attention_state_avx2(float* into, const float* next, int32_t value_dim) {
  merge_states(into, next, value_dim);
}
void finish_attention_avx2(float* state, const float* sink, int32_t value_dim, float* out) {
  finish_state(state, sink, value_dim, out);
}

}  // namespace witan
