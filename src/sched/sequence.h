#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

#include "base/types.h"
#include "kernels/attention/kv_block.h"
#include "kv/kv_cache.h"
#include "sched/compression_plan.h"
#include "sched/reuse_plan.h"

namespace witan {

// A sequence as the scheduler keeps it.
//
//   waiting   in the queue by value, or behind a leader; no KV sequence
//   running   has a KV sequence; entries [0, num_computed) are committed in it, tokens
//             [num_computed, num_computed + num_planned) are in the plan that is not committed yet; in a repetition,
//             num_repeated of its tokens have entries behind these, which are never committed, and the next num_planned
//             are in the plan; in a pass of its reuse plan, the next num_planned of that are
struct Sequence {
  SequenceId id = 0;  // ascends with arrival
  int32_t priority = 0;
  int32_t num_prompt_tokens = 0;
  int32_t max_tokens = 0;       // prompt and generated together
  std::vector<TokenId> input;   // of the encoder; not counted in num_tokens
  std::vector<TokenId> tokens;  // prompt, then generated
  CompressionPlan compression;
  std::optional<ReusePlan> reuse;
  int64_t side_bytes = 0;
  bool private_generation = false;
  std::vector<TokenRole> kv_roles;  // [tokens.size()], as the KV cache is told

  std::optional<SequenceId> kv_sequence;
  int32_t num_computed = 0;
  int32_t num_planned = 0;
  size_t num_compressions = 0;    // points of the plan that its KV sequence is past
  size_t num_repetitions = 0;     // of the plan, that are over
  int32_t num_repeated = 0;       // tokens of the next one, whose entries are written behind the committed ones
  ReuseProgress reused;           // of its reuse plan
  int32_t num_dropped = 0;        // tokens that a kv head has no entry of any more, on average, rounded down
  int64_t num_demoted = 0;        // of those that it has, demoted ones, were all heads alike
  int32_t num_ever_computed = 0;  // the most that num_computed was, preemptions or not
  std::optional<int32_t> judged_under_pressure = {};  // num_computed when its entries were judged for room last
  bool is_judged_for_room = false;                    // so they are to be now: at the last point of its plan
  std::optional<int32_t> num_prefix_hit_tokens;       // set by the first admission
  int32_t num_document_hit_tokens = 0;                // of its documents up to num_ever_reused
  int32_t num_ever_reused = 0;                        // documents that were wanted, preemptions or not

  // A waiting sequence may wait for the running `leader` to compute their common tokens [0, num_common_tokens).
  Sequence* leader = nullptr;
  int32_t num_common_tokens = 0;
  std::vector<Sequence*> followers;  // of a running sequence: who waits for it

