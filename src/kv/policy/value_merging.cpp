#include "kv/policy/value_merging.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "kv/policy/attention_shares.h"

namespace witan {
namespace {

// Keys of dropped entries that meet the kept ones together.
constexpr int32_t kRows = 64;
// Of the cosines, before the exponentials that attention_weights gives: these tell cosines apart that differ by a
// float's last bit.
constexpr float kScale = 64.0f;
constexpr double kEpsilon = 1e-6;

int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

double norm(const float* x, int32_t dim) {
  double squares = 0.0;
  for (int32_t d = 0; d < dim; ++d) squares += static_cast<double>(x[d]) * static_cast<double>(x[d]);
  return std::sqrt(squares);
}

double value_norm(const KvView& view, int32_t entry, float* value) {
  view.load_value(entry, value);
  return norm(value, view.format.value_dim);
}

// A key divided by its length.
void load_direction(const KvView& view, int32_t entry, float* key) {
  view.load(entry, key, nullptr);
  const auto factor = static_cast<float>(1.0 / std::max(norm(key, view.format.key_dim), kEpsilon));
  for (int32_t d = 0; d < view.format.key_dim; ++d) key[d] *= factor;
}

std::vector<int32_t> dropped_entries(const KvView& view, std::span<const int32_t> kept) {
  std::vector<int32_t> dropped;
  dropped.reserve(static_cast<size_t>(view.num_entries) - kept.size());
  auto next = kept.begin();
  for (int32_t entry = 0; entry < view.num_entries; ++entry) {
    if (next != kept.end() && *next == entry) {
      ++next;
    } else {
      dropped.push_back(entry);
    }
  }
  return dropped;
}

// Where a dropped entry goes.
struct Target {
  int32_t group = -1;  // the place of a kept entry in `kept`; -1: nowhere
  float weight = 0.0f;
};

// Puts the dropped entries [i] in the groups of their targets [i], in their order.
void fill_groups(std::span<const int32_t> dropped, std::span<const Target> targets, size_t num_kept, KvMerge& merge) {
  merge.group_ends.assign(num_kept, 0);
  for (const Target& target : targets) {
    if (target.group >= 0) ++merge.group_ends[static_cast<size_t>(target.group)];
  }
  int32_t end = 0;
  std::vector<int32_t> next(num_kept);
  for (size_t group = 0; group < num_kept; ++group) {
    next[group] = end;
    end += merge.group_ends[group];
    merge.group_ends[group] = end;
  }
  merge.sources.resize(static_cast<size_t>(end));
  merge.weights.resize(static_cast<size_t>(end));
  for (size_t i = 0; i < dropped.size(); ++i) {
    if (targets[i].group < 0) continue;
    const auto place = static_cast<size_t>(next[static_cast<size_t>(targets[i].group)]++);
    merge.sources[place] = dropped[i];
    merge.weights[place] = targets[i].weight;
  }
}

// The directions of a head's kept keys as a view of their own, whose scores with a key are cosines.
class KeptKeys {
 public:
  static KvBlockFormat format(const KvView& view) {
    return {
        .codec = KvCodec::kF32, .key_dim = view.format.key_dim, .value_dim = view.format.key_dim, .value_in_key = true};
  }
  static int64_t scratch_floats(const KvView& view, int32_t num_kept) {
    const KvBlockFormat keys = format(view);
    const int64_t num_blocks = (int64_t{num_kept} + kKvBlockSize - 1) / kKvBlockSize;
    return (num_blocks * keys.block_bytes() + attention_scratch_bytes(keys, kRows)) / int64_t{sizeof(float)} +
           kRows * (kAttentionSplit + 16 + padded(view.format.key_dim)) + 16;
  }

