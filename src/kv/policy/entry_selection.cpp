#include "kv/policy/entry_selection.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace witan {
namespace {

// What a head keeps in any case of the entries that it may drop. Sinks are those of the text: behind fixed entries
// there are none.
KvPolicy::Protected protected_of(const KvPolicy& policy, const HeadScores& head, int32_t num_kept) {
  return policy.num_protected(head.num_entries - head.num_fixed, num_kept, head.num_fixed == 0);
}

// Neighbouring entries of one head that stay or go together.
struct Unit {
  float score;
  int32_t head;  // among all heads that are selected from together
  int32_t first_entry;
  int32_t num_entries;

  bool operator<(const Unit& other) const {  // the better ones first
    if (score != other.score) return score > other.score;
    return head != other.head ? head < other.head : first_entry < other.first_entry;
  }
};

// One head while its entries are chosen, of those from `begin` to `end`.
struct Head {
  const float* scores;
  int32_t begin;
  int32_t end;
  std::vector<int32_t>* kept;
};

float comparable(float score) { return std::isnan(score) ? -std::numeric_limits<float>::infinity() : score; }

// Selects from the entries of several heads.
class Selection {
 public:
  Selection(const KvPolicy& policy, std::vector<Head> heads, std::span<const int32_t> span_starts)
      : chunk_(span_starts.empty() ? policy.chunk : 1), span_starts_(span_starts), heads_(std::move(heads)) {
    for (int32_t head = 0; head < std::ssize(heads_); ++head) add_units(policy, head);
  }

  // Keeps num_entries of all heads together; of each the best whole units that num_floor has room for.
  void keep(int64_t num_entries, int32_t num_floor) {
    for (int32_t head = 0; head < std::ssize(heads_) && num_floor >= chunk_; ++head) {
      const auto begin =
          std::stable_partition(units_.begin(), units_.end(), [&](const Unit& u) { return u.head != head; });
      num_entries -= take_whole(begin, num_floor);
    }
    num_entries -= take_whole(units_.begin(), num_entries);
    if (num_entries > 0 && !units_.empty()) {
      take_part(*std::min_element(units_.begin(), units_.end()), static_cast<int32_t>(num_entries));
    }
  }

 private:
  using Units = std::vector<Unit>;

  void add_units(const KvPolicy& policy, int32_t head) {
    const auto& [scores, begin, end, kept] = heads_[static_cast<size_t>(head)];
    for (int32_t first = begin, count = 0; first < end; first += count) {
      count = std::min(unit_end(first), end) - first;
      float score = comparable(scores[first]);
      for (int32_t i = 1; i < count; ++i) score += comparable(scores[first + i]);
      if (!policy.chunk_by_sum) score /= static_cast<float>(count);
      units_.push_back({.score = score, .head = head, .first_entry = first, .num_entries = count});
    }
  }

  // Of the unit that begins with an entry.
  int32_t unit_end(int32_t first) const {
    if (span_starts_.empty()) return first + chunk_;
    const auto next = std::ranges::upper_bound(span_starts_, first);
    return next == span_starts_.end() ? std::numeric_limits<int32_t>::max() : *next;
  }

  // Keeps the best of the units from `begin` on as long as they fit, and returns how many entries they had.
  int64_t take_whole(Units::iterator begin, int64_t num_entries) {
    const int64_t num_units = std::min<int64_t>(num_entries / chunk_ + std::ssize(heads_), units_.end() - begin);
    std::nth_element(begin, begin + std::max<int64_t>(0, num_units - 1), units_.end());
    std::sort(begin, begin + num_units);
    int64_t num_taken = 0;
    auto unit = begin;
    for (; unit != begin + num_units && num_taken + unit->num_entries <= num_entries; ++unit) {
      std::vector<int32_t>& kept = *heads_[static_cast<size_t>(unit->head)].kept;
      for (int32_t i = 0; i < unit->num_entries; ++i) kept.push_back(unit->first_entry + i);
      num_taken += unit->num_entries;
    }
    units_.erase(begin, unit);
    return num_taken;
  }

  void take_part(const Unit& unit, int32_t count) {
    const Head& head = heads_[static_cast<size_t>(unit.head)];
    std::vector<int32_t> entries(static_cast<size_t>(unit.num_entries));
    std::iota(entries.begin(), entries.end(), unit.first_entry);
    std::ranges::stable_sort(entries, std::greater<>(), [&](int32_t i) { return comparable(head.scores[i]); });
    head.kept->insert(head.kept->end(), entries.begin(), entries.begin() + std::min(count, unit.num_entries));
  }

