#include "kv/policy/entry_selection.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace witan {
namespace {

// What every head keeps in any case.
struct Protected {
  int32_t num_sinks;
  int32_t num_recent;

  Protected(const KvPolicy& policy, int32_t num_entries, int32_t num_kept)
      : num_sinks(std::min({policy.num_sinks, num_entries, num_kept})),
        num_recent(std::min({policy.num_recent, num_entries - num_sinks, num_kept - num_sinks})) {}

  int32_t count() const { return num_sinks + num_recent; }
};

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

// One head while its entries are chosen.
struct Head {
  const float* scores;
  std::vector<int32_t>* kept;
};

float comparable(float score) { return std::isnan(score) ? -std::numeric_limits<float>::infinity() : score; }

// Selects from the entries [begin, end) of several heads.
class Selection {
 public:
  Selection(const KvPolicy& policy, std::vector<Head> heads, int32_t begin, int32_t end)
      : chunk_(policy.chunk), heads_(std::move(heads)) {
    for (int32_t head = 0; head < std::ssize(heads_); ++head) add_units(policy, head, begin, end);
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

  void add_units(const KvPolicy& policy, int32_t head, int32_t begin, int32_t end) {
    const float* scores = heads_[static_cast<size_t>(head)].scores;
    for (int32_t first = begin; first < end; first += chunk_) {
      const int32_t count = std::min(chunk_, end - first);
      float score = comparable(scores[first]);
      for (int32_t i = 1; i < count; ++i) score += comparable(scores[first + i]);
      if (!policy.chunk_by_sum) score /= static_cast<float>(count);
      units_.push_back({.score = score, .head = head, .first_entry = first, .num_entries = count});
    }
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

  int32_t chunk_;
  std::vector<Head> heads_;
  Units units_;
};

}  // namespace

std::vector<int32_t> layer_budgets(const KvPolicy& policy, int32_t num_layers, int32_t num_entries, int32_t num_kept) {
  std::vector<int32_t> budgets(static_cast<size_t>(num_layers), num_kept);
  if (policy.layers == KvLayerBudget::kUniform || num_layers < 2) return budgets;
  const int32_t fixed = Protected(policy, num_entries, num_kept).count();
  const double mean = num_kept - fixed;
  double last = mean / policy.pyramid_slope;
  double first = 2.0 * mean - last;
  if (const double most = num_entries - fixed; first > most) {
    first = most;
    last = 2.0 * mean - most;
  }
  // Each layer gets what its share adds to the whole entries of those before it, so that none are lost to rounding.
  double sum = 0.0;
  int64_t given = 0;
  for (int32_t l = 0; l < num_layers; ++l) {
    sum += first - l * (first - last) / (num_layers - 1);
    const auto so_far = l + 1 == num_layers ? int64_t{num_kept - fixed} * num_layers : std::llround(sum);
    budgets[static_cast<size_t>(l)] = fixed + static_cast<int32_t>(so_far - given);
    given = so_far;
  }
  return budgets;
}

std::vector<std::vector<int32_t>> select_entries(const KvPolicy& policy, std::span<const LayerScores> layers,
                                                 int32_t num_kept) {
  if (layers.empty()) return {};
  const int32_t num_entries = layers[0].num_entries;
  const std::vector<int32_t> budgets =
      layer_budgets(policy, static_cast<int32_t>(layers.size()), num_entries, num_kept);
  std::vector<std::vector<int32_t>> kept;
  for (const LayerScores& layer : layers) kept.resize(kept.size() + static_cast<size_t>(layer.num_heads));

  std::vector<Head> together;  // heads that are selected from together, once there are all of them
  size_t first_table = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    WITAN_CHECK(layers[l].num_entries == num_entries, "{} and {} entries", num_entries, layers[l].num_entries);
    const Protected fixed(policy, num_entries, budgets[l]);
    const int32_t end = num_entries - fixed.num_recent;
    const int32_t budget = budgets[l] - fixed.count();
    const auto select = [&] {
      const auto floor = static_cast<int32_t>(policy.head_floor * budgets[l]) - fixed.count();
      const int64_t num_heads = std::ssize(together);
      Selection selection(policy, std::exchange(together, {}), fixed.num_sinks, end);
      selection.keep(budget * num_heads, policy.scope == KvScope::kHead ? 0 : floor);
    };
    for (int32_t h = 0; h < layers[l].num_heads; ++h) {
      std::vector<int32_t>& entries = kept[first_table + static_cast<size_t>(h)];
      for (int32_t i = 0; i < fixed.num_sinks; ++i) entries.push_back(i);
      for (int32_t i = end; i < num_entries; ++i) entries.push_back(i);
      together.push_back({.scores = layers[l].scores + int64_t{h} * num_entries, .kept = &entries});
      if (policy.scope == KvScope::kHead) select();
    }
    if (policy.scope == KvScope::kLayer || (policy.scope == KvScope::kModel && l + 1 == layers.size())) select();
    first_table += static_cast<size_t>(layers[l].num_heads);
  }
  for (std::vector<int32_t>& entries : kept) std::ranges::sort(entries);
  return kept;
}

}  // namespace witan
