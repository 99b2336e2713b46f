#pragma once

#include <cstdint>

#include "base/function_ref.h"
#include "models/model.h"

namespace witan {

// How a layer's values get into the residual stream, for KV policies that weigh entries by it.
struct ValueProjection {
  const PackedMatrix& output;  // [model_dim, num_heads * value_dim]
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t value_dim = 0;  // of a query head

  // Writes the values [count, value_dim] that query head `head` has of entries [first, first + count) of a kv head;
  // count is at most kMaxEntries. Many threads call it at once, each with scratch of its own, 64-byte aligned.
  static constexpr int32_t kMaxEntries = 64;
  FunctionRef<void(const KvView& view, int32_t head, int32_t first, int32_t count, float* values, std::byte* scratch)>
      values;
  int64_t scratch_bytes = 0;
};

// Makes `norms` know the committed entries of one layer of a sequence, as they lie in the cache. Products are of
// float32 values and the weights' exact values, and do not depend on which entries are new. For many entries it
// takes about as long as the output projection of their tokens in float32.
void learn_value_norms(ComputeContext& ctx, const KvCache& kv, SequenceId sequence, int32_t layer,
                       const ValueProjection& projection, ValueNorms& norms);

}  // namespace witan
