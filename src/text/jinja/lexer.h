#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace witan::jinja {

enum class TokenType : uint8_t {
  kText,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenType type;
  std::string text;  // of a string: what it says, escapes resolved; of a number: its digits
  int line;
};

// Cuts a template into tokens as Jinja does with trim_blocks and lstrip_blocks: newlines become "\n", one at the end of
// the template is dropped, and so is the text that whitespace control removes. Comments leave no tokens, raw blocks one
// of text. Throws Error(kBadFile) naming `name`, line and cause.
std::vector<Token> tokenize(std::string_view source, const std::string& name);

}  // namespace witan::jinja
