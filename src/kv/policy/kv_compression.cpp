#include "kv/policy/kv_compression.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/elementwise/elementwise.h"
#include "kv/policy/entry_selection.h"

namespace witan {
namespace {

// A layer whose entries are judged.
struct JudgedLayer {
  int32_t layer;
  int32_t num_heads;
  int32_t first_table;  // among all layers' tables
  float* scores;        // [num_heads][num_entries]
};

// One head of one of them, in the hands of a thread.
struct HeadTask {
  const KvCache& kv;
  SequenceId sequence;
  const KvPolicy& policy;
  const QueryWindow* queries;
  Isa isa;
  int32_t num_entries;

  HeadEvidence evidence(const JudgedLayer& judged, int32_t head, const float** rows, int32_t* positions) const {
    HeadEvidence evidence{.isa = isa, .view = kv.view(sequence, judged.layer, head, num_entries)};
    if (queries == nullptr) return evidence;
    evidence.group = queries->num_heads() / judged.num_heads;
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
void add_up_heads(Isa isa, const JudgedLayer& judged, int32_t num_entries) {
  for (int32_t head = 1; head < judged.num_heads; ++head) {
    add(isa, judged.scores + int64_t{head} * num_entries, num_entries, judged.scores);
  }
  for (int32_t head = 1; head < judged.num_heads; ++head) {
    std::copy_n(judged.scores, num_entries, judged.scores + int64_t{head} * num_entries);
  }
}

}  // namespace

std::vector<std::vector<int32_t>> choose_kept(ComputeContext& ctx, const KvCache& kv, SequenceId sequence,
                                              const KvPolicy& policy, const QueryWindow* queries) {
  const std::vector<KvLayerSpec>& specs = kv.config().layers;
  const int32_t num_entries = kv.num_tokens(sequence);
  const int32_t num_kept = policy.num_kept(num_entries);
  const ScratchScope scope(ctx.scratch);

  std::vector<JudgedLayer> judged;
  int32_t num_tables = 0;
  for (int32_t layer = 0; layer < std::ssize(specs); ++layer) {
    const KvLayerSpec& spec = specs[static_cast<size_t>(layer)];
    if (spec.window == 0) {
      WITAN_CHECK(kv.num_entries(sequence, layer, 0) == num_entries, "layer {} has {} of {} entries", layer,
                  kv.num_entries(sequence, layer, 0), num_entries);
      judged.push_back({.layer = layer,
                        .num_heads = spec.num_kv_heads,
                        .first_table = num_tables,
                        .scores = ctx.scratch.allocate<float>(int64_t{spec.num_kv_heads} * num_entries)});
    }
    num_tables += spec.num_kv_heads;
  }
  std::vector<std::vector<int32_t>> kept(static_cast<size_t>(num_tables));
  if (judged.empty()) return kept;

  // The heads of those layers that are scored, in the order in which threads take them.
  struct Item {
    const JudgedLayer* judged;
    int32_t head;
  };
  std::vector<Item> items;
  for (size_t i = 0; i < judged.size(); i += static_cast<size_t>(policy.reused_layers)) {
    for (int32_t head = 0; head < judged[i].num_heads; ++head) items.push_back({.judged = &judged[i], .head = head});
  }
  const HeadTask task{
      .kv = kv, .sequence = sequence, .policy = policy, .queries = queries, .isa = ctx.isa, .num_entries = num_entries};
  const int64_t num_rows = queries == nullptr ? 0 : int64_t{queries->num_tokens()} * queries->num_heads();
  const int num_threads = ctx.threads.num_threads();
  auto** rows = ctx.scratch.allocate<const float*>(num_rows * num_threads);
  auto* positions = ctx.scratch.allocate<int32_t>(num_rows * num_threads);
  int64_t scratch_floats = 0;
  for (const Item& item : items) {
    const HeadEvidence evidence = task.evidence(*item.judged, item.head, rows, positions);
    scratch_floats = std::max(scratch_floats, policy.scorer->scratch_floats(evidence));
  }
  scratch_floats = (scratch_floats + 15) / 16 * 16;
  auto* scratch = ctx.scratch.allocate<float>(scratch_floats * num_threads);
  ctx.threads.parallel_for(std::ssize(items), [&](int64_t i, int thread) {
    const Item& item = items[static_cast<size_t>(i)];
    const HeadEvidence evidence =
        task.evidence(*item.judged, item.head, rows + thread * num_rows, positions + thread * num_rows);
    float* scores = item.judged->scores + int64_t{item.head} * num_entries;
    policy.scorer->score(evidence, {scores, static_cast<size_t>(num_entries)}, scratch + thread * scratch_floats);
  });

  std::vector<LayerScores> scores;
  for (size_t i = 0; i < judged.size(); ++i) {
    const size_t scored = i / static_cast<size_t>(policy.reused_layers) * static_cast<size_t>(policy.reused_layers);
    if (scored == i && policy.heads_agree) add_up_heads(ctx.isa, judged[i], num_entries);
    WITAN_CHECK(judged[scored].num_heads == judged[i].num_heads, "layers {} and {} have {} and {} kv heads",
                judged[scored].layer, judged[i].layer, judged[scored].num_heads, judged[i].num_heads);
    scores.push_back({.scores = judged[scored].scores, .num_heads = judged[i].num_heads, .num_entries = num_entries});
  }
  std::vector<std::vector<int32_t>> selected = select_entries(policy, scores, num_kept);
  size_t next = 0;
  for (const JudgedLayer& layer : judged) {
    for (int32_t head = 0; head < layer.num_heads; ++head) {
      kept[layer.first_table + head] = std::move(selected[next++]);
    }
  }
  return kept;
}

}  // namespace witan
