#include "kv/policy/kv_compression.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "kernels/elementwise/elementwise.h"
#include "kv/policy/attention_shares.h"
#include "kv/policy/entry_selection.h"
#include "kv/policy/value_merging.h"

namespace witan {
namespace {

// A kv head whose entries are judged.
struct JudgedHead {
  int32_t num_entries;
  float* scores;         // [num_entries]
  float* second_scores;  // [num_entries] of policies with a second stage, else nullptr
};

struct JudgedLayer {
  int32_t layer;
  int32_t first_table;  // among all layers' tables
  std::vector<JudgedHead> heads;

  int32_t num_heads() const { return static_cast<int32_t>(heads.size()); }
};

// One head of one of them, in the hands of a thread.
struct HeadTask {
  const KvCache& kv;
  SequenceId sequence;
  const KvEvidence* collected;
  Isa isa;

  HeadEvidence evidence(const JudgedLayer& judged, int32_t head, const float** rows, int32_t* positions) const {
    HeadEvidence evidence{.isa = isa, .view = kv.all_entries(sequence, judged.layer, head)};
    if (collected == nullptr) return evidence;
    if (collected->moments != nullptr) {
      evidence.moments = collected->moments.get();
      evidence.layer = judged.layer;
      evidence.group = collected->moments->num_heads() / judged.num_heads();
      evidence.first_query_head = head * evidence.group;
    }
    if (collected->mass != nullptr) evidence.mass = collected->mass->of(judged.layer, head);
    if (collected->repetition != nullptr) evidence.repetition = collected->repetition->of(judged.layer, head);
    const QueryWindow* queries = collected->window.get();
    if (queries == nullptr) return evidence;
    evidence.group = queries->num_heads() / judged.num_heads();
    const QueryWindow::Scoring& scoring = queries->scoring(judged.layer);
    int32_t row = 0;
    for (int32_t i = 0; i < queries->num_tokens(); ++i) {
      const int32_t token = queries->first_token() + i;
      for (int32_t g = 0; g < evidence.group; ++g, ++row) {
        rows[row] = queries->queries(judged.layer, token) + int64_t{head * evidence.group + g} * queries->key_dim();
        positions[row] = token;
      }
    }
    evidence.queries = {.queries = rows, .positions = positions, .num_rows = row, .scale = scoring.scale};
    if (scoring.sinks != nullptr) evidence.sinks = scoring.sinks + int64_t{head} * evidence.group;
    return evidence;
  }
};

// What a layer's heads say together, in all of them.
void add_up_heads(Isa isa, const JudgedLayer& judged) {
  const JudgedHead& first = judged.heads[0];
  for (const JudgedHead& head : std::span(judged.heads).subspan(1)) {
    WITAN_CHECK(head.num_entries == first.num_entries, "heads that agree have {} and {} entries", first.num_entries,
                head.num_entries);
    add(isa, head.scores, first.num_entries, first.scores);
  }
  for (const JudgedHead& head : std::span(judged.heads).subspan(1)) {
    std::copy_n(first.scores, first.num_entries, head.scores);
  }
}

std::vector<JudgedLayer> judged_layers(Scratch& scratch, const KvCache& kv, SequenceId sequence,
                                       const KvPolicy& policy) {
  std::vector<JudgedLayer> layers;
  int32_t num_tables = 0;
  for (int32_t layer = 0; layer < std::ssize(kv.config().layers); ++layer) {
    const KvLayerSpec& spec = kv.config().layers[static_cast<size_t>(layer)];
    if (spec.window == 0) {
      layers.push_back({.layer = layer, .first_table = num_tables, .heads = {}});
      for (int32_t head = 0; head < spec.num_kv_heads; ++head) {
        const int32_t num_entries = kv.all_entries(sequence, layer, head).num_entries;
        layers.back().heads.push_back(
            {.num_entries = num_entries,
             .scores = scratch.allocate<float>(num_entries),
             .second_scores = policy.second_stage ? scratch.allocate<float>(num_entries) : nullptr});
      }
    }
    num_tables += spec.num_kv_heads;
  }
  return layers;
}

// The entries of a head that are of the first num_tokens tokens.
int32_t num_entries_of(const KvView& view, int32_t num_tokens) {
  if (view.positions == nullptr) return std::min(num_tokens, view.num_entries);
  return static_cast<int32_t>(std::lower_bound(view.positions, view.positions + view.num_entries, num_tokens) -
                              view.positions);
}

// A sequence in front of a policy.
class Judge {
 public:
  Judge(ComputeContext& ctx, const KvCache& kv, SequenceId sequence, const KvText& text, const KvPolicy& policy,
        const KvEvidence* evidence)
      : ctx_(ctx),
        kv_(kv),
        sequence_(sequence),
        text_(text),
        policy_(policy),
        evidence_(evidence),
        queries_(evidence == nullptr ? nullptr : evidence->window.get()),
        judged_(judged_layers(ctx.scratch, kv, sequence, policy)),
        task_{.kv = kv, .sequence = sequence, .collected = evidence, .isa = ctx.isa} {}

