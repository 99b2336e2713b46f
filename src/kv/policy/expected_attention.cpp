// Expected Attention (Devoto et al., arXiv 2510.00636): entries stay that tokens to come are expected to attend to,
// and whose values are large. Queries before their rotary positions are taken for normally distributed, as those of
// the text so far are; the first tokens, which are unlike the others, are left out. Let mu and Sigma be a query
// head's mean and covariance, rotated by the mean of the rotations of the next `future` positions. The mean of
// exp(scale q k) is then exp(scale mu k + scale^2 / 2 k Sigma k), and an entry's score (a + epsilon) |v|, where a is
// its share of the sum over all entries but the first tokens', the mean over the query heads. A sink logit takes
// part in the sum.
//
// Latent attention (MLA) has one kv head, and its queries and values are those that meet the cached latents.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/matmul/matmul.h"
#include "kv/policy/policy_builder.h"

namespace witan {
namespace {

struct Options {
  int32_t future;
  int32_t num_sinks;
  bool covariance;
  bool values;
  double epsilon;
};

constexpr int32_t kBlockEntries = 64;  // whose keys are in hand at once
// Floats of covariances in hand at once: of all query heads of a kv head for the usual head dimensions, of a few
// where entries are latents.
constexpr int64_t kMatrixFloats = int64_t{1} << 20;

int64_t padded(int64_t floats) { return (floats + 15) / 16 * 16; }

// The mean of the rotations of some positions: (a, b) -> (a cos - b sin, a sin + b cos) for each pair of components.
class MeanRotation {
 public:
  MeanRotation(const RopeTable& rope, int32_t offset, int32_t first_position, int32_t num_positions)
      : layout_(rope.layout()), offset_(offset), half_(rope.dim() / 2), cos_(half_), sin_(half_) {
    std::vector<float> cos(static_cast<size_t>(half_));
    std::vector<float> sin(static_cast<size_t>(half_));
    for (int32_t i = 0; i < num_positions; ++i) {
      rope.angles(first_position + i, cos.data(), sin.data());
      for (size_t pair = 0; pair < cos.size(); ++pair) {
        cos_[pair] += static_cast<double>(cos[pair]) / num_positions;
        sin_[pair] += static_cast<double>(sin[pair]) / num_positions;
      }
    }
  }

  void rotate(double* x) const {
    for (int64_t pair = 0; pair < half_; ++pair) rotate_pair(pair, 1, x + first(pair), x + second(pair));
  }

  // R x R^T of x [dim, dim].
  void rotate_both_sides(int64_t dim, double* x) const {
    for (int64_t row = 0; row < dim; ++row) rotate(x + row * dim);
    for (int64_t pair = 0; pair < half_; ++pair) {
      rotate_pair(pair, dim, x + first(pair) * dim, x + second(pair) * dim);
    }
  }

 private:
  int64_t first(int64_t pair) const { return offset_ + (layout_ == RopeLayout::kHalves ? pair : 2 * pair); }
  int64_t second(int64_t pair) const { return layout_ == RopeLayout::kHalves ? first(pair) + half_ : first(pair) + 1; }

  void rotate_pair(int64_t pair, int64_t count, double* a, double* b) const {
    const double cos = cos_[static_cast<size_t>(pair)];
    const double sin = sin_[static_cast<size_t>(pair)];
    for (int64_t i = 0; i < count; ++i) {
      const double old_a = a[i];
      a[i] = old_a * cos - b[i] * sin;
      b[i] = old_a * sin + b[i] * cos;
    }
  }

  RopeLayout layout_;
  int64_t offset_;
  int64_t half_;
  std::vector<double> cos_;  // [half_]
  std::vector<double> sin_;
};

float dot(const float* a, const float* b, int32_t n) {
  constexpr int32_t kLanes = 8;
  double sums[kLanes] = {};
  int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int32_t lane = 0; lane < kLanes; ++lane) {
      sums[lane] += static_cast<double>(a[i + lane]) * static_cast<double>(b[i + lane]);
    }
  }
  for (; i < n; ++i) sums[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  double sum = 0.0;
  for (const double s : sums) sum += s;
  return static_cast<float>(sum);
}

void load(const KvView& view, int32_t entry, float* key, float* value) { view.load(entry, key, value); }

class ExpectedAttention : public KvScorer {
 public:
  explicit ExpectedAttention(const Options& options) : options_(options) {}

  KvWants wants() const override {
    const auto order = options_.covariance ? QueryMoments::Order::kCovariance : QueryMoments::Order::kMean;
    return {.moments = KvWants::Moments{.order = order, .first_token = options_.num_sinks}};
  }

  bool scores_are_attention() const override { return !options_.values; }

  int64_t scratch_floats(const HeadEvidence& head) const override { return Buffers(*this, head, nullptr).num_floats; }