  int32_t num_tokens() const { return static_cast<int32_t>(tokens.size()); }
  int32_t num_uncomputed() const { return num_tokens() - num_computed; }
  const KvCompressionPoint* next_compression() const {
    return num_compressions < compression.points.size() ? &compression.points[num_compressions] : nullptr;
  }
  // The next point where entries are judged, or channels of their keys.
  std::optional<KvCompressionPoint> next_judgement() const {
    for (size_t i = num_compressions; i < compression.points.size(); ++i) {
      if (compression.points[i].judges || (i == 0 && compression.chooses_channels())) return compression.points[i];
    }
    return std::nullopt;
  }
  // Whether its entries may be judged between two steps, because others want their room. What is computed again is
  // judged where it was, and nowhere else.
  bool may_be_judged_under_pressure() const {
    if (!compression.pressure || !kv_sequence || num_uncomputed() != 1 || num_computed < num_prompt_tokens)
      return false;
    const bool is_past_all_points = next_compression() == nullptr;
    return is_past_all_points &&
           (!judged_under_pressure || num_computed - *judged_under_pressure >= compression.pressure->every);
  }
  // Whether a pass of its reuse plan is next.
  bool reuses() const { return reuse && !reused.is_over && num_computed == reuse->begin(); }
  // That pass, with the KV sequence of the document where it is of one. What is left of it is of no tokens only where
  // the pass that follows has not begun.
  ReuseSlice next_pass() const {
    using enum ReuseSlice::Pass;
    if (reused.num_documents < std::ssize(reuse->documents)) {
      const bool is_computed = reused.num_document_tokens == document_tokens();
      return is_computed && reuse->probes_alone
                 ? ReuseSlice{.pass = kProbeAlone, .document = reused.num_documents, .first = reused.num_probed_alone}
                 : ReuseSlice{.pass = kDocument, .document = reused.num_documents, .first = reused.num_document_tokens};
    }
    const bool is_probed = !reuse->probes || reused.num_probed == reuse->num_tokens();
    return is_probed ? ReuseSlice{.pass = kRecompute, .first = reused.num_recomputed}
                     : ReuseSlice{.pass = kProbe, .first = reused.num_probed};
  }
  int32_t num_left_of(const ReuseSlice& pass) const {
    switch (pass.pass) {
      case ReuseSlice::Pass::kDocument:
      case ReuseSlice::Pass::kProbeAlone:
        return document_tokens() - pass.first;
      case ReuseSlice::Pass::kProbe:
        return reuse->num_tokens() - pass.first;
      case ReuseSlice::Pass::kRecompute:
        break;
    }
    return reuse->num_recomputed - pass.first;
  }
  int32_t document_tokens() const {  // of the next document
    const KvSpan& place = reuse->documents[static_cast<size_t>(reused.num_documents)];
    return place.end - place.begin;
  }
  bool has_repetitions() const { return num_compressions == 0 && num_repetitions < compression.repetitions.size(); }
  // Whether the tokens to compute next are those of a repetition.
  bool repeats() const { return has_repetitions() && num_computed == next_compression()->num_tokens; }
  bool awaits_compression() const { return awaits_compression_after(0); }
  // With so many tokens more, that are computable, computed.
  bool awaits_compression_after(int32_t num_more) const {
    const KvCompressionPoint* next = next_compression();
    if (next == nullptr || reuses()) return false;
    if (!has_repetitions()) return num_computed + num_more == next->num_tokens;
    const bool is_last = num_repetitions + 1 == compression.repetitions.size();
    return repeats() && is_last && num_more == num_computable();
  }
  // What may be computed in one slice: none goes beyond a point before entries are judged there, nor beyond a
  // repetition, a pass of the reuse plan or what comes before these.
  int32_t num_computable() const {
    if (reuses()) return num_left_of(next_pass());
    if (reuse && !reused.is_over) return reuse->begin() - num_computed;
    if (repeats()) return compression.repetitions[num_repetitions] - num_repeated;
    const KvCompressionPoint* next = next_compression();
    return next == nullptr ? num_uncomputed() : std::min(num_uncomputed(), next->num_tokens - num_computed);
  }
  // Until it generates its next token: what no plan has yet, the repetitions included. Tokens of documents count until
  // all passes are over: some are computed more than once, most perhaps not at all.
  int32_t num_unplanned() const {
    int32_t count = num_uncomputed() - num_planned;
    if (!has_repetitions()) return count;
    const std::vector<int32_t>& lengths = compression.repetitions;
    return std::accumulate(lengths.begin() + static_cast<std::ptrdiff_t>(num_repetitions), lengths.end(),
                           count - num_repeated);
  }
  // Tokens from the beginning that it may find in the prefix cache; and that it leaves there.
  int32_t num_attachable() const {
    const int32_t most = std::min(num_tokens() - 1, num_shareable());
    if (compression.points.empty() && !compression.pressure) return most;
    // Under pressure it may be judged for the first time when all its tokens but the last generated one are
    // computed.
    const int32_t first_judged =
        compression.points.empty() ? std::max(num_prompt_tokens, num_tokens() - 1) : compression.points[0].num_tokens;
    return std::min(most, std::max(0, first_judged - compression.num_query_tokens));
  }
  int32_t num_publishable() const {
    const int32_t most = num_shareable();
    return compression.points.empty() ? most : std::min(most, compression.points[0].num_tokens);
  }
  int32_t num_shareable() const {
    if (reuse) return reuse->begin();
    return private_generation ? num_prompt_tokens : num_tokens();
  }
  // The last token that a sequence may have is sampled, never computed.
  int32_t max_entries() const { return max_tokens - 1; }
};

// The order of service: priority, then arrival. Total, so there is always one most valuable sequence.
struct MoreValuable {
  bool operator()(const Sequence* a, const Sequence* b) const {
    return a->priority != b->priority ? a->priority > b->priority : a->id < b->id;
  }
};

// Blocks that each table needs for `num_tokens` entries.
inline int64_t num_block_rows(int64_t num_tokens) { return (num_tokens + kKvBlockSize - 1) / kKvBlockSize; }

// `num_tokens` rounded down to whole blocks.
inline int32_t whole_block_tokens(int32_t num_tokens) { return num_tokens / kKvBlockSize * kKvBlockSize; }

}  // namespace witan
