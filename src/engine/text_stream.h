#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace witan {

// The text of one generation as it becomes certain: whole UTF-8 characters, and nothing that could still turn out to
// be the beginning of a stop string.
//   (push)* finish; nothing after stopped() is true.
class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop_strings);

  // The text that this token made certain; may be empty. Ends before a stop string that it completed.
  std::string push(TokenId token);
  // What was held back.
  std::string finish();

  bool stopped() const { return stopped_; }

 private:
  std::string release(std::string_view text);

  Detokenizer detokenizer_;
  std::vector<std::string> stop_strings_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace witan
