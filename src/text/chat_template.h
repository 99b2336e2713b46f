#pragma once

#include <ctime>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/template.h"
#include "text/tokenizer.h"

namespace witan {

// A conversation as templates see it.
struct ChatInput {
  jinja::Value messages;                        // a list of dicts
  jinja::Value tools = jinja::None{};           // a list, or None
  bool add_generation_prompt = true;            // end with the beginning of the assistant's answer
  jinja::Value extra = jinja::Value::dict({});  // a dict of further variables
  std::optional<std::tm> now;                   // what strftime_now() formats; none: the local time
};

// A conversation as a JSON object: "messages" (required), "tools", "add_generation_prompt", "extra" (an object of
// further variables), "bos_token" and "eos_token" (which go into `extra`), and "now" as "2025-01-15 12:34:56". Null is
// as good as absent. Throws Error(kInvalidArgument) naming `source`, and the key that is unknown or of a wrong type.
ChatInput parse_chat_input(std::string_view json, const std::string& source);

// The model's own special tokens, by the names that templates use: bos_token, eos_token, ...
using SpecialTokenNames = std::vector<std::pair<std::string, std::string>>;

// How a model wants conversations written. Immutable: any thread may render.
class ChatTemplate {
 public:
  // Errors: see jinja::Template.
  ChatTemplate(std::string source, const std::string& name, SpecialTokenNames special_tokens);

  const std::string& source() const { return source_; }

  // The prompt. Names in `extra` win over the special tokens, and those over nothing: a token that the model does not
  // have is undefined. Errors: see jinja::Template.
  std::string render(const ChatInput& input) const;

 private:
  std::string source_;
  jinja::Template template_;
  SpecialTokenNames special_tokens_;
};

// The ids of a rendered prompt: names of control tokens become those tokens, and BOS goes before it where the tokenizer
// adds one and the template has not written it.
std::vector<TokenId> encode_prompt(const Tokenizer& tokenizer, std::string_view prompt);

}  // namespace witan
