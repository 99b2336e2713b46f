#include "sampling_flags.h"

#include <charconv>
#include <limits>

#include "base/error.h"

namespace witan {
namespace {

std::pair<TokenId, float> parse_bias(const std::string& text) {
  const size_t equals = text.find('=');
  TokenId token = 0;
  float bias = 0.0f;
  if (equals != std::string::npos) {
    const char* end = text.data() + text.size();
    const auto id = std::from_chars(text.data(), text.data() + equals, token);
    const auto value = std::from_chars(text.data() + equals + 1, end, bias);
    if (id.ec == std::errc{} && id.ptr == text.data() + equals && value.ec == std::errc{} && value.ptr == end) {
      return {token, bias};
    }
  }
  fail(ErrorCode::kInvalidArgument, "--logit-bias {}: expected ID=BIAS, such as 42=-5 or 42=-inf", text);
}

}  // namespace

GenerationRequest GenerationFlags::finished(std::vector<TokenId> prompt) const {
  GenerationRequest result = request;
  result.prompt = std::move(prompt);
  for (const std::string& bias : logit_bias) result.sampling.logit_bias.push_back(parse_bias(bias));
  return result;
}

void add_generation_flags(CLI::App& app, GenerationFlags& flags) {
  GenerationRequest& request = flags.request;
  SamplingParams& sampling = request.sampling;
  const auto add = [&app](const char* name, auto& value, const char* help) {
    app.add_option(name, value, help)->capture_default_str()->group("Generation");
  };
  add("-n,--num-tokens", request.max_new_tokens, "Most tokens generated per answer");
  add("--choices", request.num_choices, "Answers to each prompt");
  add("--temperature,--temp", sampling.temperature, "0: always the most likely token");
  add("--top-k", sampling.top_k, "Sample among the k most likely; 0: all");
  add("--top-p", sampling.top_p, "Sample among the most likely that reach this probability together");
  add("--min-p", sampling.min_p, "Drop tokens less likely than this times the most likely");
  add("--repetition-penalty", sampling.repetition_penalty, "Over 1 makes tokens seen so far less likely");
  add("--presence-penalty", sampling.presence_penalty, "Subtracted from logits of tokens generated so far");
  add("--frequency-penalty", sampling.frequency_penalty, "The same, per occurrence");
  add("--seed", sampling.seed, "The same seed gives the same text");
  add("--logprobs", sampling.num_logprobs,
      "Report log probabilities with this many alternatives (with --json); -1: none");
  app.add_option("--logit-bias", flags.logit_bias, "ID=BIAS added to a token's logit; may be repeated")
      ->allow_extra_args(false)
      ->group("Generation");
  app.add_option("--stop", request.stop_strings, "End the answer before this text; may be repeated")
      ->allow_extra_args(false)
      ->group("Generation");
  app.add_option("--stop-token", request.stop_tokens, "End the answer at this token id; may be repeated")
      ->allow_extra_args(false)
      ->group("Generation");
  app.add_flag("--ignore-eos", request.ignore_end_tokens, "Go on after the model's end tokens")->group("Generation");
}

}  // namespace witan