  void score(const HeadEvidence& head, std::span<float> scores, float* scratch) const override {
    const KvView& view = head.view;
    const auto& scoring = head.moments->scoring(head.layer);
    WITAN_CHECK(scoring.rope != nullptr && head.moments->key_dim(head.layer) == view.format.key_dim,
                "moments of {} components for keys of {}", head.moments->key_dim(head.layer), view.format.key_dim);
    const int32_t next = view.positions == nullptr ? view.num_entries : view.positions[view.num_entries - 1] + 1;
    const MeanRotation rotation(*scoring.rope, scoring.rope_offset, next, options_.future);
    const int32_t first = num_first_tokens(view);
    Buffers buffers(*this, head, scratch);
    std::ranges::fill(scores, 0.0f);
    if (first == view.num_entries) return;
    for (int32_t g = 0; g < head.group; g += buffers.num_heads) {
      const int32_t count = std::min(buffers.num_heads, head.group - g);
      for (int32_t h = 0; h < count; ++h) describe_head(head, g + h, h, rotation, buffers);
      for (int32_t begin = first; begin < view.num_entries; begin += kBlockEntries) {
        const int32_t end = std::min(view.num_entries, begin + kBlockEntries);
        score_block(head, begin, end, begin - first, count, buffers);
      }
      for (int32_t h = 0; h < count; ++h) {
        float* logits = buffers.logits + h * buffers.logit_stride;
        const int32_t num_judged = view.num_entries - first;
        if (scoring.sinks != nullptr) logits[num_judged] = scoring.sinks[head.first_query_head + g + h];
        softmax(head.isa, num_judged + (scoring.sinks != nullptr ? 1 : 0), logits);
        axpy(head.isa, 1.0f / static_cast<float>(head.group), logits, num_judged, scores.data() + first);
      }
    }
    finish(view, scores, first, buffers);
  }

 private:
  // What the scratch memory of one head holds.
  struct Buffers {
    Buffers(const ExpectedAttention& method, const HeadEvidence& head, float* scratch) {
      const int64_t dim = head.view.format.key_dim;
      const bool covariance = method.options_.covariance;
      num_heads = static_cast<int32_t>(std::clamp<int64_t>(kMatrixFloats / (dim * dim), 1, head.group));
      logit_stride = padded(int64_t{head.view.num_entries} + 1);
      panel_bytes = covariance ? witan::panel_bytes(DType::kF32, dim) : 0;
      num_panels = (dim + kPanelRows - 1) / kPanelRows;
      row_bytes = activation_bytes(ActivationFormat::kF32, dim);
      const auto floats = [](int64_t bytes) { return bytes / static_cast<int64_t>(sizeof(float)); };
      const auto take = [&](int64_t count) {
        float* taken = scratch == nullptr ? nullptr : scratch + num_floats;
        num_floats += padded(count);
        return taken;
      };
      logits = take(num_heads * logit_stride);
      means = take(num_heads * padded(dim));
      panels = reinterpret_cast<std::byte*>(take(floats(num_heads * num_panels * panel_bytes)));
      keys = reinterpret_cast<std::byte*>(take(floats(kBlockEntries * row_bytes)));
      products = take(covariance ? kBlockEntries * padded(dim) : 0);
      vector = take(std::max<int64_t>(dim, head.view.format.value_dim));
      rows = take(covariance ? kPanelRows * padded(dim) : 0);
      mean = reinterpret_cast<double*>(take(2 * dim));
      matrix = reinterpret_cast<double*>(take(covariance ? 2 * dim * dim : 0));
    }

    const std::byte* key(int32_t i) const { return keys + i * row_bytes; }

    int32_t num_heads;  // query heads at once
    int64_t logit_stride;
    int64_t panel_bytes;
    int64_t num_panels;
    int64_t row_bytes;
    int64_t num_floats = 0;
    float* logits;      // [num_heads][logit_stride]
    float* means;       // [num_heads][padded(dim)]: scale mu
    std::byte* panels;  // [num_heads][num_panels][panel_bytes]: scale^2 / 2 Sigma, packed
    std::byte* keys;    // [kBlockEntries][row_bytes]: as activations
    float* products;    // [kBlockEntries][padded(dim)]: Sigma k
    float* vector;      // [dim] or [value_dim]
    float* rows;        // [kPanelRows][padded(dim)]
    double* mean;       // [dim]
    double* matrix;     // [dim][dim]
  };

  // The entries of the tokens that the moments leave out.
  int32_t num_first_tokens(const KvView& view) const {
    if (view.positions == nullptr) return std::min(options_.num_sinks, view.num_entries);
    return static_cast<int32_t>(
        std::lower_bound(view.positions, view.positions + view.num_entries, options_.num_sinks) - view.positions);
  }

