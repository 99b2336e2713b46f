#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"

namespace witan {
namespace {

// -log softmax(logits)[token]
double negative_log_likelihood(std::span<const float> logits, TokenId token) {
  const float highest = *std::ranges::max_element(logits);
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - highest));
  return std::log(sum) - static_cast<double>(logits[static_cast<size_t>(token)] - highest);
}

}  // namespace

double Perplexity::value() const { return std::exp(mean_nll); }

Perplexity measure_perplexity(LoadedModel& model, std::span<const TokenId> tokens, std::optional<TokenId> bos,
                              int32_t window, int32_t chunk,
                              const std::function<void(int64_t done, int64_t total)>& progress) {
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  const int32_t num_before = bos ? 1 : 0;
  if (num_before + num_tokens < 2) {
    fail(ErrorCode::kInvalidArgument, "a text of {} tokens has none to predict", num_tokens);
  }
  const int32_t stride = (window - num_before) / 2;
  if (stride < 1) fail(ErrorCode::kInvalidArgument, "a window of {} tokens is too short", window);
  const auto vocab_size = static_cast<size_t>(model.info().vocab_size);

  Perplexity result;
  double sum = 0.0;
  int64_t predicted = bos ? 0 : 1;  // tokens so far; nothing predicts the first of a text without BOS
  for (int64_t begin = 0; predicted < num_tokens; begin += stride) {
    const int64_t end = std::min(begin + 2 * int64_t{stride}, num_tokens);
    std::vector<TokenId> rows;
    if (bos) rows.push_back(*bos);
    rows.insert(rows.end(), tokens.begin() + begin, tokens.begin() + end);
    const auto sink = [&](int32_t first, int32_t count, std::span<const float> logits) {
      for (int32_t i = 0; i < count; ++i) {
        const int64_t next = begin + first + i - num_before + 1;  // what this row predicts
        if (next < predicted || next >= end) continue;
        const auto row = logits.subspan(static_cast<size_t>(i) * vocab_size, vocab_size);
        sum += negative_log_likelihood(row, tokens[static_cast<size_t>(next)]);
        ++result.num_tokens;
      }
      if (progress) progress(begin + (first + count) / 2, num_tokens);
    };
    score_tokens(model, rows, chunk, sink);
    predicted = end;
  }
  result.mean_nll = sum / static_cast<double>(result.num_tokens);
  return result;
}

}  // namespace witan
