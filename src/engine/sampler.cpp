#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "base/error.h"

namespace witan {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Below this, e^x is no normal number.
constexpr float kLeastExponent = -87.0f;

// e^x for x <= 0 to within a few units in the last place; 0 below kLeastExponent. Exactly 1 at 0. Selects by masks and
// not by conditions, so that loops over it vectorise.
inline float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;     // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  constexpr float kLn2High = 0.693359375f;  // few enough bits that n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f;
  const uint32_t mask = 0u - static_cast<uint32_t>(x >= kLeastExponent);
  const float clamped =
      std::bit_cast<float>((std::bit_cast<uint32_t>(x) & mask) | (std::bit_cast<uint32_t>(kLeastExponent) & ~mask));
  const float shifted = clamped * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float sum = 1.0f / 5040;  // the exponential series; what is cut off is below 6e-9 for |r| <= ln(2) / 2
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const uint32_t power_of_two = (std::bit_cast<uint32_t>(shifted) << 23) + std::bit_cast<uint32_t>(1.0f);
  return sum * std::bit_cast<float>(power_of_two & mask);
}

// The order of tokens: larger logits first, then lower ids.
struct Candidate {
  float logit;
  TokenId token;
};
bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// Every truncation keeps the tokens that do not rank after some last one. By default: all.
struct Cut {
  float logit = -kInfinity;
  TokenId token = std::numeric_limits<TokenId>::max();
};

// Logits with the maximum of each chunk, by which most chunks are passed over.
class ChunkedLogits {
 public:
  static constexpr int64_t kChunk = 128;

  explicit ChunkedLogits(std::span<const float> logits);

  float max() const { return max_; }
  bool has_nan() const { return has_nan_; }
  TokenId arg_max() const;

  // The first `count` tokens by rank, the last of them in the last place, the others in any order. Those with a logit
  // of -inf do not count: fewer are returned when there are no more.
  std::vector<Candidate> first_by_rank(int64_t count) const;

  float weight(float logit, float inverse_temperature) const {
    return exp_nonpositive((logit - max_) * inverse_temperature);
  }
  // Tokens of neighbouring ranks, among which the weights of all tokens, summed by rank, reach a fraction in (0, 1) of
  // their sum; target is what is left of that for these tokens. In linear time.
  struct Bucket {
    std::vector<Candidate> candidates;
    double target;
  };
  Bucket bucket_at(double fraction, float inverse_temperature) const;

  // The sum of the weights of all tokens.
  double total_weight(float inverse_temperature) const;
  // The token at the place `fraction` in [0, 1) of the kept tokens' weights, in the order of ids.
  TokenId draw(float inverse_temperature, const Cut& cut, double fraction) const;

 private:
  int64_t num_chunks() const { return std::ssize(chunk_max_); }
  std::span<const float> chunk(int64_t index) const {
    const int64_t first = index * kChunk;
    return logits_.subspan(first, std::min<int64_t>(kChunk, std::ssize(logits_) - first));
  }
  // Writes the weights of a chunk's tokens, 0 for those not kept, and returns their sum.
  double chunk_weights(int64_t index, float inverse_temperature, const Cut& cut,
                       std::array<float, kChunk>& weights) const;

  std::span<const float> logits_;
  std::vector<float> chunk_max_;
  float max_ = -kInfinity;
  bool has_nan_ = false;
};

ChunkedLogits::ChunkedLogits(std::span<const float> logits)
    : logits_(logits), chunk_max_((logits.size() + kChunk - 1) / kChunk) {
  constexpr size_t kLanes = 16;
  std::array<int32_t, kLanes> is_nan{};
  for (int64_t index = 0; index < num_chunks(); ++index) {
    const std::span<const float> values = chunk(index);
    std::array<float, kLanes> lanes;
    lanes.fill(-kInfinity);
    size_t i = 0;
    for (; i + kLanes <= values.size(); i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const float value = values[i + lane];
        lanes[lane] = value > lanes[lane] ? value : lanes[lane];
        is_nan[lane] |= value != value ? 1 : 0;
      }
    }
    for (; i < values.size(); ++i) {
      lanes[0] = std::max(lanes[0], values[i]);
      is_nan[0] |= std::isnan(values[i]) ? 1 : 0;
    }
    chunk_max_[index] = *std::ranges::max_element(lanes);
    max_ = std::max(max_, chunk_max_[index]);
  }
  has_nan_ = std::ranges::any_of(is_nan, [](int32_t flag) { return flag != 0; });
}

