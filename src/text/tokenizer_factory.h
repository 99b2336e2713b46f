#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/types.h"
#include "text/tokenizer.h"

namespace witan {

// The `tokenizer.ggml.*` keys of a GGUF file, as they stand there: an absent array is empty, an absent scalar nullopt.
// Ids keep the file's full width so that a value no token can have is refused here, not wrapped by the reader.
struct GgufTokenizerFields {
  std::string model;  // tokenizer.ggml.model: "gpt2" (byte-level BPE), "llama" (SentencePiece), "t5" (unigram)
  std::string pre;    // tokenizer.ggml.pre; empty where absent
  std::vector<std::string> tokens;               // tokenizer.ggml.tokens: one piece per id
  std::vector<float> scores;                     // tokenizer.ggml.scores: one per token; not for "gpt2"
  std::vector<int32_t> token_types;              // tokenizer.ggml.token_type: one per token, 1..6
  std::vector<std::string> merges;               // tokenizer.ggml.merges: "left right", best first; only "gpt2"
  std::optional<int64_t> bos;                    // tokenizer.ggml.bos_token_id
  std::optional<int64_t> eos;                    // tokenizer.ggml.eos_token_id
  std::optional<int64_t> unk;                    // tokenizer.ggml.unknown_token_id
  std::optional<int64_t> pad;                    // tokenizer.ggml.padding_token_id
  std::optional<bool> add_bos;                   // tokenizer.ggml.add_bos_token
  std::optional<bool> add_eos;                   // tokenizer.ggml.add_eos_token
  std::optional<bool> add_space_prefix;          // tokenizer.ggml.add_space_prefix
  std::optional<bool> remove_extra_whitespaces;  // tokenizer.ggml.remove_extra_whitespaces
  std::string precompiled_charsmap;              // tokenizer.ggml.precompiled_charsmap; only "t5"
  std::string source;                            // file name, for messages
};

// Throws Error(kUnsupported) naming a model or pre-tokenizer that Witan does not know, Error(kBadFile) naming key,
// expected and found where the fields contradict each other (another length than `tokens`, ids outside the vocabulary,
// merges of unknown tokens, ...).
std::unique_ptr<Tokenizer> tokenizer_from_gguf(GgufTokenizerFields fields);

// From the text of Hugging Face's tokenizer.json and tokenizer_config.json (which may be empty). `source` names the
// first in messages. Throws Error(kUnsupported) naming the component (model, normalizer, ...) that Witan does not have,
// Error(kBadFile) naming the key, what it should hold and what it holds.
std::unique_ptr<Tokenizer> tokenizer_from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                                               const std::string& source);

}  // namespace witan
