#include "engine/kv_compressor.h"

#include <algorithm>
#include <span>

#include "base/error.h"
#include "kv/policy/key_channels.h"

namespace witan {

RunningKvPolicy running_policy(const KvRequest& request) {
  RunningKvPolicy kv;
  kv.policy = request.policy;
  kv.text = request.text;
  kv.most_judged = request.most_judged;
  kv.under_pressure = request.compression.pressure.has_value();
  kv.demotion = request.compression.demotion;
  return kv;
}

void KvCompressor::begin(SequenceId sequence, RunningKvPolicy& kv) {
  kv.evidence = {};  // of an earlier run, whose end a failing schedule did not tell
  collect_evidence(sequence, kv, 0);
}

// Where entries may be judged at any time, the window is of the last tokens that there are behind the slice.
void KvCompressor::follow_text(const ScheduledSlice& slice, RunningKvPolicy& kv) {
  QueryWindow* window = kv.evidence.window.get();
  if (window == nullptr || !kv.under_pressure) return;
  const int32_t end = slice.first_token + slice.num_tokens;
  const int32_t first = std::max(kv.num_judged_tokens, end - window->max_tokens());
  window->move_to(first, end - first);
}

// What the policy wants of the tokens from first_token to where it judges next, or may.
void KvCompressor::collect_evidence(SequenceId sequence, RunningKvPolicy& kv, int32_t first_token) {
  if (!kv.policy) return;
  KvEvidence& evidence = kv.evidence;
  const std::optional<KvCompressionPoint> point = scheduler_.next_judgement(sequence);
  const bool goes_on = kv.num_judged_tokens == first_token && evidence.window != nullptr;
  kv.num_judged_tokens = first_token;
  kv.error.clear();
  try {
    if (kv.policy->pages && evidence.pages == nullptr) {
      evidence.pages = model_.make_page_bounds(*kv.policy->pages, scheduler_.max_tokens(sequence));
    }
    if (!point && !kv.under_pressure) {
      evidence.window.reset();
      evidence.mass.reset();
      evidence.moments.reset();
      evidence.value_norms.reset();
      evidence.repetition.reset();
      return;
    }
    const KvWants wants = kv.policy->wants();
    if (wants.num_query_tokens > 0 && kv.under_pressure && evidence.window == nullptr) {
      evidence.window = model_.make_query_window(0, std::min(wants.num_query_tokens, kv.most_judged));
    } else if (wants.num_query_tokens > 0 && !kv.under_pressure) {
      int32_t num_tokens = std::min(wants.num_query_tokens, point->num_tokens - first_token);
      if (goes_on) num_tokens = std::min(num_tokens, evidence.window->max_tokens());  // it has the last of them
      if (evidence.window == nullptr || evidence.window->max_tokens() < num_tokens) {
        evidence.window.reset();
        evidence.window = model_.make_query_window(point->num_tokens - num_tokens, num_tokens);
      }
      evidence.window->move_to(point->num_tokens - num_tokens, num_tokens);
    }
    if (kv.most_judged == 0) return;  // channels are chosen, and nothing is judged
    if (wants.attention_mass && evidence.mass == nullptr) evidence.mass = model_.make_attention_mass(kv.most_judged);
    if (wants.moments && evidence.moments == nullptr) evidence.moments = model_.make_query_moments(*wants.moments);
    if (wants.value_norms && evidence.value_norms == nullptr) {
      evidence.value_norms = model_.make_value_norms(kv.most_judged);
    }
    if (wants.repetitions && evidence.repetition == nullptr) {
      evidence.repetition = model_.make_repetition_attention(kv.most_judged, *wants.repetitions);
    }
  } catch (const Error& error) {
    evidence = {};
    kv.error = error.what();
  }
}

KvDecision KvCompressor::decide(const ScheduledSlice& slice, const RunningKvPolicy& kv, std::mutex& mutex) {
  if (!kv.error.empty()) throw Error(ErrorCode::kOutOfMemory, kv.error);
  if (!slice.judges) return {};
  {
    const std::lock_guard lock(mutex);
    model_.kv().gather_aside(slice.kv_sequence);
  }
  const auto choose = [&]() -> KvDecision {
    return {.choice = model_.choose_kept(slice.kv_sequence, kv.text, *kv.policy, &kv.evidence)};
  };
  try {
    return choose();
  } catch (const Error&) {  // what the prefix cache holds can be had
    const std::lock_guard lock(mutex);
    model_.kv().clear_prefix_cache();
  }
  return choose();
}

bool KvCompressor::apply(const ScheduledSlice& slice, const RunningKvPolicy& kv, KvDecision& decision,
                         std::vector<SequenceId>& preempted) {
  decision.uses_evidence = slice.judges || chooses_channels(slice.kv_sequence, kv);
  bool drops = slice.judges;  // once: what is kept of it may have to be demoted again
  const auto act = [&](SequenceId kv_sequence) {
    if (kv.policy->demotes_others) return demote(kv_sequence, kv, &decision.choice);
    if (drops && !drop(slice, kv, decision.choice)) return false;
    drops = false;
    return !kv.demotion || demote(kv_sequence, kv, nullptr);
  };
  return scheduler_.compress(slice.sequence, act, preempted);
}

// What is not kept is lost, or set aside if entries will be judged again.
bool KvCompressor::drop(const ScheduledSlice& slice, const RunningKvPolicy& kv, const KvChoice& choice) {
  KvCache& cache = model_.kv();
  const SequenceId sequence = slice.kv_sequence;
  const int32_t num_aside = kv.policy->aside ? scheduler_.next_judgement(slice.sequence)->num_aside : 0;
  if (num_aside > 0) return cache.set_aside(sequence, choice.kept, *kv.policy->aside, num_aside);
  if (!cache.has_aside(sequence)) return cache.keep(sequence, choice.kept, choice.merges);
  const bool is_done = cache.set_aside(sequence, choice.kept, *kv.policy->aside, cache.num_tokens(sequence));
  if (is_done) cache.drop_aside(sequence);
  return is_done;
}

// Whether it is demoted for the first time, and keys lose channels then.
bool KvCompressor::chooses_channels(SequenceId kv_sequence, const RunningKvPolicy& kv) const {
  return kv.demotion && !kv.demotion->key_dims.empty() && !model_.kv().has_channels(kv_sequence);
}

bool KvCompressor::demote(SequenceId kv_sequence, const RunningKvPolicy& kv, const KvChoice* choice) {
  KvCache& cache = model_.kv();
  if (chooses_channels(kv_sequence, kv)) {
    cache.choose_channels(kv_sequence, choose_key_channels(model_.isa(), model_.threads(), cache, kv_sequence,
                                                           *kv.demotion, *kv.evidence.window));
  }
  if (choice != nullptr) {
    return cache.demote_others(kv_sequence, choice->kept, *kv.demotion, model_.isa(), model_.threads());
  }
  return cache.demote(kv_sequence, *kv.demotion, model_.isa(), model_.threads());
}

void KvCompressor::go_on(const ScheduledSlice& slice, RunningKvPolicy& kv, const KvDecision& decision) {
  const int32_t num_tokens = model_.kv().num_tokens(slice.kv_sequence);
  if (slice.judges && !model_.kv().has_aside(slice.kv_sequence)) keep_evidence(kv.evidence, decision.choice);
  // Pages of what is generated keep the bounds of entries that are only demoted. Those of a prompt are learned of it as
  // it is kept for later requests.
  PageBounds* pages = kv.evidence.pages.get();
  if (pages != nullptr && (slice.judges || num_tokens <= scheduler_.num_prompt_tokens(slice.sequence))) {
    pages->learn_anew(model_.isa(), model_.threads(), model_.kv(), slice.kv_sequence);
  }
  if (decision.uses_evidence) {
    collect_evidence(slice.sequence, kv, slice.judges ? num_tokens : kv.num_judged_tokens);
  }
}

void KvCompressor::keep_evidence(KvEvidence& evidence, const KvChoice& choice) const {
  const std::span<const KvLayerSpec> layers = model_.info().kv_layers;
  if (evidence.mass != nullptr) evidence.mass->keep(layers, choice.kept);
  if (evidence.value_norms != nullptr) evidence.value_norms->keep(layers, choice.kept, choice.merges);
}

KvCompression KvCompressor::report(const ScheduledSlice& slice, const KvDecision& decision,
                                   const KvCompression* last) const {
  const int32_t num_tokens = model_.kv().num_tokens(slice.kv_sequence);
  const bool is_first = last == nullptr || last->num_tokens >= num_tokens;  // or computed again
  KvCompression compression = is_first ? KvCompression() : *last;
  if (slice.judges) {
    ++compression.num_times;
    compression.attention_kept = decision.choice.attention_kept;
    compression.fell_back = decision.choice.fell_back;
  }
  compression.num_tokens = num_tokens;
  count_held(slice.kv_sequence, compression);
  return compression;
}

void KvCompressor::count_held(SequenceId kv_sequence, KvCompression& report) const {
  const KvCache& kv = model_.kv();
  const int64_t held_bytes = kv.held_bytes(kv_sequence);
  report.bytes_hidden = std::max(report.bytes_hidden, kv.aside_block_bytes(kv_sequence));
  report.bytes_offloaded = std::max(report.bytes_offloaded, kv.aside_file_bytes(kv_sequence));
  report.bytes_after = report.bytes_hidden > 0 ? std::max(report.bytes_after, held_bytes) : held_bytes;
  report.bytes_before = held_bytes - kv.aside_block_bytes(kv_sequence);
  report.kept.clear();
  report.demoted.clear();
  report.bytes.clear();
  for (int32_t layer = 0; layer < std::ssize(kv.config().layers); ++layer) {
    const KvLayerSpec& spec = kv.config().layers[static_cast<size_t>(layer)];
    if (spec.window > 0) continue;
    report.kept.emplace_back();
    report.demoted.emplace_back();
    report.bytes.emplace_back();
    for (int32_t head = 0; head < spec.num_kv_heads; ++head) {
      const int32_t num_entries = kv.num_entries(kv_sequence, layer, head);
      report.kept.back().push_back(num_entries);
      report.demoted.back().push_back(kv.num_demoted(kv_sequence, layer, head));
      const KvView view = kv.view(kv_sequence, layer, head, num_entries);
      report.bytes.back().push_back(view.block_bytes());
      report.bytes_before +=
          view.format.block_bytes() * ((report.num_tokens + kKvBlockSize - 1) / kKvBlockSize) - view.block_bytes();
    }
  }
}

}  // namespace witan