TokenId ChunkedLogits::arg_max() const {
  const auto index = std::ranges::find(chunk_max_, max_) - chunk_max_.begin();
  const std::span<const float> values = chunk(index);
  return static_cast<TokenId>(index * kChunk + (std::ranges::find(values, max_) - values.begin()));
}

std::vector<Candidate> ChunkedLogits::first_by_rank(int64_t count) const {
  if (count == 0) return {};
  std::vector<Candidate> kept;
  kept.reserve(std::min(2 * count, std::ssize(logits_)));
  const auto drop_last = [&] {
    std::ranges::nth_element(kept, kept.begin() + count - 1, ranks_before);
    kept.resize(count);
  };
  // Equal to the threshold is too little: what has it has a lower id.
  float threshold = -kInfinity;
  for (int64_t index = 0; index < num_chunks(); ++index) {
    if (!(chunk_max_[index] > threshold)) continue;
    const std::span<const float> values = chunk(index);
    for (int64_t i = 0; i < std::ssize(values); ++i) {
      if (!(values[i] > threshold)) continue;
      kept.push_back({values[i], static_cast<TokenId>(index * kChunk + i)});
      if (std::ssize(kept) < 2 * count) continue;
      drop_last();
      threshold = kept.back().logit;
    }
  }
  if (std::ssize(kept) >= count) drop_last();
  return kept;
}

double ChunkedLogits::chunk_weights(int64_t index, float inverse_temperature, const Cut& cut,
                                    std::array<float, kChunk>& weights) const {
  const std::span<const float> values = chunk(index);
  const float max = max_;
  for (size_t i = 0; i < values.size(); ++i) weights[i] = exp_nonpositive((values[i] - max) * inverse_temperature);
  if (cut.logit > -kInfinity) {
    // Of the tokens at the cut's logit, the first num_at_cut of this chunk are kept.
    const int64_t num_at_cut = cut.token - index * kChunk + int64_t{1};
    for (int64_t i = 0; i < std::ssize(values); ++i) {
      const bool kept = values[i] > cut.logit || (values[i] == cut.logit && i < num_at_cut);
      weights[i] = kept ? weights[i] : 0.0f;
    }
  }
  std::fill(weights.begin() + std::ssize(values), weights.end(), 0.0f);
  std::array<double, 8> lanes{};
  for (size_t i = 0; i < weights.size(); i += lanes.size()) {
    for (size_t lane = 0; lane < lanes.size(); ++lane) lanes[lane] += static_cast<double>(weights[i + lane]);
  }
  return std::accumulate(lanes.begin(), lanes.end(), 0.0);
}

ChunkedLogits::Bucket ChunkedLogits::bucket_at(double fraction, float inverse_temperature) const {
  // Logits are put into buckets by their distance from the maximum, as far as weights are above 0. That is monotonic,
  // rounding or not.
  constexpr int32_t kNumBuckets = 4096;
  const float scale = std::min(kNumBuckets / -kLeastExponent * inverse_temperature, std::numeric_limits<float>::max());
  const auto bucket_of = [max = max_, scale](float logit) {
    const float bucket = (max - logit) * scale;
    return static_cast<int32_t>(bucket < kNumBuckets - 1 ? bucket : kNumBuckets - 1);
  };

  std::vector<double> sums(kNumBuckets);
  std::array<float, kChunk> weights;
  std::array<int32_t, kChunk> buckets;
  for (int64_t index = 0; index < num_chunks(); ++index) {
    const std::span<const float> values = chunk(index);
    chunk_weights(index, inverse_temperature, Cut(), weights);
    for (size_t i = 0; i < values.size(); ++i) buckets[i] = bucket_of(values[i]);
    for (size_t i = 0; i < values.size(); ++i) sums[buckets[i]] += static_cast<double>(weights[i]);
  }

  Bucket result = {.candidates = {}, .target = fraction * std::accumulate(sums.begin(), sums.end(), 0.0)};
  int32_t last = 0;
  while (last < kNumBuckets - 1 && sums[last] < result.target) result.target -= sums[last++];
  for (int64_t index = 0; index < num_chunks(); ++index) {
    if (!(chunk_max_[index] > -kInfinity) || bucket_of(chunk_max_[index]) > last) continue;
    const std::span<const float> values = chunk(index);
    for (int64_t i = 0; i < std::ssize(values); ++i) {
      if (!(values[i] > -kInfinity) || bucket_of(values[i]) != last) continue;
      result.candidates.push_back({values[i], static_cast<TokenId>(index * kChunk + i)});
    }
  }
  return result;
}

