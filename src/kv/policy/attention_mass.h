#pragma once

#include "kv/policy/entry_floats.h"

namespace witan {

// How much attention each KV entry of one sequence has had from all tokens so far: softmax weights, added up over the
// tokens and the query heads of its kv head (H2O, arXiv 2306.14048). Layers add theirs as they compute the tokens.
class AttentionMass : public EntryFloats {
 public:
  AttentionMass(MemoryPool& pool, std::span<const KvLayerSpec> layers, int32_t max_entries)
      : EntryFloats(pool, layers, max_entries, "the attention that entries have had") {}
};

}  // namespace witan
