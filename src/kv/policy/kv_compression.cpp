#include "kv/policy/kv_compression.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/elementwise/elementwise.h"
#include "kv/policy/entry_selection.h"

namespace witan {
namespace {

// A kv head whose entries are judged.
struct JudgedHead {
  int32_t num_entries;
  float* scores;  // [num_entries]
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
  const KvPolicy& policy;
  const KvEvidence* collected;
  Isa isa;

  HeadEvidence evidence(const JudgedLayer& judged, int32_t head, const float** rows, int32_t* positions) const {
    HeadEvidence evidence{.isa = isa, .view = kv.view(sequence, judged.layer, head, judged.heads[head].num_entries)};
    if (collected == nullptr) return evidence;
    if (collected->mass != nullptr) evidence.mass = collected->mass->of(judged.layer, head);
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

std::vector<JudgedLayer> judged_layers(Scratch& scratch, const KvCache& kv, SequenceId sequence) {
  std::vector<JudgedLayer> layers;
  int32_t num_tables = 0;
  for (int32_t layer = 0; layer < std::ssize(kv.config().layers); ++layer) {
    const KvLayerSpec& spec = kv.config().layers[static_cast<size_t>(layer)];
    if (spec.window == 0) {
      layers.push_back({.layer = layer, .first_table = num_tables, .heads = {}});
      for (int32_t head = 0; head < spec.num_kv_heads; ++head) {
        const int32_t num_entries = kv.num_entries(sequence, layer, head);
        layers.back().heads.push_back({.num_entries = num_entries, .scores = scratch.allocate<float>(num_entries)});
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

}  // namespace

std::vector<std::vector<int32_t>> choose_kept(ComputeContext& ctx, const KvCache& kv, SequenceId sequence,
                                              int32_t num_prompt_tokens, const KvPolicy& policy,
                                              const KvEvidence* evidence) {
  const ScratchScope scope(ctx.scratch);
  const std::vector<JudgedLayer> judged = judged_layers(ctx.scratch, kv, sequence);
  int64_t num_tables = 0;
  for (const KvLayerSpec& layer : kv.config().layers) num_tables += layer.num_kv_heads;
  std::vector<std::vector<int32_t>> kept(static_cast<size_t>(num_tables));
  if (judged.empty()) return kept;

  // The heads of those layers that are scored, in the order in which threads take them.
  struct Item {
    const JudgedLayer* judged;
    int32_t head;
  };
  std::vector<Item> items;
  for (size_t i = 0; i < judged.size(); i += static_cast<size_t>(policy.reused_layers)) {
    for (int32_t head = 0; head < judged[i].num_heads(); ++head) items.push_back({.judged = &judged[i], .head = head});
  }
  const HeadTask task{.kv = kv, .sequence = sequence, .policy = policy, .collected = evidence, .isa = ctx.isa};
  const QueryWindow* queries = evidence == nullptr ? nullptr : evidence->window.get();
  const int64_t num_rows = queries == nullptr ? 0 : int64_t{queries->num_tokens()} * queries->num_heads();
  const int num_threads = ctx.threads.num_threads();
  auto** rows = ctx.scratch.allocate<const float*>(num_rows * num_threads);
  auto* positions = ctx.scratch.allocate<int32_t>(num_rows * num_threads);
  int64_t scratch_floats = 0;
  for (const Item& item : items) {
    const HeadEvidence head = task.evidence(*item.judged, item.head, rows, positions);
    scratch_floats = std::max(scratch_floats, policy.scorer->scratch_floats(head));
  }
  scratch_floats = (scratch_floats + 15) / 16 * 16;
  auto* scratch = ctx.scratch.allocate<float>(scratch_floats * num_threads);
  ctx.threads.parallel_for(std::ssize(items), [&](int64_t i, int thread) {
    const Item& item = items[static_cast<size_t>(i)];
    const HeadEvidence head =
        task.evidence(*item.judged, item.head, rows + thread * num_rows, positions + thread * num_rows);
    const auto& [num_entries, scores] = item.judged->heads[static_cast<size_t>(item.head)];
    policy.scorer->score(head, {scores, static_cast<size_t>(num_entries)}, scratch + thread * scratch_floats);
  });

  const int32_t num_generated = kv.num_tokens(sequence) - num_prompt_tokens;
  const bool apart = policy.generated_budget && num_generated > 0;
  std::vector<LayerScores> scores;
  for (size_t i = 0; i < judged.size(); ++i) {
    const JudgedLayer& layer = judged[i];
    const JudgedLayer& scored = judged[i - i % static_cast<size_t>(policy.reused_layers)];
    if (&scored == &layer && policy.heads_agree) add_up_heads(ctx.isa, layer);
    WITAN_CHECK(scored.num_heads() == layer.num_heads(), "layers {} and {} have {} and {} kv heads", scored.layer,
                layer.layer, scored.num_heads(), layer.num_heads());
    scores.emplace_back();
    for (int32_t head = 0; head < layer.num_heads(); ++head) {
      const auto& [num_entries, of_head] = scored.heads[static_cast<size_t>(head)];
      WITAN_CHECK(num_entries == layer.heads[static_cast<size_t>(head)].num_entries,
                  "layers {} and {}, head {} have {} and {} entries", scored.layer, layer.layer, head, num_entries,
                  layer.heads[static_cast<size_t>(head)].num_entries);
      const KvView view = kv.view(sequence, layer.layer, head, num_entries);
      scores.back().push_back({.scores = of_head,
                               .num_entries = num_entries,
                               .num_fixed = apart ? num_entries_of(view, num_prompt_tokens) : 0});
    }
  }
  const int32_t num_kept =
      apart ? policy.generated_budget->of(num_generated) : policy.num_kept(num_prompt_tokens, num_generated);
  std::vector<std::vector<int32_t>> selected = select_entries(policy, scores, num_kept);
  size_t next = 0;
  for (const JudgedLayer& layer : judged) {
    for (int32_t head = 0; head < layer.num_heads(); ++head) {
      kept[layer.first_table + head] = std::move(selected[next++]);
    }
  }
  return kept;
}

}  // namespace witan