  KvChoice choose() {
    int64_t num_tables = 0;
    for (const KvLayerSpec& layer : kv_.config().layers) num_tables += layer.num_kv_heads;
    KvChoice choice{.kept = std::vector<std::vector<int32_t>>(static_cast<size_t>(num_tables))};
    if (judged_.empty()) return choice;
    score();
    const int32_t num_prompt = std::min(kv_.num_tokens(sequence_), text_.num_prompt_tokens);  // so far
    const int32_t num_generated = kv_.num_tokens(sequence_) - num_prompt;
    const bool apart = policy_.generated_budget && num_generated > 0;
    const int32_t num_kept =
        apart ? policy_.num_generated_kept(num_generated) : policy_.num_kept(num_prompt, num_generated);
    std::vector<std::vector<int32_t>> selected = select(apart, num_kept);
    if (policy_.guard > 0.0) {
      choice.attention_kept = attention_kept(selected);
      choice.fell_back = *choice.attention_kept < policy_.guard;
    }
    size_t next = 0;
    for (const JudgedLayer& layer : judged_) {
      for (int32_t head = 0; head < layer.num_heads(); ++head) {
        std::vector<int32_t>& kept = choice.kept[static_cast<size_t>(int64_t{layer.first_table} + head)];
        kept = std::move(selected[next++]);
        if (!choice.fell_back) continue;
        kept.resize(static_cast<size_t>(layer.heads[static_cast<size_t>(head)].num_entries));
        std::iota(kept.begin(), kept.end(), 0);
      }
    }
    if (policy_.merging && !choice.fell_back) merge(choice);
    return choice;
  }

 private:
  // Calls body(layer, head, evidence, scratch) for the heads of every step-th layer, on all threads; scratch has
  // scratch_floats_of(evidence).
  template <typename ScratchFloats, typename Body>
  void for_heads(int32_t step, const ScratchFloats& scratch_floats_of, const Body& body) {
    struct Item {
      const JudgedLayer* judged;
      int32_t head;
    };
    std::vector<Item> items;
    for (size_t i = 0; i < judged_.size(); i += static_cast<size_t>(step)) {
      for (int32_t head = 0; head < judged_[i].num_heads(); ++head) {
        items.push_back({.judged = &judged_[i], .head = head});
      }
    }
    const ScratchScope scope(ctx_.scratch);
    const int64_t num_rows = queries_ == nullptr ? 0 : int64_t{queries_->num_tokens()} * queries_->num_heads();
    const int num_threads = ctx_.threads.num_threads();
    auto** rows = ctx_.scratch.allocate<const float*>(num_rows * num_threads);
    auto* positions = ctx_.scratch.allocate<int32_t>(num_rows * num_threads);
    int64_t scratch_floats = 0;
    for (const Item& item : items) {
      scratch_floats =
          std::max(scratch_floats, scratch_floats_of(task_.evidence(*item.judged, item.head, rows, positions)));
    }
    scratch_floats = (scratch_floats + 15) / 16 * 16;
    auto* scratch = ctx_.scratch.allocate<float>(scratch_floats * num_threads);
    ctx_.threads.parallel_for(std::ssize(items), [&](int64_t i, int thread) {
      const Item& item = items[static_cast<size_t>(i)];
      body(*item.judged, item.head,
           task_.evidence(*item.judged, item.head, rows + thread * num_rows, positions + thread * num_rows),
           scratch + thread * scratch_floats);
    });
  }

