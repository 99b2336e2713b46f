// Methods for the values of entries that are dropped. Each refines any policy that drops some.
#include "kv/policy/policy_builder.h"

namespace witan {

// Merging on eviction as in kvpress (MergingPress), after D2O (Wan et al., arXiv 2406.13035).
void merge_similar(PolicyBuilder& builder, PartArguments& arguments) {
  const double threshold = arguments.number("threshold", 0.0, 0.0, 1.0);
  builder.choose_merging(
      arguments, {.into = KvMerging::Into::kSimilar, .threshold = static_cast<float>(threshold), .num_next = 0});
}

// CaM (Zhang et al., "CaM: Cache Merging for Memory-efficient LLMs Inference", ICML 2024).
void merge_next(PolicyBuilder& builder, PartArguments& arguments) {
  builder.choose_merging(
      arguments,
      {.into = KvMerging::Into::kNext, .threshold = 0.0f, .num_next = arguments.integer("next", 32, 1, 256)});
}

}  // namespace witan