  // scratch [scratch_floats] and the view are borrowed.
  KeptKeys(Isa isa, const KvView& view, std::span<const int32_t> kept, float* scratch)
      : isa_(isa), view_(view), keys_{.format = format(view), .num_entries = static_cast<int32_t>(kept.size())} {
    const int64_t block_floats = keys_.format.block_bytes() / int64_t{sizeof(float)};
    for (int64_t first = 0; first < std::ssize(kept); first += kKvBlockSize, scratch += block_floats) {
      blocks_.push_back(reinterpret_cast<const std::byte*>(scratch));
    }
    keys_.blocks = blocks_.data();
    weights_ = scratch;
    states_ = weights_ + kRows * kAttentionSplit;
    rows_ = states_ + kRows * 16;
    kernel_scratch_ = rows_ + kRows * padded(view.format.key_dim);
    for (size_t i = 0; i < kept.size(); ++i) {
      load_direction(view, kept[i], rows_);
      auto* block = const_cast<std::byte*>(blocks_[i / kKvBlockSize]);
      kv_store(keys_.format, block, static_cast<int>(i % kKvBlockSize), rows_, nullptr);
    }
  }

  struct Nearest {
    int32_t place = -1;  // among the kept entries
    float cosine = -std::numeric_limits<float>::infinity();
  };

  // The kept key that is most similar to each of at most kRows entries'.
  void find_nearest(std::span<const int32_t> entries, Nearest* nearest) {
    const float* queries[kRows];
    int32_t positions[kRows];
    float* states[kRows];
    float* weights[kRows];
    for (size_t r = 0; r < entries.size(); ++r) {
      float* direction = rows_ + static_cast<int64_t>(r) * padded(view_.format.key_dim);
      load_direction(view_, entries[r], direction);
      queries[r] = direction;
      positions[r] = std::numeric_limits<int32_t>::max();
      states[r] = states_ + r * 16;
      weights[r] = weights_ + r * kAttentionSplit;
      nearest[r] = {};
    }
    const AttentionRows rows{
        .queries = queries, .positions = positions, .num_rows = static_cast<int32_t>(entries.size()), .scale = kScale};
    for (int32_t split = 0; split < keys_.num_splits(); ++split) {
      attention_weights(isa_, keys_, rows, split, states, weights, reinterpret_cast<std::byte*>(kernel_scratch_));
      for (size_t r = 0; r < entries.size(); ++r) {
        const float cosine = states[r][0] / kScale;
        if (!(cosine > nearest[r].cosine)) continue;
        const float* largest = std::max_element(weights[r], weights[r] + kAttentionSplit);
        nearest[r] = {.place = split * kAttentionSplit + static_cast<int32_t>(largest - weights[r]), .cosine = cosine};
      }
    }
  }

