#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/isa.h"
#include "kernels/attention/kv_block.h"
#include "kernels/precision.h"

namespace witan {

// Attention of query rows over the KV blocks of one kv head.
//
// Entries are walked in splits of kAttentionSplit, each giving a partial state (see attention_state_floats()); the
// states are merged in ascending split order by the one formula of merge_attention_state. So a row's result has the
// same bits whether one thread walks all splits (prefill) or many threads take a split each (decode), and whatever
// other rows share the tile. A masked entry contributes exactly nothing.
inline constexpr int kAttentionSplit = 512;  // entries; a multiple of kKvBlockSize

// Entries of a split, from a multiple of it on, whose rounded weights share a step in AttentionArithmetic::kInt8.
inline constexpr int kWeightStep = 64;  // a multiple of kKvBlockSize

enum class AttentionArithmetic : uint8_t {
  kF32,   // float32 products and sums
  kBF16,  // entries, queries and the weights exp(score - max) rounded to bfloat16, products summed in float32; the
          // denominator sums the unrounded weights. What is rounded of turned entries and queries is turned
  // Queries rounded to 8 bits with a scale per group of components, as keys are: of 32 for kQ8; of all, turned, for the
  // kHadamard codecs. Of values: a row's weight times a group's scale, for those of kWeightStep entries that the row
  // sees, is rounded to a whole number, 0..255, of steps of max(weight * scale) / 255. Sums of integers are exact,
  // those over groups and steps float32; the denominator sums the unrounded weights, which are off by up to 7.5e-05 of
  // their size.
  kInt8,
};

// For Precision::kFast, on instruction sets that multiply them (and in the reference, whose sums are doubles in all):
// kBF16 for bf16 entries, and for kQ8 and kLatent latents and kKivi entries, which are decoded to bf16 block by block;
// kInt8 for kQ8 entries with values of their own and kHadamard ones. kF32 otherwise.
AttentionArithmetic attention_arithmetic(Isa isa, const KvBlockFormat& format, Precision precision);

// The entries of one kv head of one layer of one sequence, borrowed. Those in front may be demoted: rounded to another
// codec, or with keys that have lost some of their components, or both, in blocks of their own, which come before the
// others'. No split has both kinds. A component that keys have lost counts as 0, and nobody multiplies it.
struct KvView {
  KvBlockFormat format;                      // of the entries that are not demoted
  const std::byte* const* blocks = nullptr;  // [num_blocks()]
  int32_t num_entries = 0;
  const int32_t* positions = nullptr;  // [num_entries]; nullptr: entry i is at position i
  int32_t num_demoted = 0;             // the first so many entries
  KvBlockFormat demoted_format = {};   // theirs, if there are any
  // [demoted_format.key_dim] the components that their keys have, ascending; nullptr: all.
  const int32_t* demoted_channels = nullptr;

  int32_t num_demoted_blocks() const { return ceil_div(num_demoted, kKvBlockSize); }
  int32_t num_blocks() const { return num_demoted_blocks() + ceil_div(num_entries - num_demoted, kKvBlockSize); }
  int64_t block_bytes() const {  // of all of them
    const int64_t of_demoted = num_demoted == 0 ? 0 : num_demoted_blocks() * demoted_format.block_bytes();
    return of_demoted + (num_blocks() - num_demoted_blocks()) * format.block_bytes();
  }
  int32_t num_demoted_splits() const { return ceil_div(num_demoted, kAttentionSplit); }
  int32_t num_splits() const { return num_demoted_splits() + ceil_div(num_entries - num_demoted, kAttentionSplit); }

  // The entries of a split: from split_begin(split), to split_begin(split + 1).
  int32_t split_begin(int32_t split) const {
    const int32_t num_splits = num_demoted_splits();
    if (split < num_splits) return split * kAttentionSplit;
    return std::min(num_entries, num_demoted + (split - num_splits) * kAttentionSplit);
  }

  // The first entry of a block, or behind the last one the number of entries.
  int32_t block_begin(int32_t block) const {
    const int32_t num_blocks = num_demoted_blocks();
    if (block < num_blocks) return block * kKvBlockSize;
    return std::min(num_entries, num_demoted + (block - num_blocks) * kKvBlockSize);
  }
  int32_t split_first_block(int32_t split) const {
    const int32_t num_splits = num_demoted_splits();
    constexpr int32_t kBlocks = kAttentionSplit / kKvBlockSize;
    if (split < num_splits) return split * kBlocks;
    return std::min(num_blocks(), num_demoted_blocks() + (split - num_splits) * kBlocks);
  }

  const KvBlockFormat& format_of_split(int32_t split) const {
    return split < num_demoted_splits() ? demoted_format : format;
  }

