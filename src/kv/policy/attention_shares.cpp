#include "kv/policy/attention_shares.h"

#include <algorithm>

#include "kv/policy/row_weights.h"

namespace witan {

int64_t attention_shares_floats(const KvView& view) { return RowWeights(view, nullptr).row_floats(); }

int64_t attention_shares_scratch(const KvView& view) { return RowWeights::scratch_floats(view); }

void attention_shares(const HeadEvidence& head, float* shares, float* scratch) {
  RowWeights weights(head.view, scratch);
  std::fill_n(shares, weights.row_floats(), 0.0f);
  const int32_t num_rows = head.queries.num_rows;
  for (int32_t first = 0; first < num_rows; first += RowWeights::kMaxRows) {
    const int32_t count = std::min(RowWeights::kMaxRows, num_rows - first);
    const float* queries[RowWeights::kMaxRows];
    int32_t positions[RowWeights::kMaxRows];
    weights.compute(head.isa, head.rows(first, count, 1, queries, positions));
    for (int32_t r = 0; r < count; ++r) {
      weights.add_to(head.isa, r, nullptr, 1.0f / static_cast<float>(num_rows), shares);
    }
  }
}

}  // namespace witan
