#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

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

  // largest[e] = max(largest[e], the weight that row r gives entry e), otherwise the same.
  void raise_to(int32_t r, const float* sink, float* largest) const;

  // largest[e] = exp(score - max), the largest over any number of rows, where max is that over all entries too; 0 for
  // entries that no row sees. rows_of(first, count) gives count rows from the first on. largest and of_row have room
  // for the view's entries.
  template <typename RowsOf>
  void find_largest(Isa isa, int32_t num_rows, const RowsOf& rows_of, float* largest, float* of_row) {
    std::fill_n(largest, view_.num_entries, 0.0f);
    float shift = -std::numeric_limits<float>::infinity();
    for (int32_t first = 0; first < num_rows; first += kMaxRows) {
      const int32_t count = std::min(kMaxRows, num_rows - first);
      compute(isa, rows_of(first, count));
      shift = merge_largest(count, shift, largest, of_row);
    }
  }

  // Entries in whole splits, which is what rows of weights have.
  int64_t row_floats() const { return row_floats_; }

 private:
  // Of the rows that were computed last; `largest` is exp(score - shift) so far. Returns the shift that it has then.
  float merge_largest(int32_t num_rows, float shift, float* largest, float* of_row) const;
  // Of row r over all splits: the largest score, and the sum of exp(score - that).
  struct Total {
    double max;
    double sum;
  };
  Total total(int32_t r, const float* sink) const;
  // What the weights of a split are to be multiplied by.
  float share(const Total& total, int32_t r, int32_t split) const;
  // The largest scaled score of row r, -inf where it sees nothing.
  float max(int32_t r) const;
  // exp(score - shift) of all entries, 0 for those that row r does not see: out [num_entries].
  void exponentials(int32_t r, float shift, float* out) const;

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
