#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"

namespace witan {

// The attention of a few query rows over all entries of a kv head, in softmax weights. A row's weights do not depend on
// the rows that are asked for with it.
class RowWeights {
 public:
  static constexpr int32_t kMaxRows = 16;  // at once: a row of weights is as long as the context

  // Floats of scratch that one takes, a multiple of 16.
  static int64_t scratch_floats(const KvView& view);

  // scratch [scratch_floats], 64-byte aligned, and the view are borrowed.
  RowWeights(const KvView& view, float* scratch);

  // Of at most kMaxRows rows; what was there before is gone.
  void compute(Isa isa, const AttentionRows& rows);

  // sums[e] += factor * (the weight that row r gives entry e), its softmax having `sink` (nullptr: none) beside the
  // entries. sums has row_floats().
  void add_to(Isa isa, int32_t r, const float* sink, float factor, float* sums) const;

  // The largest scaled score of row r, -inf where it sees nothing.
  float max(int32_t r) const;
  // exp(score - shift) of all entries, 0 for those that row r does not see: out [num_entries].
  void exponentials(int32_t r, float shift, float* out) const;

  // Entries in whole splits, which is what rows of weights have.
  int64_t row_floats() const { return row_floats_; }

 private:
  const float* state(int32_t r, int32_t split) const { return states_ + (int64_t{r} * num_splits_ + split) * 2; }
  const float* weights(int32_t r, int32_t split) const {
    return weights_ + r * row_floats_ + int64_t{split} * kAttentionSplit;
  }

  KvView view_;
  int32_t num_splits_;
  int64_t row_floats_;
  float* weights_;  // [kMaxRows][row_floats]: exp(score - max of the split)
  float* states_;   // [kMaxRows][num_splits][2]: max and sum of each split
  float* kernel_scratch_;
};

}  // namespace witan
