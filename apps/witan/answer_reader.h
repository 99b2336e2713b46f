#pragma once

#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "text/answer_splitter.h"

namespace witan {

// The pieces of a chat answer from the outputs of its generation. Control tokens are no part of it, but for those that
// mark reasoning.
class AnswerReader {
 public:
  // `prompt` as for AnswerSplitter. Where stop strings end the answer, its text is taken as the engine cuts it.
  AnswerReader(const Tokenizer& tokenizer, ReasoningFormat format, std::string_view prompt, bool has_stop_strings);

  // Of the next output; with the one that finishes, all that is left.
  std::vector<AnswerPiece> push(const GenerationOutput& output);

 private:
  const Tokenizer& tokenizer_;
  ReasoningFormat format_;
  bool has_stop_strings_;
  Detokenizer shown_;
  AnswerSplitter splitter_;
};

}  // namespace witan