  int32_t chunk_;  // entries of the smallest unit that is whole
  std::span<const int32_t> span_starts_;
  std::vector<Head> heads_;
  Units units_;
};

// FINCH: keeps num_entries of a head, of every chunk of them the same share.
void keep_shares(const KvPolicy& policy, const Head& head, int64_t num_entries) {
  const int64_t total = head.end - head.begin;
  int64_t num_given = 0;
  for (int32_t begin = head.begin; begin < head.end;) {
    const int32_t end = static_cast<int32_t>(std::min<int64_t>(head.end, int64_t{begin} + policy.share_chunk));
    const int64_t so_far = num_entries * (end - head.begin) / total;
    Selection({}, {{.scores = head.scores, .begin = begin, .end = end, .kept = head.kept}}, {})
        .keep(so_far - std::exchange(num_given, so_far), 0);
    begin = end;
  }
}

// CriticalKV: as many entries as a head keeps between the protected ones, num_first by their scores, the others by
// their second scores. Appends them to `kept`.
void select_twice(const HeadScores& head, int32_t begin, int32_t end, int32_t num_first, int32_t num_kept,
                  std::vector<int32_t>& kept) {
  std::vector<int32_t> entries(static_cast<size_t>(end - begin));
  std::iota(entries.begin(), entries.end(), begin);
  const auto better = [](const float* scores) {
    return [scores](int32_t a, int32_t b) {
      const float of_a = comparable(scores[a]);
      const float of_b = comparable(scores[b]);
      return of_a != of_b ? of_a > of_b : a < b;
    };
  };
  std::nth_element(entries.begin(), entries.begin() + num_first, entries.end(), better(head.scores));
  std::nth_element(entries.begin() + num_first, entries.begin() + num_kept, entries.end(), better(head.second_scores));
  kept.insert(kept.end(), entries.begin(), entries.begin() + num_kept);
}

// The second stage of all heads, which keep as many entries as they do.
void select_again(const KvPolicy& policy, std::span<const LayerScores> layers, std::span<const int32_t> budgets,
                  std::vector<std::vector<int32_t>>& kept) {
  size_t table = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    for (const HeadScores& head : layers[l]) {
      std::vector<int32_t>& entries = kept[table++];
      const auto fixed = protected_of(policy, head, budgets[l]);
      const int32_t begin = head.num_fixed + fixed.num_sinks;
      const int32_t end = head.num_entries - fixed.num_recent;
      const auto num_total = static_cast<int32_t>(std::ssize(entries)) - head.num_fixed;
      const int32_t num_chosen = num_total - fixed.count();
      const auto num_first = static_cast<int32_t>(policy.second_stage->first_share * num_total) - fixed.count();
      std::erase_if(entries, [&](int32_t i) { return i >= begin && i < end; });
      select_twice(head, begin, end, std::clamp(num_first, 0, num_chosen), num_chosen, entries);
    }
  }
}

// KVCompose: a layer's i-th composite token is made of the i-th best entry of each of its heads, and is worth the mean
// of their scores. The best composite tokens of all layers stay, beside the protected entries of each.
std::vector<int32_t> composite_budgets(const KvPolicy& policy, std::span<const LayerScores> layers, int32_t num_kept) {
  std::vector<Unit> composites;
  std::vector<int32_t> budgets;
  int64_t num_left = 0;
  for (int32_t l = 0; l < std::ssize(layers); ++l) {
    const LayerScores& layer = layers[static_cast<size_t>(l)];
    const auto fixed = protected_of(policy, layer[0], num_kept);
    budgets.push_back(fixed.count());
    num_left += num_kept - fixed.count();
    std::vector<double> worth(static_cast<size_t>(layer[0].num_entries - layer[0].num_fixed - fixed.count()));
    for (const HeadScores& head : layer) {
      WITAN_CHECK(head.num_entries - head.num_fixed == layer[0].num_entries - layer[0].num_fixed,
                  "heads of {} and {} entries", layer[0].num_entries, head.num_entries);
      std::vector<float> scores;
      for (int32_t i = head.num_fixed + fixed.num_sinks; i < head.num_entries - fixed.num_recent; ++i) {
        scores.push_back(comparable(head.scores[i]));
      }
      std::ranges::sort(scores, std::greater<>());
      for (size_t i = 0; i < scores.size(); ++i) worth[i] += static_cast<double>(scores[i]);
    }
    const auto num_heads = static_cast<double>(layer.size());
    for (int32_t i = 0; i < std::ssize(worth); ++i) {
      composites.push_back({.score = static_cast<float>(worth[static_cast<size_t>(i)] / num_heads),
                            .head = l,
                            .first_entry = i,
                            .num_entries = 1});
    }
  }
  std::ranges::sort(composites, std::less<>());
  composites.resize(static_cast<size_t>(std::min<int64_t>(num_left, std::ssize(composites))));
  for (const Unit& composite : composites) ++budgets[static_cast<size_t>(composite.head)];
  return budgets;
}

