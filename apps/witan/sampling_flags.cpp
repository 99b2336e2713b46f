#include "sampling_flags.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>

#include "base/error.h"
#include "engine/prompt_text.h"
#include "files.h"
#include "help.h"

namespace witan {
namespace {

std::pair<TokenId, float> parse_bias(const std::string& text) {
  const size_t equals = text.find('=');
  TokenId token = 0;
  float bias = 0.0f;
  if (equals != std::string::npos) {
    const char* end = text.data() + text.size();
    const size_t number = equals + (text[equals + 1] == '+' ? 2 : 1);
    const auto id = std::from_chars(text.data(), text.data() + equals, token);
    const auto value = std::from_chars(text.data() + number, end, bias);
    if (id.ec == std::errc{} && id.ptr == text.data() + equals && value.ec == std::errc{} && value.ptr == end) {
      return {token, bias};
    }
  }
  fail(ErrorCode::kInvalidArgument, "--logit-bias {}: expected ID=BIAS, such as 42=-5 or 42=-inf", text);
}

KvSpan parse_pin(const std::string& text) {
  const char* const end = text.data() + text.size();
  KvSpan span;
  const auto begin = std::from_chars(text.data(), end, span.begin);
  if (begin.ec == std::errc{} && begin.ptr != end && *begin.ptr == ':') {
    const auto last = std::from_chars(begin.ptr + 1, end, span.end);
    if (last.ec == std::errc{} && last.ptr == end && span.begin >= 0 && span.begin < span.end) return span;
  }
  fail(ErrorCode::kInvalidArgument, "--kv-pin {}: expected BEGIN:END, tokens from BEGIN to before END, such as 0:120",
       text);
}

}  // namespace

GenerationRequest GenerationFlags::finished(std::vector<TokenId> prompt) const {
  GenerationRequest result = request;
  result.prompt = std::move(prompt);
  for (const std::string& bias : logit_bias) result.sampling.logit_bias.push_back(parse_bias(bias));
  for (const std::string& pin : kv_pins) result.kv_pinned.push_back(parse_pin(pin));
  return result;
}

GenerationFlags GenerationFlags::with_defaults(const GenerationDefaults& defaults) const {
  GenerationFlags result = *this;
  SamplingParams& sampling = result.request.sampling;
  const auto apply = [&](const char* flag, auto& value, const auto& chosen) {
    const auto is_given = [&](const CLI::Option* option) { return option->check_name(flag) && option->count() > 0; };
    if (!chosen || std::any_of(overrides.begin(), overrides.end(), is_given)) return;
    value = static_cast<std::remove_reference_t<decltype(value)>>(*chosen);
  };
  apply("--num-tokens", result.request.max_new_tokens, defaults.max_new_tokens);
  apply("--repetition-penalty", sampling.repetition_penalty, defaults.repetition_penalty);
  if (!defaults.do_sample) return result;
  apply("--temperature", sampling.temperature, std::optional(defaults.temperature.value_or(1.0)));
  apply("--top-k", sampling.top_k, defaults.top_k);
  apply("--top-p", sampling.top_p, defaults.top_p);
  apply("--min-p", sampling.min_p, defaults.min_p);
  return result;
}

void GenerationFlags::check() const {
  const char* const pin = !kv_pins.empty()        ? "--kv-pin"
                          : !kv_pin_texts.empty() ? "--kv-pin-text"
                          : kv_pin_system         ? "--kv-pin-system"
                                                  : nullptr;
  if (pin != nullptr && !request.kv_policy) {
    fail(ErrorCode::kInvalidArgument, "{} needs --kv: without a policy every entry stays", pin);
  }
  for (const std::string& text : kv_pin_texts) {
    if (text.empty()) fail(ErrorCode::kInvalidArgument, "--kv-pin-text: the text is empty");
  }
  // The vocabulary is not known yet.
  finished({}).sampling.validate(std::numeric_limits<int32_t>::max());
}

void pin_text(const Tokenizer* tokenizer, const std::string& text, GenerationRequest& request) {
  if (tokenizer == nullptr) fail(ErrorCode::kUnsupported, "--kv-pin-text needs a tokenizer, which this model lacks");
  const std::vector<KvSpan> spans = PromptText(*tokenizer, request.prompt).find(text);
  if (spans.empty()) fail(ErrorCode::kInvalidArgument, "--kv-pin-text: the text is not in the prompt: '{}'", text);
  request.kv_pinned.insert(request.kv_pinned.end(), spans.begin(), spans.end());
}

void add_kv_flag(CLI::App& app, std::optional<KvPolicy>& policy, const std::string& group) {
  const auto set_policy = [&policy](const std::string& text) {
    try {
      policy = parse_kv_policy(text.starts_with('@') ? read_text_file(text.substr(1)) : text);
    } catch (const Error& error) {
      throw CLI::ValidationError("--kv", error.what());
    }
  };
  app.add_option_function<std::string>(
         "--kv", set_policy,
         "Once a prompt is computed, keep only the KV entries that a policy chooses, or round older ones (lossy), such "
         "as "
         "snapkv,keep=0.2, or @FILE that has one; witan --list has the parts of policies, docs/kv-cache.md what they "
         "do")
      ->type_name("POLICY")
      ->group(group)
      ->default_str("none");
}

void check_depends_on_request(const std::optional<KvPolicy>& policy) {
  if (!policy || !policy->automatic || !policy->automatic->by_room) return;
  fail(ErrorCode::kInvalidArgument,
       "--kv {}: what it chooses depends on what runs beside; give it a budget, such as keep=0.5", policy->text);
}

void add_generation_flags(CLI::App& app, GenerationFlags& flags, AnswerKind kind) {
  GenerationRequest& request = flags.request;
  SamplingParams& sampling = request.sampling;
  const char* const group_name = "Generation";
  const auto add = [&](const char* name, auto& value, const char* type, const char* help) {
    return app.add_option(name, value, help)->type_name(type)->group(group_name)->capture_default_str();
  };
  // A model's generation_config.json may have defaults of its own for these.
  const auto add_overriding = [&](const char* name, auto& value, const char* type, const char* help) {
    CLI::Option* option = add(name, value, type, help);
    flags.overrides.push_back(option);
    return option;
  };
  const bool batch = kind == AnswerKind::kBatch;
  add_overriding("-n,--num-tokens", request.max_new_tokens, "N", "Most tokens generated per answer")
      ->check(in_range(1, std::numeric_limits<int32_t>::max()));
  if (batch) {
    add("--choices", request.num_choices, "N", "Answers to each prompt; answer i is sampled with seed + i")
        ->check(in_range(1, 128));
  }
  add_overriding("--temperature,--temp", sampling.temperature, "X", "0: always the most likely token");
  add_overriding("--top-k", sampling.top_k, "N", "Sample among the N most likely; 0: all");
  add_overriding("--top-p", sampling.top_p, "X",
                 "Sample among the most likely that reach this probability together; 1: all");
  add_overriding("--min-p", sampling.min_p, "X", "Drop tokens less likely than this times the most likely");
  add_overriding("--repetition-penalty", sampling.repetition_penalty, "X",
                 "Over 1 makes tokens of the prompt and the answer so far less likely");
  add("--presence-penalty", sampling.presence_penalty, "X", "Subtracted from logits of tokens generated so far");
  add("--frequency-penalty", sampling.frequency_penalty, "X", "The same, per occurrence");
  add("--seed", sampling.seed, "N", "The same seed gives the same text")
      ->check(CLI::Validator(CLI::NonNegativeNumber).description(""));
  if (batch) {
    add("--logprobs", sampling.num_logprobs, "N",
        "Report log probabilities with this many alternatives (needs --json); -1: none")
        ->check(in_range(-1, std::numeric_limits<int32_t>::max()));
  }
  add_texts(app, "--logit-bias", flags.logit_bias, "Added to a token's logit; may be repeated")
      ->type_name("ID=X")
      ->group(group_name)
      ->default_str("none");
  add_kv_flag(app, request.kv_policy, group_name);
  if (batch) {
    add_texts(
        app, "--kv-pin", flags.kv_pins,
        "Tokens of each prompt whose KV entries stay before all that the policy chooses, from BEGIN to before END; "
        "may be repeated")
        ->type_name("BEGIN:END")
        ->group(group_name)
        ->default_str("none");
    add_texts(app, "--kv-pin-text", flags.kv_pin_texts,
              "The same for the tokens of a text, wherever each prompt has it; may be repeated")
        ->group(group_name)
        ->default_str("none");
  } else if (kind == AnswerKind::kChat) {
    app.add_flag("--kv-pin-system", flags.kv_pin_system,
                 "The KV entries of the system message stay before all that the policy chooses")
        ->group(group_name);
  }
  app.add_flag("--ignore-eos", request.ignore_end_tokens, "Go on after the model's end tokens")->group(group_name);
  if (kind == AnswerKind::kTasks) return;
  add_texts(app, "--stop", request.stop_strings, "End the answer before this text; may be repeated")
      ->group(group_name)
      ->default_str("none");
  app.add_option("--stop-token", request.stop_tokens, "End the answer at this token; may be repeated")
      ->type_name("ID")
      ->allow_extra_args(false)
      ->group(group_name)
      ->default_str("none");
}

}  // namespace witan
