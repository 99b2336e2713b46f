#include "kv/policy/window_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "kernels/elementwise/elementwise.h"

namespace witan {
namespace {

// Rows whose weights are held at once: a row of weights is as long as the context.
constexpr int32_t kRowsAtOnce = 16;

// The scratch of one head, in floats.
struct Layout {
  int64_t row_floats;  // entries, in whole splits
  int64_t weights = 0;
  int64_t states;
  int64_t sum;
  int64_t pooled;
  int64_t kernel_scratch;
  int64_t end;

  Layout(const HeadEvidence& head, int32_t rows_at_once)
      : row_floats(int64_t{head.view.num_splits()} * kAttentionSplit),
        states(rows_at_once * row_floats),
        sum(states + (int64_t{rows_at_once} * head.view.num_splits() * 2 + 15) / 16 * 16),
        pooled(sum + row_floats),
        kernel_scratch(pooled + row_floats),
        end(kernel_scratch +
            attention_scratch_bytes(head.view.format, rows_at_once) / static_cast<int64_t>(sizeof(float))) {}
};

class WindowAttention : public KvScorer {
 public:
  WindowAttention(int32_t window, int32_t kernel, Pooling pooling)
      : window_(window), kernel_(kernel), pooling_(pooling) {}

  int32_t num_query_tokens() const override { return window_; }

  int64_t scratch_floats(const HeadEvidence& head) const override { return Layout(head, kRowsAtOnce).end; }

  void score(const HeadEvidence& head, std::span<float> scores, float* scratch) const override {
    const Layout layout(head, kRowsAtOnce);
    const int32_t num_tokens = head.num_query_tokens();
    WITAN_CHECK(num_tokens > 0, "no queries");
    const int32_t num_judged = head.view.num_entries - num_tokens;
    std::ranges::fill(scores, 0.0f);
    for (int32_t g = 0; g < head.group; ++g) {
      float* sum = scratch + layout.sum;
      std::fill_n(sum, layout.row_floats, 0.0f);
      for (int32_t token = 0; token < num_tokens; token += kRowsAtOnce) {
        add_weights(head, g, token, std::min(kRowsAtOnce, num_tokens - token), layout, scratch);
      }
      float* pooled = scratch + layout.pooled;
      pool(sum, num_judged, pooled);
      // Sums over the tokens: their number is the same for all.
      axpy(head.isa, 1.0f / static_cast<float>(num_tokens * head.group), pooled, num_judged, scores.data());
    }
  }

 private:
  // sum += the attention weights of query head g of some tokens.
  static void add_weights(const HeadEvidence& head, int32_t g, int32_t first_token, int32_t num_tokens,
                          const Layout& layout, float* scratch) {
    const int32_t num_splits = head.view.num_splits();
    const float* queries[kRowsAtOnce];
    int32_t positions[kRowsAtOnce];
    float* states[kRowsAtOnce];
    float* weights[kRowsAtOnce];
    for (int32_t r = 0; r < num_tokens; ++r) {
      const int32_t row = (first_token + r) * head.group + g;
      queries[r] = head.queries.queries[row];
      positions[r] = head.queries.positions[row];
    }
    const AttentionRows rows{.queries = queries,
                             .positions = positions,
                             .num_rows = num_tokens,
                             .scale = head.queries.scale,
                             .window = head.queries.window};
    const auto state = [&](int32_t r, int32_t split) {
      return scratch + layout.states + (int64_t{r} * num_splits + split) * 2;
    };
    for (int32_t split = 0; split < num_splits; ++split) {
      for (int32_t r = 0; r < num_tokens; ++r) {
        states[r] = state(r, split);
        weights[r] = scratch + layout.weights + r * layout.row_floats + int64_t{split} * kAttentionSplit;
      }
      attention_weights(head.isa, head.view, rows, split, states, weights,
                        reinterpret_cast<std::byte*>(scratch + layout.kernel_scratch));
    }
    for (int32_t r = 0; r < num_tokens; ++r) {
      double max = -std::numeric_limits<double>::infinity();
      if (head.sinks != nullptr) max = static_cast<double>(head.sinks[g]);
      for (int32_t split = 0; split < num_splits; ++split)
        max = std::fmax(max, static_cast<double>(state(r, split)[0]));
      double total = head.sinks == nullptr ? 0.0 : std::exp(static_cast<double>(head.sinks[g]) - max);
      for (int32_t split = 0; split < num_splits; ++split) {
        total += static_cast<double>(state(r, split)[1]) * std::exp(static_cast<double>(state(r, split)[0]) - max);
      }
      for (int32_t split = 0; split < num_splits; ++split) {
        const auto factor = static_cast<float>(std::exp(static_cast<double>(state(r, split)[0]) - max) / total);
        axpy(head.isa, factor, scratch + layout.weights + r * layout.row_floats + int64_t{split} * kAttentionSplit,
             kAttentionSplit, scratch + layout.sum + int64_t{split} * kAttentionSplit);
      }
    }
  }

  void pool(const float* in, int32_t n, float* out) const {
    const int32_t reach = kernel_ / 2;
    for (int32_t i = 0; i < n; ++i) {
      const int32_t begin = std::max(0, i - reach);
      const int32_t end = std::min(n, i + reach + 1);
      float value = in[begin];
      for (int32_t j = begin + 1; j < end; ++j)
        value = pooling_ == Pooling::kMax ? std::max(value, in[j]) : value + in[j];
      out[i] = pooling_ == Pooling::kMax ? value : value / static_cast<float>(kernel_);
    }
  }

  int32_t window_;
  int32_t kernel_;
  Pooling pooling_;
};

}  // namespace

std::shared_ptr<const KvScorer> window_attention(int32_t window, int32_t kernel, Pooling pooling) {
  return std::make_shared<WindowAttention>(window, kernel, pooling);
}

std::shared_ptr<const KvScorer> window_attention(PolicyBuilder& builder, PartArguments& arguments, int32_t kernel) {
  const int32_t window = arguments.integer("window", 32, 1, 4096);
  kernel = arguments.integer("kernel", kernel, 1, 1023);
  if (kernel % 2 == 0) {
    fail(ErrorCode::kInvalidArgument, "{}: kernel must be odd, not {}", arguments.part(), kernel);
  }
  const bool max = arguments.choice("pool", {"avg", "max"}) == "max";
  builder.protect(0, window);
  return window_attention(window, kernel, max ? Pooling::kMax : Pooling::kMean);
}

}  // namespace witan
