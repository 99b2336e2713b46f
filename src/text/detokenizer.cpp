#include "text/tokenizer.h"
#include "text/unicode.h"

namespace witan {

namespace {

bool is_printed(TokenKind kind) {
  return kind == TokenKind::kNormal || kind == TokenKind::kUserDefined || kind == TokenKind::kByte;
}

}  // namespace

Detokenizer::Detokenizer(const Tokenizer& tokenizer, ShowSpecial show_special, DecodeFrom from)
    : tokenizer_(tokenizer), show_special_(show_special), at_start_(from == DecodeFrom::kTextStart) {}

std::string Detokenizer::push(TokenId token) {
  if (show_special_ == ShowSpecial::kNo && !is_printed(tokenizer_.token_kind(token))) return {};
  std::string bytes = tokenizer_.token_bytes(token);
  if (at_start_ && tokenizer_.strips_leading_space() && bytes.starts_with(' ')) bytes.erase(0, 1);
  at_start_ = false;
  pending_ += bytes;

  std::string text;
  size_t at = 0;
  while (at < pending_.size()) {
    const Utf8Char c = next_utf8(pending_, at);
    if (c.status == Utf8Status::kIncomplete) break;
    text += c.status == Utf8Status::kValid ? std::string_view(pending_).substr(at, c.size) : kReplacementCharacter;
    at += c.size;
  }
  pending_.erase(0, at);
  return text;
}

std::string Detokenizer::finish() {
  std::string text(pending_.empty() ? std::string_view() : kReplacementCharacter);
  pending_.clear();
  return text;
}

std::string decode(const Tokenizer& tokenizer, std::span<const TokenId> tokens, ShowSpecial show_special) {
  Detokenizer detokenizer(tokenizer, show_special);
  std::string text;
  for (const TokenId token : tokens) text += detokenizer.push(token);
  return text += detokenizer.finish();
}

}  // namespace witan
