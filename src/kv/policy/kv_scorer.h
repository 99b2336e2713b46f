#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>

#include "base/isa.h"
#include "kernels/attention/attention.h"
#include "kv/policy/query_moments.h"

namespace witan {

// What is known of the entries of one kv head when they are judged.
struct HeadEvidence {
  Isa isa = Isa::kReference;
  KvView view = {};              // all entries, in the order of the text
  AttentionRows queries = {};    // of the last tokens, RoPE applied: row = token * group + query head of the group
  const float* sinks = nullptr;  // [group] see finish_attention; nullptr: none
  int32_t group = 1;             // query heads that read this kv head
  const float* mass = nullptr;   // [num_entries] attention that each had from all tokens so far, of all query heads
  // [num_entries] the largest attention that each had when the prompt was read a second time: RepetitionAttention
  const float* repetition = nullptr;

  // Of all tokens' queries before RoPE: those of query heads first_query_head .. + group of the layer are this
  // head's.
  const QueryMoments* moments = nullptr;
  int32_t layer = 0;
  int32_t first_query_head = 0;

  int32_t num_query_tokens() const { return queries.num_rows / group; }
  const float* sink(int32_t query_head) const { return sinks == nullptr ? nullptr : sinks + query_head; }

  // What a scorer sees that wants the queries of so many last tokens.
  HeadEvidence with_last_queries(int32_t num_tokens) const {
    HeadEvidence evidence = *this;
    const int32_t num_dropped = std::max(0, num_query_tokens() - num_tokens) * group;
    evidence.queries.queries += num_dropped;
    evidence.queries.positions += num_dropped;
    evidence.queries.num_rows -= num_dropped;
    return evidence;
  }

  // Rows first, first + step, ... of the queries, whose pointers and positions go where the caller says.
  AttentionRows rows(int32_t first, int32_t count, int32_t step, const float** pointers, int32_t* positions) const {
    for (int32_t r = 0; r < count; ++r) {
      pointers[r] = queries.queries[first + r * step];
      positions[r] = queries.positions[first + r * step];
    }
    return {.queries = pointers,
            .positions = positions,
            .num_rows = count,
            .scale = queries.scale,
            .window = queries.window};
  }
};

// What a scorer wants to know beside the entries. All of it is collected while tokens are computed.
struct KvWants {
  int32_t num_query_tokens = 0;  // the queries of so many last tokens; a shorter text gives fewer
  bool attention_mass = false;   // HeadEvidence::mass

  // HeadEvidence::moments, of the tokens from first_token on.
  struct Moments {
    QueryMoments::Order order = QueryMoments::Order::kMean;
    int32_t first_token = 0;
  };
  std::optional<Moments> moments = {};

  bool value_norms = false;  // KvEvidence::value_norms

  // HeadEvidence::repetition: the prompt is read a second time, in chunks of so many tokens. See RepetitionView.
  struct Repetitions {
    int32_t chunk_tokens = 2048;
    int32_t num_sinks = 4;
  };
  std::optional<Repetitions> repetitions = {};

  // Then nothing is taken from the prefix cache.
  bool sees_all_tokens() const { return attention_mass || moments.has_value(); }
};

// The part of a method that judges entries: one number for each, of which the larger stay.
//
// Scores depend on the evidence alone, bit for bit: not on the batch, the threads or how the prompt was chunked.
class KvScorer {
 public:
  virtual ~KvScorer() = default;

  virtual KvWants wants() const { return {}; }

  // Whether scores are attention, in whatever unit, so that they may be weighed: never negative, and 0 means nothing.
  virtual bool scores_are_attention() const { return false; }

  // Floats of scratch for one head of so many entries.
  virtual int64_t scratch_floats(const HeadEvidence&) const { return 0; }

  // scores [num_entries]; scratch [scratch_floats], 64-byte aligned. What it gives protected entries does not matter.
  virtual void score(const HeadEvidence& head, std::span<float> scores, float* scratch) const = 0;
};

}  // namespace witan