  void score() {
    const int32_t num_query_tokens = policy_.scorer->wants().num_query_tokens;
    for_heads(
        policy_.reused_layers,
        [&](const HeadEvidence& head) {
          return policy_.scorer->scratch_floats(head.with_last_queries(num_query_tokens));
        },
        [&](const JudgedLayer& layer, int32_t head, const HeadEvidence& evidence, float* scratch) {
          const JudgedHead& judged = layer.heads[static_cast<size_t>(head)];
          policy_.scorer->score(evidence.with_last_queries(num_query_tokens),
                                {judged.scores, static_cast<size_t>(judged.num_entries)}, scratch);
          if (policy_.second_stage) judge_twice(*policy_.second_stage, layer.layer, head, judged);
        });
    for (size_t i = 0; i < judged_.size(); i += static_cast<size_t>(policy_.reused_layers)) {
      if (policy_.heads_agree) add_up_heads(ctx_.isa, judged_[i]);
      pin(judged_[i]);
    }
  }

  void judge_twice(const KvSecondStage& stage, int32_t layer, int32_t head, const JudgedHead& judged) const {
    ValueNorms& norms = *evidence_->value_norms;
    WITAN_CHECK(norms.num_known(layer, head) == judged.num_entries, "the weight of {} values, {} entries",
                norms.num_known(layer, head), judged.num_entries);
    const float* weights = norms.of(layer, head);
    const auto epsilon = static_cast<float>(stage.epsilon);
    for (int32_t i = 0; i < judged.num_entries; ++i) {
      judged.second_scores[i] = (judged.scores[i] + epsilon) * weights[i];
    }
  }

  void pin(const JudgedLayer& layer) {
    for (int32_t head = 0; head < layer.num_heads(); ++head) {
      const auto& [num_entries, scores, second_scores] = layer.heads[static_cast<size_t>(head)];
      const KvView view = kv_.all_entries(sequence_, layer.layer, head);
      for (const KvSpan& span : text_.pinned) {
        const int32_t end = num_entries_of(view, span.end);
        for (int32_t i = num_entries_of(view, span.begin); i < end; ++i) {
          scores[i] = std::numeric_limits<float>::infinity();
          if (second_scores != nullptr) second_scores[i] = scores[i];
        }
      }
    }
  }

  std::vector<std::vector<int32_t>> select(bool prompt_is_fixed, int32_t num_kept) const {
    const std::vector<LayerScores> scores = layer_scores(prompt_is_fixed);
    if (!prompt_is_fixed || !policy_.generated_grows) {
      return select_entries(policy_, scores, num_kept, text_.span_starts);
    }
    KvPolicy of_pool = policy_;  // the recent tokens are as many as when it has its whole budget
    of_pool.num_recent = policy_.num_recent_of_pool();
    of_pool.recent_share = 0.0;
    return select_entries(of_pool, scores, num_kept, text_.span_starts);
  }

