#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"

// The entry points of the instruction sets' files; attention.cpp chooses among them.
namespace witan {

inline constexpr int kBlocksPerSplit = kAttentionSplit / kKvBlockSize;

// Scratch rows are a whole and odd number of cache lines long: rows at a power of two would share a few cache sets.
constexpr int64_t padded_row_floats(int64_t num_floats) { return ((num_floats + 15) / 16 | 1) * 16; }
inline constexpr int64_t kScoreStride = padded_row_floats(kAttentionSplit);
inline constexpr int64_t kStepScoreStride = padded_row_floats(kWeightStep);

// One split, checked and laid out for the kernels.
struct SplitTask {
  KvBlockFormat format;
  const std::byte* const* blocks = nullptr;  // [num_blocks + num_next_blocks] of this split and, only prefetched,
  int32_t num_blocks = 0;                    // 1..kBlocksPerSplit
  int32_t num_next_blocks = 0;               // of the next
  int64_t key_scales = 0;                    // byte offsets within a block, of what the codec has
  int64_t rope = 0;
  int64_t values = 0;
  int64_t value_scales = 0;
  int64_t block_bytes = 0;

  const float* const* queries = nullptr;  // [num_rows] pointers to [key_dim]
  int32_t num_rows = 0;
  float scale = 1.0f;
  const float* const* biases = nullptr;  // [num_rows] see AttentionRows; the split's begin at first_entry
  int64_t first_entry = 0;
  // Bit e of visible[r * kBlocksPerSplit + b]: row r sees entry e of block b. Never set for entries that don't exist,
  // of blocks behind the last one either.
  const uint32_t* visible = nullptr;

  // Scratch, 64-byte aligned.
  float* scores = nullptr;  // [num_rows][kScoreStride]; kInt8: of a step, [num_rows][kStepScoreStride]
  float* sums = nullptr;    // [num_rows][padded_value_dim]
  float* tile = nullptr;    // decoded keys [key_dim][32] or values [32][padded_value_dim] of one block; for kBF16,
                            // values of keys, or decoded ones, as KvBlockFormat lays values out
  int64_t padded_value_dim = 0;
  uint8_t* decoded = nullptr;  // kBF16 of other codecs: the keys of one block as those of kBF16
  // kHadamard and kLatent: so many components of a key are turned, and all of a value, in blocks of so many.
  int64_t turned_key_dim = 0;
  int64_t key_rotation = 1;
  int64_t value_rotation = 1;
  int key_bits = 0;  // kHadamard
  int value_bits = 0;
  // The rounded queries, [num_rows][query_stride]. kBF16: words of two components. kInt8: words of four, up to 32
  // components or a multiple; then of each group its float32 scale times that of the scores; then of each group -128
  // times the sum of its quants. A group is 32 components for kQ8, and all for kHadamard. Turned queries in kF32, and
  // in kBF16 before they are rounded: floats.
  uint32_t* query_words = nullptr;
  int64_t num_query_words = 0;  // kInt8: before the scales
  int64_t num_key_groups = 0;   // kInt8
  int64_t query_stride = 0;
  bool has_queries = false;                // they are there, and turned_queries too: see AttentionRows::same_as_before
  const float** turned_queries = nullptr;  // [num_rows] for pointers to them
  // kInt8: of a step (kWeightStep entries), the rounded weights, four entries to a word, [num_value_groups][num_rows]
  // [kWeightStep / 4], and their units, [num_value_groups][num_rows]; of the steps so far, the denominators in 16
  // lanes, [num_rows][16].
  int64_t num_value_groups = 0;
  uint32_t* weight_words = nullptr;
  float* weight_factors = nullptr;
  float* denominators = nullptr;

  float* const* states = nullptr;  // [num_rows] pointers to [2 + value_dim], the result
};

using SplitFunction = void (*)(const SplitTask& task);
void attention_split_avx2(const SplitTask& task);
void attention_split_avx512(const SplitTask& task);
void attention_split_q8_avx512_vnni(const SplitTask& task);        // kInt8 of kQ8
void attention_split_hadamard_avx512_vnni(const SplitTask& task);  // kInt8 of kHadamard
void attention_split_bf16_avx512_bf16(const SplitTask& task);      // kBF16 of bf16 entries
void attention_split_decoded_avx512_bf16(const SplitTask& task);   // kBF16 of other ones

// kv_store_block of bf16 entries with values of their own.
void kv_store_block_avx512_bf16(const KvBlockFormat& format, std::byte* block, int count, const KvRows& rows);

// kv_load_keys; of the task, what does not follow from its format alone is not looked at.
using LoadKeysFunction = void (*)(const SplitTask& task, const std::byte* block, int count, float* keys,
                                  int64_t stride);
void kv_load_keys_avx2(const SplitTask& task, const std::byte* block, int count, float* keys, int64_t stride);
void kv_load_keys_avx512(const SplitTask& task, const std::byte* block, int count, float* keys, int64_t stride);

// As far as the weights in task.scores and the states' first two numbers; scores of blocks that a row does not see are
// left as they are.
void attention_weights_avx2(const SplitTask& task);
void attention_weights_avx512(const SplitTask& task);

// The largest scores of the rows in the first row of task.scores.
void attention_largest_scores_avx2(const SplitTask& task);
void attention_largest_scores_avx512(const SplitTask& task);
void attention_largest_scores_bf16_avx512_bf16(const SplitTask& task);

// The oracle reads entries one by one, as kv_load does, and decides by itself what a row sees.
void attention_split_reference(AttentionArithmetic arithmetic, const KvView& view, const AttentionRows& rows,
                               int32_t split, float* const* states);
void attention_weights_reference(const KvView& view, const AttentionRows& rows, int32_t split, float* const* states,
                                 float* const* weights);
void attention_largest_scores_reference(AttentionArithmetic arithmetic, const KvView& view, const AttentionRows& rows,
                                        int32_t split, float* largest);

using MergeFunction = void (*)(float* into, const float* next, int32_t value_dim);
void merge_attention_state_reference(float* into, const float* next, int32_t value_dim);
void merge_attention_state_avx2(float* into, const float* next, int32_t value_dim);
void merge_attention_state_avx512(float* into, const float* next, int32_t value_dim);

using FinishFunction = void (*)(float* state, const float* sink, int32_t value_dim, float* out);
void finish_attention_reference(float* state, const float* sink, int32_t value_dim, float* out);
void finish_attention_avx2(float* state, const float* sink, int32_t value_dim, float* out);
void finish_attention_avx512(float* state, const float* sink, int32_t value_dim, float* out);

}  // namespace witan