double ChunkedLogits::total_weight(float inverse_temperature) const {
  std::array<float, kChunk> weights;
  double total = 0;
  for (int64_t index = 0; index < num_chunks(); ++index) {
    total += chunk_weights(index, inverse_temperature, Cut(), weights);
  }
  return total;
}

TokenId ChunkedLogits::draw(float inverse_temperature, const Cut& cut, double fraction) const {
  std::array<float, kChunk> weights;
  std::vector<double> chunk_sums(num_chunks());
  double total = 0;
  for (int64_t index = 0; index < num_chunks(); ++index) {
    if (chunk_max_[index] < cut.logit) continue;
    chunk_sums[index] = chunk_weights(index, inverse_temperature, cut, weights);
    total += chunk_sums[index];
  }
  // Rounding may leave the target at the very end: then the last token that has any weight is meant.
  double target = fraction * total;
  int64_t index = -1;
  for (int64_t next = 0; next < num_chunks(); ++next) {
    if (chunk_sums[next] == 0) continue;
    if (index >= 0) target -= chunk_sums[index];
    index = next;
    if (target < chunk_sums[index]) break;
  }
  chunk_weights(index, inverse_temperature, cut, weights);
  int64_t last = -1;
  for (int64_t i = 0; i < std::ssize(weights); ++i) {
    if (weights[i] == 0) continue;
    last = i;
    target -= static_cast<double>(weights[i]);
    if (target < 0) break;
  }
  return static_cast<TokenId>(index * kChunk + last);
}

// Weights are exact to float rounding only, and so are the parameters (the float nearest to 0.1 is above it). A set
// whose probability misses top_p by less than this reaches it.
constexpr double kTopPSlack = 1e-6;

// The first candidate by rank with which the candidates' weights, summed by rank, reach `target`, or the last one.
// Halves what is in question in each round, so it takes linear time. Reorders the candidates.
Cut find_cut(const ChunkedLogits& logits, float inverse_temperature, std::span<Candidate> candidates, double target) {
  while (candidates.size() > 1) {
    const size_t middle = candidates.size() / 2;
    std::ranges::nth_element(candidates, candidates.begin() + middle, ranks_before);
    double sum = 0;
    for (const Candidate& candidate : candidates.first(middle)) {
      sum += static_cast<double>(logits.weight(candidate.logit, inverse_temperature));
    }
    if (sum >= target) {
      candidates = candidates.first(middle);
    } else {
      target -= sum;
      candidates = candidates.subspan(middle);
    }
  }
  return {candidates.front().logit, candidates.front().token};
}

// top_k, then top_p of what that leaves.
Cut truncate_by_rank(const SamplingParams& params, const ChunkedLogits& logits, float inverse_temperature) {
  const double top_p = static_cast<double>(params.top_p) * (1 - kTopPSlack);
  if (params.top_k == 0) {
    if (params.top_p == 1) return Cut();
    ChunkedLogits::Bucket last = logits.bucket_at(top_p, inverse_temperature);
    return find_cut(logits, inverse_temperature, last.candidates, last.target);
  }
  std::vector<Candidate> candidates = logits.first_by_rank(params.top_k);
  if (params.top_p == 1) {
    if (std::ssize(candidates) < params.top_k) return Cut();
    return {candidates.back().logit, candidates.back().token};
  }
  double total = 0;
  for (const Candidate& candidate : candidates) {
    total += static_cast<double>(logits.weight(candidate.logit, inverse_temperature));
  }
  return find_cut(logits, inverse_temperature, candidates, top_p * total);
}