// SimLayerKV: what layers keep whose heads' scores, which are shares of attention, say how much of it goes to the
// protected entries.
std::vector<int32_t> lazy_budgets(const KvPolicy& policy, std::span<const LayerScores> layers) {
  std::vector<int32_t> budgets;
  for (const LayerScores& layer : layers) {
    double mass = 0.0;
    int32_t num_protected = 0;
    int32_t num_entries = 0;
    for (const HeadScores& head : layer) {
      const auto fixed = policy.num_protected(head.num_entries, head.num_entries);
      num_protected = fixed.count();
      num_entries = head.num_entries;
      for (int32_t i = 0; i < fixed.num_sinks; ++i) mass += static_cast<double>(head.scores[i]);
      for (int32_t i = num_entries - fixed.num_recent; i < num_entries; ++i)
        mass += static_cast<double>(head.scores[i]);
    }
    const bool is_lazy = mass > policy.lazy_threshold * static_cast<double>(layer.size());
    budgets.push_back(is_lazy ? num_protected : num_entries);
  }
  return budgets;
}

// DuoAttention: heads keep everything, or the protected entries.
std::vector<std::vector<int32_t>> select_by_kind(const KvPolicy& policy, std::span<const LayerScores> layers) {
  WITAN_CHECK(layers.size() == policy.head_kinds.size(), "{} layers, {} kinds", layers.size(),
              policy.head_kinds.size());
  std::vector<std::vector<int32_t>> kept;
  for (size_t l = 0; l < layers.size(); ++l) {
    WITAN_CHECK(layers[l].size() == policy.head_kinds[l].size(), "{} heads, {} kinds", layers[l].size(),
                policy.head_kinds[l].size());
    for (size_t h = 0; h < layers[l].size(); ++h) {
      const int32_t num_entries = layers[l][h].num_entries;
      const auto fixed = policy.num_protected(num_entries, num_entries);
      const bool is_full = policy.head_kinds[l][h] == '1';
      kept.emplace_back();
      for (int32_t i = 0; i < num_entries; ++i) {
        if (is_full || i < fixed.num_sinks || i >= num_entries - fixed.num_recent) kept.back().push_back(i);
      }
    }
  }
  return kept;
}

// PyramidKV: what each layer has of a mean, falling evenly, at most `most`.
std::vector<double> pyramid_parts(const KvPolicy& policy, int64_t num_layers, double mean, double most) {
  double last = mean / policy.pyramid_slope;
  double first = 2.0 * mean - last;
  if (first > most) {
    first = most;
    last = 2.0 * mean - most;
  }
  std::vector<double> parts;
  for (int64_t l = 0; l < num_layers; ++l) {
    parts.push_back(first - static_cast<double>(l) * (first - last) / static_cast<double>(num_layers - 1));
  }
  return parts;
}

// What each layer has of a mean, by a table.
std::vector<double> table_parts(std::span<const double> shares, int64_t num_layers, double mean) {
  WITAN_CHECK(std::ssize(shares) == num_layers, "{} layers, {} shares", num_layers, shares.size());
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<double> parts;
  for (const double share : shares) parts.push_back(mean * static_cast<double>(num_layers) * (share / sum));
  return parts;
}

}  // namespace

