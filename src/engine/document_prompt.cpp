#include "engine/document_prompt.h"

#include <algorithm>
#include <iterator>

#include "base/error.h"

namespace witan {
namespace {

// How many tokens the tokenizer puts before a text.
std::ptrdiff_t prefix_size(const Tokenizer& tokenizer) {
  const std::vector<TokenId> framed = tokenizer.encode("a", AddSpecial::kYes, ParseSpecial::kNo);
  const std::vector<TokenId> alone = tokenizer.encode("a", AddSpecial::kNo, ParseSpecial::kNo);
  return std::search(framed.begin(), framed.end(), alone.begin(), alone.end()) - framed.begin();
}

}  // namespace

DocumentPrompt encode_with_documents(const Engine& engine, std::span<const std::string> documents,
                                     std::string_view text, ParseSpecial parse_special) {
  if (!documents.empty() && engine.model_info().has_encoder) {
    fail(ErrorCode::kUnsupported, "the model reads its prompt with an encoder, which takes no documents");
  }
  const std::vector<TokenId> framed = engine.encode(text, parse_special);
  const auto text_begin = framed.begin() + prefix_size(*engine.tokenizer());
  DocumentPrompt prompt{.tokens = {framed.begin(), text_begin}, .documents = {}};
  for (const std::string& document : documents) {
    const std::vector<TokenId> tokens = engine.tokenizer()->encode(document, AddSpecial::kNo, parse_special);
    if (tokens.empty()) {
      fail(ErrorCode::kInvalidArgument, "document {} has no tokens", prompt.documents.size() + 1);
    }
    const auto begin = static_cast<int32_t>(prompt.tokens.size());
    prompt.tokens.insert(prompt.tokens.end(), tokens.begin(), tokens.end());
    prompt.documents.push_back({.begin = begin, .end = static_cast<int32_t>(prompt.tokens.size())});
  }
  prompt.tokens.insert(prompt.tokens.end(), text_begin, framed.end());
  return prompt;
}

}  // namespace witan
