#pragma once

#include <cstddef>
#include <cstdint>

#include "base/isa.h"
#include "kernels/attention/kv_block.h"
#include "kernels/precision.h"

namespace witan {

// Attention of query rows over the KV blocks of one kv head.
//
// Entries are walked in splits of kAttentionSplit, each giving a partial state (max, denominator, weighted sum); the
// states are merged in ascending split order by the one formula of merge_attention_state. So a row's result has the
// same bits whether one thread walks all splits (prefill) or many threads take a split each (decode), and whatever
// other rows share the tile. A masked entry contributes exactly nothing.
inline constexpr int kAttentionSplit = 512;  // entries; a multiple of kKvBlockSize

enum class AttentionArithmetic : uint8_t {
  kF32,   // float32 products and sums
  kBF16,  // queries and the weights exp(score - max) rounded to bfloat16, products of those with the entries summed in
          // float32; the denominator sums the unrounded weights
  // Queries rounded to 8 bits with a scale per group of components, as keys are: of 32 for kQ8; of all, turned, for the
  // kHadamard codecs. Of values: let s be the largest scale of an entry's groups. A row's weight times a group's scale,
  // for the entries of a block that the row sees, is rounded to a whole number, 0..255, of steps of max(weight * s) *
  // max(scale / s) / 255. Sums of integers are exact, those over groups and blocks float32; the denominator sums the
  // unrounded weights.
  kInt8,
};

// For Precision::kFast: kBF16 for bf16 entries and kInt8 for kQ8 and kHadamard ones with values of their own (not
// latents), on instruction sets that multiply them (and in the reference, whose sums are doubles in all). kF32
// otherwise.
AttentionArithmetic attention_arithmetic(Isa isa, const KvBlockFormat& format, Precision precision);

// The entries of one kv head of one layer of one sequence, borrowed.
struct KvView {
  KvBlockFormat format;
  const std::byte* const* blocks = nullptr;  // ceil(num_entries / 32) pointers
  int32_t num_entries = 0;
  const int32_t* positions = nullptr;  // [num_entries]; nullptr: entry i is at position i

  int32_t num_splits() const { return (num_entries + kAttentionSplit - 1) / kAttentionSplit; }
};

// Query rows: a row is one (token, query head) pair whose head reads this kv head.
struct AttentionRows {
  const float* const* queries = nullptr;  // [num_rows] pointers to [key_dim] f32, RoPE applied
  const int32_t* positions = nullptr;     // [num_rows]: a row sees entries with position <= its own
  int32_t num_rows = 0;
  float scale = 1.0f;  // of the scores
  int32_t window = 0;  // > 0: a row at position p sees only positions in (p - window, p]
  // [num_rows] pointers to floats that are added to the scaled scores, one per entry and readable to the end of the
  // last entry's block; nullptr: none. Relative position biases (T5).
  const float* const* biases = nullptr;
};

// The running softmax of one row over the entries seen so far: max score, sum of exp(score - max), and the sum of
// exp(score - max) * value. Layout in memory: [max, denominator, weighted_sum[value_dim]], f32. Empty: max = -inf, 0s.
inline int64_t attention_state_floats(int32_t value_dim) { return 2 + static_cast<int64_t>(value_dim); }

// states[r] = the state of row r over split `split` alone, in attention_arithmetic(isa, view.format, precision).
// `scratch` has attention_scratch_bytes(view.format, rows.num_rows), 64-byte aligned.
void attention_split(Isa isa, Precision precision, const KvView& view, const AttentionRows& rows, int32_t split,
                     float* const* states, std::byte* scratch);
int64_t attention_scratch_bytes(const KvBlockFormat& format, int32_t num_rows);

// The weights of attention themselves, for those who judge entries by them: weights[r] [kAttentionSplit] = exp(score -
// max) of the entries of split `split`, 0 for those that row r does not see and behind the last; states[r] = {max, sum
// of the weights}. In float32 whatever the codec; values are not read. `scratch` as for attention_split.
void attention_weights(Isa isa, const KvView& view, const AttentionRows& rows, int32_t split, float* const* states,
                       float* const* weights, std::byte* scratch);

// into = into followed by next (entries after those of `into`). Merging into an empty state copies `next`.
void merge_attention_state(Isa isa, float* into, const float* next, int32_t value_dim);

// Adds a learned sink logit (attended to, no value) to a state, then out[value_dim] = weighted_sum / denominator.
// sink == nullptr: none. A state that saw nothing gives zeros.
void finish_attention(Isa isa, float* state, const float* sink, int32_t value_dim, float* out);

}  // namespace witan
