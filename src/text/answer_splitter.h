#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace witan {

enum class AnswerPart : uint8_t { kReasoning, kAnswer };

// How a model marks its reasoning, as its chat template shows.
enum class ReasoningFormat : uint8_t {
  kNone,
  kThinkTags,  // <think>...</think> before the answer
  kHarmony,    // gpt-oss: <|channel|>analysis<|message|>...<|end|>, the answer in channel final
};

struct AnswerPiece {
  AnswerPart part;
  std::string text;
};

// Tells reasoning from answer in a text that arrives bit by bit. The marks are in no piece, and neither is the white
// space next to them; a mark that is only begun is held back.
//   (push)* finish
class AnswerSplitter {
 public:
  // By the marks that the template's source names.
  static ReasoningFormat format_of(std::string_view template_source);

  // `prompt` ends in an opening mark where the template has begun the reasoning itself.
  AnswerSplitter(ReasoningFormat format, std::string_view prompt);

  std::vector<AnswerPiece> push(std::string_view text);
  std::vector<AnswerPiece> finish();

  // The control tokens that are marks; they have to be pushed as text, others need not.
  static bool is_mark(ReasoningFormat format, std::string_view piece);

 private:
  enum class State : uint8_t { kText, kHeader };

  void take_mark(std::string_view mark);
  void emit(std::string_view text, std::vector<AnswerPiece>& pieces);

  ReasoningFormat format_;
  State state_ = State::kText;
  AnswerPart part_ = AnswerPart::kAnswer;
  bool trims_ = true;  // white space at the beginning of a part is dropped
  std::string held_;
  std::string header_;  // of a harmony message: "<|channel|>" up to "<|message|>"
  std::string space_;   // white space that only counts when text of the same part follows
};

}  // namespace witan