Cut truncate(const SamplingParams& params, const ChunkedLogits& logits, float inverse_temperature) {
  Cut cut = truncate_by_rank(params, logits, inverse_temperature);
  if (params.min_p > 0) {
    const double below_max = static_cast<double>(params.temperature) * std::log(static_cast<double>(params.min_p));
    const auto least = static_cast<float>(static_cast<double>(logits.max()) + below_max);
    if (least > cut.logit) cut = Cut{.logit = least};
  }
  return cut;
}

// Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators" (2014): SplitMix64's output function.
uint64_t mix(uint64_t bits) {
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return bits ^ (bits >> 31);
}

// Uniform in [0, 1), of 53 bits.
double random_fraction(uint64_t seed, uint64_t index) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
  const uint64_t bits = mix(mix(seed + kGolden) + (index + 1) * kGolden);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

void check_tokens(std::span<const TokenId> tokens, size_t vocab_size) {
  for (TokenId token : tokens) {
    if (token < 0 || static_cast<size_t>(token) >= vocab_size) {
      fail(ErrorCode::kInvalidArgument, "token {} is outside of the vocabulary of {}", token, vocab_size);
    }
  }
}

void apply_bias(const SamplingParams& params, std::span<float> logits) {
  for (const auto& [token, bias] : params.logit_bias) {
    WITAN_CHECK(token >= 0 && token < std::ssize(logits), "logit_bias of token {} of {}", token, logits.size());
    // Forbidden is forbidden: +inf - inf would not be a number.
    logits[token] = bias == -kInfinity ? -kInfinity : logits[token] + bias;
  }
}

void apply_repetition_penalty(float penalty, std::span<const TokenId> prompt, std::span<const TokenId> output,
                              std::span<float> logits) {
  std::vector<bool> seen(logits.size());
  for (std::span<const TokenId> tokens : {prompt, output}) {
    for (TokenId token : tokens) {
      if (seen[token]) continue;
      seen[token] = true;
      logits[token] = logits[token] > 0 ? logits[token] / penalty : logits[token] * penalty;
    }
  }
}

void apply_output_penalties(const SamplingParams& params, std::span<const TokenId> output, std::span<float> logits) {
  std::vector<TokenId> tokens(output.begin(), output.end());
  std::ranges::sort(tokens);
  for (auto first = tokens.begin(); first != tokens.end();) {
    const auto last = std::find_if(first, tokens.end(), [&](TokenId token) { return token != *first; });
    // In double, where no product or difference of floats overflows.
    const double penalty = static_cast<double>(params.presence_penalty) +
                           static_cast<double>(last - first) * static_cast<double>(params.frequency_penalty);
    logits[*first] = static_cast<float>(static_cast<double>(logits[*first]) - penalty);
    first = last;
  }
}

// The logits after bias and penalties; `storage` holds them where they differ from the model's.
std::span<const float> adjust(const SamplingParams& params, std::span<const float> logits,
                              std::span<const TokenId> prompt, std::span<const TokenId> output,
                              std::vector<float>& storage) {
  const bool penalizes_repetition = params.repetition_penalty != 1 && (!prompt.empty() || !output.empty());
  const bool penalizes_output = (params.presence_penalty != 0 || params.frequency_penalty != 0) && !output.empty();
  if (params.logit_bias.empty() && !penalizes_repetition && !penalizes_output) return logits;
  storage.assign(logits.begin(), logits.end());
  apply_bias(params, storage);
  if (penalizes_repetition || penalizes_output) {
    check_tokens(prompt, logits.size());
    check_tokens(output, logits.size());
  }
  if (penalizes_repetition) apply_repetition_penalty(params.repetition_penalty, prompt, output, storage);
  if (penalizes_output) apply_output_penalties(params, output, storage);
  return storage;
}

// The logits in chunks, of which there is a distribution. Logits of +inf are taken for their limit: `logits` is that
// then, in `storage`.
ChunkedLogits checked(std::span<const float>& logits, std::vector<float>& storage) {
  ChunkedLogits chunked(logits);
  if (chunked.has_nan()) {
    const auto place = std::ranges::find_if(logits, [](float logit) { return std::isnan(logit); }) - logits.begin();
    fail(ErrorCode::kInvalidArgument, "the logit of token {} is not a number", place);
  }
  if (chunked.max() == -kInfinity) {
    fail(ErrorCode::kInvalidArgument, "no token can be picked: all {} logits are -inf", logits.size());
  }
  if (chunked.max() < kInfinity) return chunked;
  // What +inf means in the limit: these tokens share all the probability evenly.
  std::vector<float> limit(logits.size());
  std::ranges::transform(logits, limit.begin(), [](float logit) { return logit == kInfinity ? 0.0f : -kInfinity; });
  storage = std::move(limit);
  logits = storage;
  return ChunkedLogits(logits);
}

