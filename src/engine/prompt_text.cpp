#include "engine/prompt_text.h"

#include <algorithm>

#include "base/check.h"

namespace witan {

PromptText::PromptText(const Tokenizer& tokenizer, std::span<const TokenId> prompt) {
  for (const TokenId token : prompt) {
    begins_.push_back(text_.size());
    if (token < tokenizer.vocab_size()) text_ += tokenizer.token_bytes(token);  // embeddings are padded
  }
}

int32_t PromptText::first_token_from(size_t byte) const {
  return static_cast<int32_t>(std::ranges::lower_bound(begins_, byte) - begins_.begin());
}

std::vector<int32_t> PromptText::part_starts(std::string_view separator) const {
  std::vector<int32_t> starts = {0};
  for (size_t found = text_.find(separator); found != std::string::npos; found = text_.find(separator, found)) {
    found += separator.size();
    if (const int32_t next = first_token_from(found); next > starts.back()) starts.push_back(next);
  }
  return starts;
}

std::vector<KvSpan> PromptText::find(std::string_view text) const {
  WITAN_CHECK(!text.empty(), "no text to find");
  std::vector<KvSpan> spans;
  for (size_t found = text_.find(text); found != std::string::npos; found = text_.find(text, found + text.size())) {
    // The token that the text begins in may begin before it.
    spans.push_back({.begin = first_token_from(found + 1) - 1, .end = first_token_from(found + text.size())});
  }
  return spans;
}

}  // namespace witan
