#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kv/kv_cache.h"
#include "kv/policy/kv_budget.h"
#include "kv/policy/kv_compression_point.h"

namespace witan {

// A sequence's entries may be judged when the KV cache has no room for others or for its own next ones, whenever
// `every` tokens were generated since: see Scheduler.
struct KvPressure {
  KvBudget budget;  // of all tokens so far: what each head keeps, or the heads on average
  int32_t every = 1;

  bool operator==(const KvPressure&) const = default;
};

// When a sequence's KV entries are judged, of which some stay, and older ones demoted. A preempted sequence goes
// through all of it again.
//
// With `pressure` there are no points at first: the scheduler adds one where it has the entries judged.
struct CompressionPlan {
  std::vector<KvCompressionPoint> points;  // ascending; empty: never
  bool is_average = false;                 // heads may keep more or less than a point says, but all together that
  bool may_keep_all = false;               // nothing may be dropped after all, at any of them
  // Tokens before the first point that must be computed, not found in the prefix cache; at least 1. More than there
  // are: all of them.
  int32_t num_query_tokens = 1;
  std::optional<KvDemotion> demotion = {};  // at every point, judged or not
  bool demotes_others = false;              // entries that do not stay as they are: nothing is dropped
  std::optional<KvPressure> pressure = {};
  std::optional<KvAside> aside = {};  // what becomes of entries that are not kept: see KvCompressionPoint::num_aside
  // Not empty: what is left of the prompt at points before its end is kept for later sequences whose plans say the same
  // here, and which go on from there. It then has to depend on nothing but this and the prompt up to the point.
  std::string shared_as = {};
  // Before the first point: lengths of token sequences that are computed behind the prompt one after the other, each
  // forgotten before the next (kv/policy/repetition.h). The first point is the end of the prompt then.
  std::vector<int32_t> repetitions = {};

  // Of those, counted from one of them on; 0 where there are none.
  int32_t longest_repetition(size_t first) const {
    return first < repetitions.size() ? *std::max_element(repetitions.begin() + first, repetitions.end()) : 0;
  }

  // The most that any kv head may have when its entries are judged.
  int32_t most_entries() const {
    int32_t most = 0;
    KvCompressionPoint last;
    for (const KvCompressionPoint& point : points) {
      if (point.judges) {
        const bool may_have_all = is_average || may_keep_all || aside;
        most = std::max(most, may_have_all ? point.num_tokens : last.num_kept + point.num_tokens - last.num_tokens);
      }
      last = point;
    }
    return most;
  }

  // Of so many entries of a kv head, those that are demoted behind a point; the fewest where that is not known.
  int64_t num_demoted(const KvCompressionPoint& point, int64_t num_entries) const {
    if (!demotion) return 0;
    if (demotes_others) return may_keep_all ? 0 : num_entries - point.num_kept;
    return std::max<int64_t>(0, num_entries - demotion->num_recent) / kKvBlockSize * kKvBlockSize;
  }

  // Whether queries are looked at where the first point is, judged or not.
  bool chooses_channels() const { return demotion && !demotion->key_dims.empty(); }

  bool operator==(const CompressionPlan&) const = default;
};

}  // namespace witan
