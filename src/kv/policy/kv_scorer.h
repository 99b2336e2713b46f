#pragma once

#include <cstdint>
#include <span>

#include "base/isa.h"
#include "kernels/attention/attention.h"

namespace witan {

// What is known of the entries of one kv head when they are judged.
struct HeadEvidence {
  Isa isa = Isa::kReference;
  KvView view = {};              // all entries, in the order of the text
  AttentionRows queries = {};    // of the last tokens, RoPE applied: row = token * group + query head of the group
  const float* sinks = nullptr;  // [group] see finish_attention; nullptr: none
  int32_t group = 1;             // query heads that read this kv head

  int32_t num_query_tokens() const { return queries.num_rows / group; }
};

// The part of a method that judges entries: one number for each, of which the larger stay.
//
// Scores depend on the evidence alone, bit for bit: not on the batch, the threads or how the prompt was chunked.
class KvScorer {
 public:
  virtual ~KvScorer() = default;

  // How many of the prompt's last tokens it wants the queries of. A shorter prompt gives fewer.
  virtual int32_t num_query_tokens() const { return 0; }

  // Floats of scratch for one head of so many entries.
  virtual int64_t scratch_floats(const HeadEvidence&) const { return 0; }

  // scores [num_entries]; scratch [scratch_floats], 64-byte aligned. What it gives protected entries does not matter.
  virtual void score(const HeadEvidence& head, std::span<float> scores, float* scratch) const = 0;
};

}  // namespace witan