void report_logprobs(int32_t num_alternatives, std::span<const float> logits, const ChunkedLogits& chunked,
                     SampleResult& result) {
  const double log_total = std::log(chunked.total_weight(1.0f));
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(chunked.max()) - log_total);
  };
  result.logprob = logprob(logits[result.token]);
  std::vector<Candidate> candidates = chunked.first_by_rank(std::min<int64_t>(num_alternatives, std::ssize(logits)));
  std::ranges::sort(candidates, ranks_before);
  result.alternatives.reserve(candidates.size());
  for (const Candidate& candidate : candidates) {
    result.alternatives.push_back({candidate.token, logprob(candidate.logit)});
  }
}

}  // namespace

void SamplingParams::validate(int32_t vocab_size) const {
  const auto check = [](bool valid, const char* name, const char* range, auto value) {
    if (!valid) fail(ErrorCode::kInvalidArgument, "{} must be {}, not {}", name, range, value);
  };
  for (const auto& [token, bias] : logit_bias) {
    if (token < 0 || token >= vocab_size) {
      fail(ErrorCode::kInvalidArgument, "logit_bias is given for token {}, but tokens are in [0, {})", token,
           vocab_size);
    }
    if (!(bias < kInfinity)) {
      fail(ErrorCode::kInvalidArgument, "logit_bias of token {} must be a finite number or -inf, not {}", token, bias);
    }
  }
  check(repetition_penalty > 0 && std::isfinite(repetition_penalty), "repetition_penalty", "finite and above 0",
        repetition_penalty);
  check(std::isfinite(presence_penalty), "presence_penalty", "finite", presence_penalty);
  check(std::isfinite(frequency_penalty), "frequency_penalty", "finite", frequency_penalty);
  check(temperature >= 0 && std::isfinite(temperature), "temperature", "finite and at least 0", temperature);
  check(top_k >= 0, "top_k", "at least 0 (0: all tokens)", top_k);
  check(top_p > 0 && top_p <= 1, "top_p", "in (0, 1]", top_p);
  check(min_p >= 0 && min_p <= 1, "min_p", "in [0, 1]", min_p);
  if (num_logprobs < -1 || num_logprobs > vocab_size) {
    fail(ErrorCode::kInvalidArgument, "num_logprobs must be in [-1, {}] (-1: none), not {}", vocab_size, num_logprobs);
  }
}

SampleResult sample(const SamplingParams& params, std::span<const float> logits, std::span<const TokenId> prompt,
                    std::span<const TokenId> output) {
  std::vector<float> storage;
  logits = adjust(params, logits, prompt, output, storage);
  const ChunkedLogits chunked = checked(logits, storage);
  SampleResult result;
  if (params.temperature == 0) {
    result.token = chunked.arg_max();
  } else {
    // Within the normal floats, or 0 times the inverse (of a logit equal to the maximum) would not be 0.
    const float inverse_temperature =
        std::clamp(1 / params.temperature, std::numeric_limits<float>::min(), std::numeric_limits<float>::max());
    const Cut cut = truncate(params, chunked, inverse_temperature);
    result.token = chunked.draw(inverse_temperature, cut, random_fraction(params.seed, output.size()));
  }
  if (params.num_logprobs >= 0) report_logprobs(params.num_logprobs, logits, chunked, result);
  return result;
}

SampleResult report_token(TokenId token, int32_t num_alternatives, std::span<const float> logits) {
  check_tokens({&token, 1}, logits.size());
  std::vector<float> storage;
  const ChunkedLogits chunked = checked(logits, storage);
  SampleResult result{.token = token, .alternatives = {}};
  report_logprobs(num_alternatives, logits, chunked, result);
  return result;
}

}  // namespace witan
