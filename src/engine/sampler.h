#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/types.h"

namespace witan {

// How the next token is picked. The steps run in the order of the members; each default leaves the distribution as
// it is, and the default as a whole is greedy.
struct SamplingParams {
  std::vector<std::pair<TokenId, float>> logit_bias = {};  // added to logits; finite, or -inf to forbid a token
  float repetition_penalty = 1.0f;  // > 0; divides positive and multiplies negative logits of tokens seen in prompt or
                                    // output (CTRL, arXiv 1909.05858, 4.1)
  float presence_penalty = 0.0f;    // subtracted once from logits of tokens in the output
  float frequency_penalty = 0.0f;   // subtracted per occurrence in the output
  float temperature = 0.0f;         // 0: greedy (the lowest id among equals), the rest is then not used
  int32_t top_k = 0;                // keep the k largest; 0: all
  float top_p = 1.0f;               // keep the smallest set whose probability reaches it; in (0, 1]
  float min_p = 0.0f;               // keep tokens with at least min_p times the largest probability; in [0, 1]
  uint64_t seed = 0;                // of this sequence's random numbers

  int32_t num_logprobs = -1;  // alternatives reported with each token; -1: no logprobs at all

  // Throws Error(kInvalidArgument) naming the parameter, its range and the value; NaN is never in range.
  void validate(int32_t vocab_size) const;
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0.0f;
};

struct SampleResult {
  TokenId token = 0;
  // Of the model's distribution, of sample() after bias and penalties and when num_logprobs >= 0; before temperature
  // and truncation.
  float logprob = 0.0f;
  std::vector<TokenLogprob> alternatives;  // the num_logprobs most likely, descending, ties by id; fewer
                                           // when fewer are possible
};

// Picks the next token of one sequence from its logits [vocab_size]. prompt and output are the sequence's tokens so
// far. The random number is a pure function of (seed, output.size()), so the same seed gives the same text whatever
// else runs, and a recomputed sequence goes on as it would have.
// Logits of +inf share all the probability evenly, their limit.
// Logits that are all -inf or hold NaN, tokens outside of the vocabulary: Error(kInvalidArgument) telling so.
// Thread safety: may be called from any thread.
SampleResult sample(const SamplingParams& params, std::span<const float> logits, std::span<const TokenId> prompt,
                    std::span<const TokenId> output);

// The same report of a token that is given: its log probability under the logits as they are (natural logarithm,
// temperature 1), with so many alternatives. Throws as sample does.
SampleResult report_token(TokenId token, int32_t num_alternatives, std::span<const float> logits);

}  // namespace witan
