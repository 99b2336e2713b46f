#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace witan {

// The flags that shape a generation.
struct GenerationFlags {
  GenerationRequest request;
  std::vector<std::string> logit_bias;        // "ID=BIAS"
  std::vector<std::string> kv_pins;           // "BEGIN:END", tokens of each prompt
  std::vector<std::string> kv_pin_texts;      // which each prompt has
  bool kv_pin_system = false;                 // of a conversation
  std::vector<const CLI::Option*> overrides;  // what may say otherwise than a model's own defaults

  // The flags with a model's defaults where the command line says nothing.
  GenerationFlags with_defaults(const GenerationDefaults& defaults) const;

  // A request for this prompt, without the texts to be pinned. Throws Error(kInvalidArgument) for a bias or a span
  // that does not parse.
  GenerationRequest finished(std::vector<TokenId> prompt) const;
  // What can be found wrong before a model is loaded. Throws Error(kInvalidArgument) naming it.
  void check() const;
};

// Pins the entries of the tokens that overlap with a text of --kv-pin-text, wherever the prompt has it. Throws
// Error(kInvalidArgument) when it does not occur, Error(kUnsupported) without a tokenizer.
void pin_text(const Tokenizer* tokenizer, const std::string& text, GenerationRequest& request);

// --kv, in a group of the help.
void add_kv_flag(CLI::App& app, std::optional<KvPolicy>& policy, const std::string& group);
// Refuses a policy that depends on what else runs, `auto` without a budget, where results are compared. Throws
// Error(kInvalidArgument).
void check_depends_on_request(const std::optional<KvPolicy>& policy);

enum class AnswerKind : uint8_t {
  kBatch,  // several prompts, several answers to each
  kChat,   // one answer at a time
  kTasks,  // one answer each; how it ends is the task's business
};
void add_generation_flags(CLI::App& app, GenerationFlags& flags, AnswerKind kind = AnswerKind::kBatch);

}  // namespace witan