std::vector<int32_t> layer_budgets(const KvPolicy& policy, std::span<const int32_t> num_entries, int32_t num_kept) {
  const auto num_layers = std::ssize(num_entries);
  std::vector<int32_t> budgets(num_entries.size(), num_kept);
  if (policy.layers == KvLayerBudget::kUniform || num_layers < 2) return budgets;
  const int32_t most_entries = *std::ranges::max_element(num_entries);
  const int32_t fixed = policy.num_protected(most_entries, num_kept).count();
  const std::vector<double> wanted_parts =
      policy.layers == KvLayerBudget::kTable
          ? table_parts(policy.layer_shares, num_layers, num_kept - fixed)
          : pyramid_parts(policy, num_layers, num_kept - fixed, most_entries - fixed);
  // Each layer gets what its part adds to the whole entries of those before it, so that none are lost to rounding.
  double sum = 0.0;
  int64_t given = 0;
  int64_t left = 0;  // of what layers were to have that have no more
  for (size_t l = 0; l < budgets.size(); ++l) {
    sum += wanted_parts[l];
    const auto so_far = l + 1 == budgets.size() ? int64_t{num_kept - fixed} * num_layers : std::llround(sum);
    const int64_t wanted = fixed + so_far - given + left;
    budgets[l] = static_cast<int32_t>(std::min<int64_t>(wanted, num_entries[l]));
    left = wanted - budgets[l];
    given = so_far;
  }
  for (size_t l = 0; left > 0 && l < budgets.size(); ++l) {
    const int64_t more = std::min<int64_t>(left, num_entries[l] - budgets[l]);
    budgets[l] += static_cast<int32_t>(more);
    left -= more;
  }
  return budgets;
}

std::vector<std::vector<int32_t>> select_entries(const KvPolicy& policy, std::span<const LayerScores> layers,
                                                 int32_t num_kept, std::span<const int32_t> span_starts) {
  if (!policy.head_kinds.empty()) return select_by_kind(policy, layers);
  std::vector<int32_t> num_entries;  // on average over the heads of a layer
  std::vector<std::vector<int32_t>> kept;
  for (const LayerScores& layer : layers) {
    int64_t sum = 0;
    for (const HeadScores& head : layer) sum += head.num_entries - head.num_fixed;
    num_entries.push_back(static_cast<int32_t>(sum / std::ssize(layer)));
    kept.resize(kept.size() + layer.size());
  }
  if (layers.empty()) return kept;
  const std::vector<int32_t> budgets =
      policy.layers == KvLayerBudget::kComposite ? composite_budgets(policy, layers, num_kept)
      : policy.layers == KvLayerBudget::kLazy    ? lazy_budgets(policy, layers)
                                                 : layer_budgets(policy, num_entries, num_kept);

  std::vector<Head> together;  // heads that are selected from together, once there are all of them
  int64_t num_together = 0;    // entries that those keep beside the protected ones
  size_t table = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    const int32_t floor_entries = static_cast<int32_t>(policy.head_floor * budgets[l]);
    const auto select = [&] {
      const bool has_fixed = layers[l][0].num_fixed > 0;
      const auto fixed = protected_of(policy, layers[l][0], budgets[l]);
      Selection selection(policy, std::exchange(together, {}), has_fixed ? std::span<const int32_t>() : span_starts);
      selection.keep(std::exchange(num_together, 0),
                     policy.scope == KvScope::kHead ? 0 : floor_entries - fixed.count());
    };
    for (const HeadScores& head : layers[l]) {
      std::vector<int32_t>& entries = kept[table++];
      const auto fixed = protected_of(policy, head, budgets[l]);
      const int32_t begin = head.num_fixed + fixed.num_sinks;
      const int32_t end = head.num_entries - fixed.num_recent;
      for (int32_t i = 0; i < begin; ++i) entries.push_back(i);
      for (int32_t i = end; i < head.num_entries; ++i) entries.push_back(i);
      if (policy.share_chunk > 0) {
        keep_shares(policy, {.scores = head.scores, .begin = begin, .end = end, .kept = &entries},
                    budgets[l] - fixed.count());
        continue;
      }
      together.push_back({.scores = head.scores, .begin = begin, .end = end, .kept = &entries});
      num_together += budgets[l] - fixed.count();
      if (policy.scope == KvScope::kHead) select();
    }
    if (policy.scope == KvScope::kLayer || (policy.scope == KvScope::kModel && l + 1 == layers.size())) select();
  }
  if (policy.second_stage) select_again(policy, layers, budgets, kept);
  for (std::vector<int32_t>& entries : kept) std::ranges::sort(entries);
  return kept;
}

}  // namespace witan