  // The mean and covariance of query head g of the group, rotated and scaled, as the h-th in the buffers.
  void describe_head(const HeadEvidence& head, int32_t g, int32_t h, const MeanRotation& rotation,
                     const Buffers& buffers) const {
    const int64_t dim = head.view.format.key_dim;
    const QueryMoments& moments = *head.moments;
    const int32_t query_head = head.first_query_head + g;
    const auto scale = static_cast<double>(moments.scoring(head.layer).scale);
    moments.mean(head.layer, query_head, buffers.mean);
    if (options_.covariance) {
      moments.covariance(head.layer, query_head, buffers.mean, buffers.matrix);
      rotation.rotate_both_sides(dim, buffers.matrix);
      for (int64_t panel = 0; panel < buffers.num_panels; ++panel) {
        const std::byte* rows[kPanelRows];
        const auto num_rows = static_cast<int>(std::min<int64_t>(kPanelRows, dim - panel * kPanelRows));
        for (int r = 0; r < num_rows; ++r) {
          float* row = buffers.rows + r * padded(dim);
          const double* from = buffers.matrix + (panel * kPanelRows + r) * dim;
          for (int64_t i = 0; i < dim; ++i) row[i] = static_cast<float>(from[i] * scale * scale / 2.0);
          rows[r] = reinterpret_cast<const std::byte*>(row);
        }
        pack_panel(DType::kF32, dim, rows, num_rows,
                   buffers.panels + (h * buffers.num_panels + panel) * buffers.panel_bytes);
      }
    }
    rotation.rotate(buffers.mean);
    float* mean = buffers.means + h * padded(dim);
    for (int64_t i = 0; i < dim; ++i) mean[i] = static_cast<float>(buffers.mean[i] * scale);
  }

  // logits[h][at + i] of entries [begin, end) for the first num_heads heads in the buffers.
  void score_block(const HeadEvidence& head, int32_t begin, int32_t end, int32_t at, int32_t num_heads,
                   const Buffers& buffers) const {
    const int32_t dim = head.view.format.key_dim;
    const std::byte* keys[kBlockEntries];
    float* products[kBlockEntries];
    for (int32_t i = 0; i < end - begin; ++i) {
      load(head.view, begin + i, buffers.vector, nullptr);
      store_activations(head.isa, ActivationFormat::kF32, buffers.vector, dim, buffers.keys + i * buffers.row_bytes);
      keys[i] = buffers.key(i);
      products[i] = buffers.products + i * padded(dim);
    }
    for (int32_t h = 0; h < num_heads; ++h) {
      const float* mean = buffers.means + h * padded(dim);
      float* logits = buffers.logits + h * buffers.logit_stride + at;
      if (options_.covariance) {
        const PackedMatrix covariance{.type = DType::kF32,
                                      .rows = dim,
                                      .cols = dim,
                                      .data = buffers.panels + h * buffers.num_panels * buffers.panel_bytes,
                                      .panel_stride_bytes = buffers.panel_bytes};
        matmul(head.isa, covariance, ActivationFormat::kF32, keys, end - begin, 0, buffers.num_panels, products);
      }
      for (int32_t i = 0; i < end - begin; ++i) {
        const auto* key = reinterpret_cast<const float*>(keys[i]);
        logits[i] = dot(key, mean, dim);
        if (options_.covariance) logits[i] += dot(key, products[i], dim);
      }
    }
  }

  // Makes scores of the shares of attention.
  void finish(const KvView& view, std::span<float> scores, int32_t first, const Buffers& buffers) const {
    float largest = 0.0f;
    for (int32_t i = first; i < view.num_entries; ++i) {
      float& score = scores[static_cast<size_t>(i)];
      if (options_.values) {
        // Where the value is part of the key, that is where it is read from.
        load(view, i, reinterpret_cast<float*>(buffers.keys), buffers.vector);
        const double squares = static_cast<double>(dot(buffers.vector, buffers.vector, view.format.value_dim));
        score = (score + static_cast<float>(options_.epsilon)) * static_cast<float>(std::sqrt(squares));
      }
      largest = std::max(largest, score);
    }
    std::fill_n(scores.begin(), first, largest);
  }

  Options options_;
};

}  // namespace

void expected_attention(PolicyBuilder& builder, PartArguments& arguments) {
  const Options options{.future = arguments.integer("future", 512, 1, 1 << 20),
                        .num_sinks = arguments.integer("sinks", 4, 0, 1 << 20),
                        .covariance = arguments.choice("covariance", {"on", "off"}) == "on",
                        .values = arguments.choice("values", {"on", "off"}) == "on",
                        .epsilon = arguments.number("epsilon", 0.0, 0.0, 1e6)};
  builder.choose_score(arguments, std::make_shared<ExpectedAttention>(options));
  builder.protect(options.num_sinks, 0);
}

}  // namespace witan
