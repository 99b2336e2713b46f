#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"

namespace witan {

// A prompt of texts that other prompts may have elsewhere, and one behind them.
struct DocumentPrompt {
  std::vector<TokenId> tokens;
  std::vector<KvSpan> documents;  // of `tokens`; for GenerationRequest::kv_documents
};

// Each document is tokenised by itself, as the start of a text, so that its tokens are the same wherever it is; `text`
// comes last. What the tokenizer puts before a text, such as BOS, is at the prompt's beginning alone, and no part of a
// document. Throws Error(kInvalidArgument) for a document that has no tokens; Error(kUnsupported) where the model
// reads its prompt with an encoder; as Engine::encode.
DocumentPrompt encode_with_documents(const Engine& engine, std::span<const std::string> documents,
                                     std::string_view text, ParseSpecial parse_special = ParseSpecial::kNo);

}  // namespace witan