  std::vector<LayerScores> layer_scores(bool prompt_is_fixed) const {
    std::vector<LayerScores> scores;
    for (size_t i = 0; i < judged_.size(); ++i) {
      const JudgedLayer& layer = judged_[i];
      const JudgedLayer& scored = judged_[i - i % static_cast<size_t>(policy_.reused_layers)];
      WITAN_CHECK(scored.num_heads() == layer.num_heads(), "layers {} and {} have {} and {} kv heads", scored.layer,
                  layer.layer, scored.num_heads(), layer.num_heads());
      scores.emplace_back();
      for (int32_t head = 0; head < layer.num_heads(); ++head) {
        const auto& [num_entries, of_head, second_scores] = scored.heads[static_cast<size_t>(head)];
        WITAN_CHECK(num_entries == layer.heads[static_cast<size_t>(head)].num_entries,
                    "layers {} and {}, head {} have {} and {} entries", scored.layer, layer.layer, head, num_entries,
                    layer.heads[static_cast<size_t>(head)].num_entries);
        const KvView view = kv_.all_entries(sequence_, layer.layer, head);
        scores.back().push_back({.scores = of_head,
                                 .num_entries = num_entries,
                                 .num_fixed = prompt_is_fixed ? num_entries_of(view, text_.num_prompt_tokens) : 0,
                                 .second_scores = second_scores});
      }
    }
    return scores;
  }

  void merge(KvChoice& choice) {
    choice.merges.resize(choice.kept.size());
    size_t most_kept = 0;
    for (const std::vector<int32_t>& kept : choice.kept) most_kept = std::max(most_kept, kept.size());
    for_heads(
        1,
        [&](const HeadEvidence& head) {
          return plan_merge_scratch(*policy_.merging, head, static_cast<int32_t>(most_kept));
        },
        [&](const JudgedLayer& layer, int32_t index, const HeadEvidence& head, float* scratch) {
          const auto table = static_cast<size_t>(int64_t{layer.first_table} + index);
          const HeadEvidence evidence = head.with_last_queries(num_last_tokens());
          choice.merges[table] =
              plan_merge(*policy_.merging, evidence, choice.kept[table], layer.layer, index, scratch);
        });
  }

  // Of the attention of the last tokens, the share that goes to `kept` [judged heads], on average over heads and
  // tokens.
  double attention_kept(std::span<const std::vector<int32_t>> kept) {
    std::vector<double> of_heads(kept.size());
    std::vector<size_t> first_heads;
    for (size_t first = 0; const JudgedLayer& layer : judged_) {
      first_heads.push_back(first);
      first += layer.heads.size();
    }
    for_heads(
        1,
        [](const HeadEvidence& head) {
          return attention_shares_scratch(head.view) + attention_shares_floats(head.view);
        },
        [&](const JudgedLayer& layer, int32_t index, const HeadEvidence& head, float* scratch) {
          float* shares = scratch + attention_shares_scratch(head.view);
          attention_shares(head.with_last_queries(num_last_tokens()), shares, scratch);
          const size_t table = first_heads[static_cast<size_t>(&layer - judged_.data())] + static_cast<size_t>(index);
          for (const int32_t entry : kept[table]) of_heads[table] += static_cast<double>(shares[entry]);
        });
    return std::accumulate(of_heads.begin(), of_heads.end(), 0.0) / static_cast<double>(of_heads.size());
  }

  // Whose attention says what an entry is worth; the window may be of more, by whose queries channels are chosen.
  int32_t num_last_tokens() const { return std::max(kKvLastTokens, policy_.scorer->wants().num_query_tokens); }

  ComputeContext& ctx_;
  const KvCache& kv_;
  SequenceId sequence_;
  const KvText& text_;
  const KvPolicy& policy_;
  const KvEvidence* evidence_;
  const QueryWindow* queries_;
  std::vector<JudgedLayer> judged_;
  HeadTask task_;
};

}  // namespace

KvChoice choose_kept(ComputeContext& ctx, const KvCache& kv, SequenceId sequence, const KvText& text,
                     const KvPolicy& policy, const KvEvidence* evidence) {
  const ScratchScope scope(ctx.scratch);
  return Judge(ctx, kv, sequence, text, policy, evidence).choose();
}

}  // namespace witan
