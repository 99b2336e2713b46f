#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "engine/loaded_model.h"

namespace witan {

struct Perplexity {
  int64_t num_tokens = 0;  // that were predicted
  double mean_nll = 0.0;   // negative log likelihood of a token, natural logarithm
  double value() const;    // exp(mean_nll)
};

// How well a model predicts a text. Windows of `window` tokens (bos included, where there is one) start every
// half of that; in each the later half is predicted, in the first all of it, so that every token (without bos: but the
// first) is predicted once, after at least half a window of what comes before. `model` needs options.max_step_tokens
// and max_sequences of at least `chunk`. Throws Error(kInvalidArgument) where there is none to predict, and as
// score_tokens.
Perplexity measure_perplexity(LoadedModel& model, std::span<const TokenId> tokens, std::optional<TokenId> bos,
                              int32_t window, int32_t chunk,
                              const std::function<void(int64_t done, int64_t total)>& progress = {});

}  // namespace witan
