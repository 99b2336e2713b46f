// The bytes of the KV cache that sequences hold and need.
#include <algorithm>
#include <utility>
#include <vector>

#include "sched/scheduler_state.h"

namespace witan {

// What the sequence and all running ones are short of for their tokens and `horizon` more each: the steps that all
// prefills take, in each of which the others decode a token, and a block after that.
int64_t Scheduler::State::missing_bytes(const Sequence& sequence, int32_t num_attached, int64_t attached_bytes,
                                        int64_t available_bytes) const {
  if (running.empty()) return 0;  // add() saw to that
  int64_t num_prefill_tokens = sequence.num_unplanned() - num_attached;
  for (const Sequence* other : running) num_prefill_tokens += other->num_unplanned();
  const int64_t tokens_per_chunk =
      std::min<int64_t>(config.max_step_tokens - std::ssize(running), config.max_mixed_prompt_tokens);
  int64_t num_chunks = num_prefill_tokens / std::max<int64_t>(tokens_per_chunk, 1) + 1 + sequence.num_passes_left();
  for (const Sequence* other : running) num_chunks += other->num_passes_left();
  const int64_t horizon = num_chunks * pace.num_steps_per_chunk + kKvBlockSize;

  const auto bytes_to_come = [&](const Sequence& s, int64_t num_uncomputed, int64_t held_bytes) {
    const int64_t num_tokens = std::min<int64_t>(s.max_entries(), s.num_tokens() + horizon);
    const int64_t chunk = std::clamp<int64_t>(num_uncomputed, 1, config.max_step_tokens);
    return std::max<int64_t>(0, peak_bytes(s, num_tokens, chunk) - held_bytes);
  };
  int64_t bytes = kv.bytes_for_input(sequence.input);
  bytes += bytes_to_come(sequence, sequence.num_tokens() - num_attached, attached_bytes);
  for (const Sequence* other : running) {
    int64_t held_bytes = kv.held_bytes(*other->kv_sequence);
    if (other->reused.document) held_bytes += kv.held_bytes(*other->reused.document);
    bytes += bytes_to_come(*other, other->num_unplanned(), held_bytes);
  }
  const int64_t side_bytes = sequence.side_bytes + side_bytes_to_come;
  const int64_t missing_memory = side_bytes == 0 ? 0 : bytes + side_bytes - kv.available_memory_bytes();
  return std::max({int64_t{0}, bytes - available_bytes, missing_memory});
}

// The most that it needs when nobody else runs: all its entries, or where these may be judged when there is no room,
// those of its prompt, and what is left when they are judged with what comes until they may be judged again, or at
// least a block, so that something is free then.
int64_t Scheduler::State::bytes_alone(const Sequence& s) const {
  const int64_t dense_bytes = peak_bytes(s, s.max_entries(), 1);
  const std::optional<KvPressure>& pressure = s.compression.pressure;
  if (!pressure || s.compression.may_keep_all) return dense_bytes;
  const int64_t uneven = s.compression.is_average ? kKvBlockSize : 0;
  const int64_t most_entries =
      int64_t{pressure->budget.of(s.max_entries())} + std::max(pressure->every, kKvBlockSize) + uneven;
  const int64_t judged_bytes = std::max({kv.bytes_for_entries(most_entries, s.max_entries(), 1),
                                         kv.bytes_for_tokens(s.num_prompt_tokens, 1), reuse_bytes(s)});
  return std::min(dense_bytes, judged_bytes);
}

// Of the text up to the end of its documents, and one of these by itself, as long as there are passes to come.
int64_t Scheduler::State::reuse_bytes(const Sequence& s) const {
  if (!s.reuse || s.reused.is_over) return 0;
  return kv.bytes_for_tokens(s.reuse->end()) + kv.bytes_for_tokens(s.reuse->longest_document());
}

// The most that a sequence holds until num_tokens of it are computed, from now on.
int64_t Scheduler::State::peak_bytes(const Sequence& s, int64_t num_tokens, int64_t chunk) const {
  int64_t num_dropped = s.num_dropped;
  int64_t num_demoted = s.num_demoted;
  const auto bytes_at = [&](int64_t so_far) {
    // Where heads keep different numbers, of all entries or of the demoted ones, the last block of each may be filled
    // less.
    const bool differs = s.compression.is_average || s.compression.demotion;
    const bool is_judged = num_dropped > 0 || (s.compression.demotes_others && num_demoted > 0);
    const int64_t uneven = differs && is_judged ? kKvBlockSize : 0;
    const int64_t demoted_bytes =
        num_demoted == 0 ? 0 : kv.demoted_bytes(*s.compression.demotion, num_demoted + uneven);
    return kv.bytes_for_entries(so_far - num_dropped - num_demoted + uneven, so_far, chunk) + demoted_bytes;
  };
  int64_t aside_bytes = s.num_compressions == 0 ? 0 : bytes_aside(s, s.compression.points[s.num_compressions - 1]);
  int64_t peak = reuse_bytes(s);
  for (size_t i = s.num_compressions; i < s.compression.points.size(); ++i) {
    const KvCompressionPoint& point = s.compression.points[i];
    if (point.num_tokens > num_tokens) break;
    // What is kept of shared blocks is copied while they are still held.
    const bool copies = num_dropped == 0 && num_demoted == 0 && kv.config().prefix_cache;
    const int64_t held_bytes = bytes_at(point.num_tokens) + aside_bytes;
    peak = std::max(peak, held_bytes + (copies ? copied_bytes(s, point) : 0) + beginning_bytes(s, point, i == 0));
    if (i == 0) {  // windows do not go on while entries are not committed
      const int64_t repeated = s.compression.longest_repetition(s.num_repetitions);
      peak = std::max(peak, kv.bytes_for_tokens(point.num_tokens + repeated, std::max(chunk, repeated)));
    }
    if (!s.compression.may_keep_all && !s.compression.demotes_others) num_dropped = point.num_tokens - point.num_kept;
    // The last time they come back from where they lie, which is free after that.
    peak = std::max(peak, bytes_at(point.num_tokens) + aside_bytes);
    aside_bytes = bytes_aside(s, point);
    if (!s.compression.demotion) continue;
    // Demoted entries take their room before that of the others is free, and what stays of shared blocks is copied.
    const int64_t num_kept = point.num_tokens - num_dropped;
    if (s.compression.demotes_others) {
      const int64_t uneven = s.compression.is_average ? kKvBlockSize : 0;
      const int64_t rounded_bytes =
          kv.demoted_bytes(*s.compression.demotion, point.num_tokens - point.num_kept + uneven);
      peak = std::max(peak, held_bytes + rounded_bytes + (copies ? copied_bytes(s, point) : 0));
      num_demoted = s.compression.num_demoted(point, num_kept);
      continue;
    }
    const int64_t num_before = std::exchange(num_demoted, s.compression.num_demoted(point, num_kept));
    const int64_t demoted_bytes = kv.demoted_bytes(*s.compression.demotion, num_demoted - num_before);
    peak = std::max(peak,
                    num_before == 0 && copies ? held_bytes + bytes_at(point.num_tokens) : held_bytes + demoted_bytes);
  }
  return std::max(peak, bytes_at(num_tokens) + aside_bytes);
}

// More than that, where entries are hidden for the first time: the blocks that are not there yet of those that lie
// aside, and without a prefix cache, which has copies counted anyway, what is read.
int64_t Scheduler::State::beginning_bytes(const Sequence& s, const KvCompressionPoint& point, bool is_first) const {
  if (!is_first || bytes_aside(s, point) == 0) return 0;
  const int64_t uneven = s.compression.is_average ? kKvBlockSize : 0;
  const int64_t read_bytes = kv.config().prefix_cache ? 0 : kv.bytes_for_entries(point.num_kept + uneven, 0, 1);
  return bytes_aside(s, point) - kv.bytes_for_entries(point.num_tokens, 0, 1) + read_bytes;
}

// Of blocks that a sequence has aside once it is past a point.
int64_t Scheduler::State::bytes_aside(const Sequence& s, const KvCompressionPoint& point) const {
  return s.compression.aside == KvAside::kBlocks ? kv.bytes_for_entries(point.num_aside, 0, 1) : 0;
}

// Of the entries that are left at a point, and of the windows of layers that have one.
int64_t Scheduler::State::copied_bytes(const Sequence& s, const KvCompressionPoint& point) const {
  if (!point.judges) return 0;
  const int64_t uneven = s.compression.is_average ? kKvBlockSize : 0;
  return kv.bytes_for_entries(point.num_kept + uneven, point.num_tokens, 1);
}

// Of the kv heads that may lose entries, rounded up.
int32_t Scheduler::State::mean_entries(SequenceId kv_sequence) const {
  const auto [sum, num_heads] =
      sum_over_heads([&](int32_t layer, int32_t head) { return kv.num_entries(kv_sequence, layer, head); });
  if (num_heads == 0) return kv.num_tokens(kv_sequence);
  return static_cast<int32_t>((sum + num_heads - 1) / num_heads);
}

// Of the same, rounded down.
int64_t Scheduler::State::mean_demoted(SequenceId kv_sequence) const {
  const auto [sum, num_heads] =
      sum_over_heads([&](int32_t layer, int32_t head) { return kv.num_demoted(kv_sequence, layer, head); });
  return num_heads == 0 ? 0 : sum / num_heads;
}

Scheduler::State::HeadSum Scheduler::State::sum_over_heads(
    FunctionRef<int64_t(int32_t layer, int32_t head)> value) const {
  HeadSum of_heads;
  for (int32_t layer = 0; layer < std::ssize(kv.config().layers); ++layer) {
    const KvLayerSpec& spec = kv.config().layers[static_cast<size_t>(layer)];
    if (spec.window > 0) continue;
    for (int32_t head = 0; head < spec.num_kv_heads; ++head) of_heads.sum += value(layer, head);
    of_heads.num_heads += spec.num_kv_heads;
  }
  return of_heads;
}

// 0 for one that was not refused.
int64_t Scheduler::State::missing_since_refusal(const Sequence& sequence) const {
  if (!refusal || refusal->sequence != sequence.id) return 0;
  return missing_bytes(sequence, refusal->num_attached, kv.bytes_for_tokens(refusal->num_attached, 0),
                       kv.available_bytes() - refusal->attached_bytes);
}

int64_t Scheduler::final_bytes() const {
  int64_t bytes = 0;
  for (const auto& [id, sequence] : state_->sequences) {
    const CompressionPlan& compression = sequence->compression;
    if (compression.aside == KvAside::kBlocks && compression.points.size() > 1) {
      bytes +=
          state_->peak_bytes(*sequence, sequence->max_entries(), 1);  // until its last point, not much before its end
      continue;
    }
    const KvCompressionPoint last = compression.points.empty() ? KvCompressionPoint() : compression.points.back();
    const bool drops = !compression.may_keep_all && !compression.demotes_others;
    const int32_t num_dropped = drops ? last.num_tokens - last.num_kept : 0;
    const int64_t num_entries = sequence->max_entries() - num_dropped;
    // Later ones stay as they are.
    const int64_t num_demoted = compression.num_demoted(last, last.num_tokens - num_dropped);
    bytes += state_->kv.bytes_for_entries(num_entries - num_demoted, sequence->max_entries(), 1);
    if (num_demoted > 0) bytes += state_->kv.demoted_bytes(*compression.demotion, num_demoted);
  }
  return bytes;
}

}  // namespace witan
