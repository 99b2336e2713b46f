#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "text/tokenizer_factory.h"

namespace witan {

// A tokenizer.json (and tokenizer_config.json, which may be empty) as the keys of a GGUF file that give the same
// tokenizer, with tokens for `vocab_size` ids: those that the files leave out are unused ones. GGUF files name a
// byte-level tokenizer's pre-tokenizer instead of describing it; that of a SentencePiece vocabulary has its merges as
// scores. Throws as tokenizer_from_json, and Error(kUnsupported) for a pre-tokenizer that no GGUF name stands for,
// Error(kBadFile) for more tokens than vocab_size.
GgufTokenizerFields gguf_fields_from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                                          int64_t vocab_size, const std::string& source);

}  // namespace witan