  // The components of the keys of a split that is of demoted entries; nullptr: all.
  const int32_t* channels_of_split(int32_t split) const {
    return split < num_demoted_splits() ? demoted_channels : nullptr;
  }

  const KvBlockFormat& format_of(int32_t entry) const { return entry < num_demoted ? demoted_format : format; }
  const std::byte* block_of(int32_t entry) const {
    if (entry < num_demoted) return blocks[entry / kKvBlockSize];
    return blocks[num_demoted_blocks() + (entry - num_demoted) / kKvBlockSize];
  }
  int32_t slot_of(int32_t entry) const { return (entry < num_demoted ? entry : entry - num_demoted) % kKvBlockSize; }

  void load(int32_t entry, float* key, float* value) const {  // as kv_load, the key with all of its components
    kv_load(format_of(entry), block_of(entry), slot_of(entry), key, value);
    if (entry < num_demoted && demoted_channels != nullptr) spread_channels(key);
  }
  // The keys of all entries of a block at once, [entries][format.key_dim], in the same bits.
  void load_keys(Isa isa, int32_t block, float* keys) const {
    const int32_t first = block_begin(block);
    const int32_t count = block_begin(block + 1) - first;
    kv_load_keys(isa, format_of(first), blocks[block], count, keys, format.key_dim);
    if (first >= num_demoted || demoted_channels == nullptr) return;
    for (int32_t i = 0; i < count; ++i) spread_channels(keys + int64_t{i} * format.key_dim);
  }
  void load_value(int32_t entry, float* value) const {  // as kv_load_value
    kv_load_value(format_of(entry), block_of(entry), slot_of(entry), value);
  }

 private:
  static int32_t ceil_div(int32_t value, int32_t by) { return (value + by - 1) / by; }

  // Puts the components of a demoted key in their places, from the last one on, and zeros between them.
  void spread_channels(float* key) const {
    int32_t end = format.key_dim;
    for (int32_t i = demoted_format.key_dim - 1; i >= 0; --i) {
      const int32_t channel = demoted_channels[i];
      std::fill(key + channel + 1, key + end, 0.0f);
      key[channel] = key[i];
      end = channel;
    }
    std::fill(key, key + end, 0.0f);
  }
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
  // For attention_split: its last call with the same scratch was of these rows, and of entries of the same format, so
  // that what it made of the queries, turned and rounded, is still there.
  bool same_as_before = false;
};

// The running softmax of one row over the entries seen so far: a reference, the sum of exp(score - reference), and the
// sum of exp(score - reference) * value. Layout in memory: [reference, denominator, weighted_sum[value_dim]], f32. The
// reference is the largest score; in kInt8 one that no score exceeds by more than 8. Empty: -inf, and zeros.
inline int64_t attention_state_floats(int32_t value_dim) { return 2 + static_cast<int64_t>(value_dim); }

// states[r] = the state of row r over split `split` alone, in attention_arithmetic(isa, format of the split,
// precision).
// `scratch` has attention_scratch_bytes(view, rows.num_rows), 64-byte aligned.
void attention_split(Isa isa, Precision precision, const KvView& view, const AttentionRows& rows, int32_t split,
                     float* const* states, std::byte* scratch);
int64_t attention_scratch_bytes(const KvView& view, int32_t num_rows);
// Of entries of one format.
int64_t attention_scratch_bytes(const KvBlockFormat& format, int32_t num_rows);

// The weights of attention themselves, for those who judge entries by them: weights[r] [kAttentionSplit] = exp(score -
// max) of the entries of split `split`, 0 for those that row r does not see and behind the last; states[r] = {max, sum
// of the weights}. In float32 whatever the codec; values are not read. `scratch` as for attention_split.
void attention_weights(Isa isa, const KvView& view, const AttentionRows& rows, int32_t split, float* const* states,
                       float* const* weights, std::byte* scratch);

// For those who put entries in order: largest[i] = the largest product of a row's query and the key of the split's i-th
// entry, unscaled; of BF16 entries as attention_split has it in this precision, of others in float32. Values, window
// and biases are not looked at. Every row sees every entry. A NaN is passed over; -inf where all are. `scratch` as for
// attention_split.
void attention_largest_scores(Isa isa, Precision precision, const KvView& view, const AttentionRows& rows,
                              int32_t split, float* largest, std::byte* scratch);

// into = into followed by next (entries after those of `into`). Merging into an empty state copies `next`.
void merge_attention_state(Isa isa, float* into, const float* next, int32_t value_dim);

// Adds a learned sink logit (attended to, no value) to a state, then out[value_dim] = weighted_sum / denominator.
// sink == nullptr: none. A state that saw nothing gives zeros.
void finish_attention(Isa isa, float* state, const float* sink, int32_t value_dim, float* out);

}  // namespace witan
