#include "answer_reader.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace witan {

AnswerReader::AnswerReader(const Tokenizer& tokenizer, ReasoningFormat format, std::string_view prompt,
                           bool has_stop_strings)
    : tokenizer_(tokenizer),
      format_(format),
      has_stop_strings_(has_stop_strings),
      shown_(tokenizer, ShowSpecial::kYes, DecodeFrom::kContinuation),
      splitter_(format, prompt) {}

std::vector<AnswerPiece> AnswerReader::push(const GenerationOutput& output) {
  std::vector<AnswerPiece> pieces;
  const auto add = [&](std::vector<AnswerPiece> more) { std::ranges::move(more, std::back_inserter(pieces)); };
  if (has_stop_strings_) {
    add(splitter_.push(output.text));
  } else if (output.token) {
    const TokenId token = output.token->token;
    const TokenKind kind = tokenizer_.token_kind(token);
    const bool is_text = kind == TokenKind::kNormal || kind == TokenKind::kUserDefined || kind == TokenKind::kByte;
    const bool ends = output.finish == FinishReason::kStop;
    if (is_text ? !ends : AnswerSplitter::is_mark(format_, tokenizer_.token_piece(token))) {
      add(splitter_.push(shown_.push(token)));
    }
  }
  if (output.finish) {
    if (!has_stop_strings_) add(splitter_.push(shown_.finish()));
    add(splitter_.finish());
  }
  return pieces;
}

}  // namespace witan