 private:
  Isa isa_;
  KvView view_;
  KvView keys_;
  std::vector<const std::byte*> blocks_;
  float* weights_;  // [kRows][kAttentionSplit]
  float* states_;   // [kRows][16], of which two
  float* rows_;     // [kRows][padded key_dim]
  float* kernel_scratch_;
};

KvMerge merge_into_similar(float threshold, const HeadEvidence& head, std::span<const int32_t> kept, float* scratch) {
  const KvView& view = head.view;
  const std::vector<int32_t> dropped = dropped_entries(view, kept);
  float* value = scratch;
  float* kept_norms = value + padded(view.format.value_dim);
  for (size_t j = 0; j < kept.size(); ++j) kept_norms[j] = static_cast<float>(value_norm(view, kept[j], value));
  KeptKeys keys(head.isa, view, kept, kept_norms + padded(std::ssize(kept)));
  std::vector<Target> targets(dropped.size());
  std::vector<double> totals(kept.size(), 1.0);  // of the weights
  for (size_t first = 0; first < dropped.size(); first += kRows) {
    const auto rows = std::span(dropped).subspan(first, std::min<size_t>(kRows, dropped.size() - first));
    KeptKeys::Nearest nearest[kRows];
    keys.find_nearest(rows, nearest);
    for (size_t r = 0; r < rows.size(); ++r) {
      if (nearest[r].place < 0 || nearest[r].cosine < threshold || nearest[r].cosine <= 0.0f) continue;
      const auto group = static_cast<size_t>(nearest[r].place);
      const double length = value_norm(view, rows[r], value);
      const double share = length / (length + static_cast<double>(kept_norms[group]) + kEpsilon);
      const double weight = static_cast<double>(nearest[r].cosine) * share;
      if (!(weight > 0.0)) continue;
      totals[group] += weight;
      targets[first + r] = {.group = nearest[r].place, .weight = static_cast<float>(weight)};
    }
  }
  for (Target& target : targets) {
    if (target.group < 0) continue;
    target.weight = static_cast<float>(static_cast<double>(target.weight) / totals[static_cast<size_t>(target.group)]);
  }
  KvMerge merge;
  fill_groups(dropped, targets, kept.size(), merge);
  for (const double total : totals) merge.own.push_back(static_cast<float>(1.0 / total));
  return merge;
}

KvMerge merge_into_next(int32_t num_next, const HeadEvidence& head, std::span<const int32_t> kept, int32_t layer,
                        int32_t index, float* scratch) {
  const KvView& view = head.view;
  const float* attention = head.mass;
  if (attention == nullptr) {
    float* shares = scratch + attention_shares_scratch(view);
    attention_shares(head, shares, scratch);
    attention = shares;
  }
  const auto num_kept = static_cast<int32_t>(kept.size());
  std::vector<double> sums = {0.0};  // of the attention of the kept entries before each
  for (const int32_t entry : kept) sums.push_back(sums.back() + static_cast<double>(attention[entry]));
  const std::vector<int32_t> dropped = dropped_entries(view, kept);
  std::vector<Target> targets(dropped.size());
  int32_t next = 0;
  for (size_t i = 0; i < dropped.size(); ++i) {
    while (next < num_kept && kept[static_cast<size_t>(next)] < dropped[i]) ++next;
    const int32_t count = std::min(num_next, num_kept - next);
    if (count == 0) break;
    const double mean =
        (sums[static_cast<size_t>(next) + static_cast<size_t>(count)] - sums[static_cast<size_t>(next)]) / count;
    const int32_t position = view.positions == nullptr ? dropped[i] : view.positions[dropped[i]];
    if (!(merging_draw(layer, index, position) * mean < static_cast<double>(attention[dropped[i]]))) continue;
    targets[i] = {.group = next, .weight = 1.0f / static_cast<float>(count)};
  }
  KvMerge merge{.reach = num_next, .own = std::vector<float>(kept.size(), 1.0f)};
  fill_groups(dropped, targets, kept.size(), merge);
  return merge;
}

// A round of SplitMix64 (Steele et al., OOPSLA 2014).
uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

double merging_draw(int32_t layer, int32_t head, int32_t position) {
  const uint64_t place = static_cast<uint64_t>(layer) << 32 | static_cast<uint32_t>(head);
  return static_cast<double>(mixed(mixed(place) ^ static_cast<uint32_t>(position)) >> 11) * 0x1p-53;
}

int64_t plan_merge_scratch(const KvMerging& merging, const HeadEvidence& head, int32_t num_kept) {
  if (merging.into == KvMerging::Into::kNext) {
    return head.mass != nullptr ? 0 : attention_shares_scratch(head.view) + attention_shares_floats(head.view);
  }
  return padded(head.view.format.value_dim) + padded(num_kept) + KeptKeys::scratch_floats(head.view, num_kept);
}

KvMerge plan_merge(const KvMerging& merging, const HeadEvidence& head, std::span<const int32_t> kept, int32_t layer,
                   int32_t index, float* scratch) {
  if (std::cmp_equal(kept.size(), head.view.num_entries) || kept.empty()) return {};
  if (merging.into == KvMerging::Into::kNext) {
    return merge_into_next(merging.num_next, head, kept, layer, index, scratch);
  }
  return merge_into_similar(merging.threshold, head, kept, scratch);
}

}  // namespace witan
