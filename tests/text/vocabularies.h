#pragma once

#include <array>
#include <cstdio>
#include <string>
#include <vector>

#include "text/tokenizer_factory.h"
#include "text/unicode.h"

namespace witan::test {

// Small vocabularies, so that a bare clone tests the algorithms.

inline std::string alphabet(std::string_view bytes) {
  std::string piece;
  append_alphabet(bytes, piece);
  return piece;
}

// 256 bytes (token id = byte), then the results of the merges in order, then "<|end|>" (control), "<|tool|>"
// (user-defined).
inline GgufTokenizerFields small_byte_level() {
  GgufTokenizerFields fields;
  fields.model = "gpt2";
  fields.pre = "gpt-2";
  fields.source = "small.gguf";
  for (int byte = 0; byte < 256; ++byte) fields.tokens.push_back(alphabet(std::string(1, static_cast<char>(byte))));
  const std::array<std::pair<const char*, const char*>, 8> merges = {
      {{"t", "h"}, {"th", "e"}, {" ", "the"}, {"l", "l"}, {"e", "ll"}, {"h", "ell"}, {"hell", "o"}, {"\xC3", "\xA4"}}};
  for (const auto& [left, right] : merges) {
    fields.merges.push_back(alphabet(left).append(" ").append(alphabet(right)));
    fields.tokens.push_back(alphabet(std::string(left).append(right)));
  }
  fields.token_types.assign(fields.tokens.size(), 1);
  fields.tokens.push_back("<|end|>");
  fields.token_types.push_back(3);
  fields.tokens.push_back("<|tool|>");
  fields.token_types.push_back(4);
  fields.eos = 264;
  return fields;
}

// <unk>, <s>, </s>, 256 byte tokens (3 + byte), then pieces whose score is minus their place.
inline GgufTokenizerFields small_sentencepiece() {
  GgufTokenizerFields fields;
  fields.model = "llama";
  fields.source = "small.gguf";
  fields.tokens = {"<unk>", "<s>", "</s>"};
  fields.token_types = {2, 3, 3};
  for (int byte = 0; byte < 256; ++byte) {
    char piece[8];
    std::snprintf(piece, sizeof piece, "<0x%02X>", static_cast<unsigned>(byte));
    fields.tokens.push_back(piece);
    fields.token_types.push_back(6);
  }
  fields.scores.assign(fields.tokens.size(), 0.0f);
  for (const char* piece : {"▁t", "he", "▁the", "ll", "hell", "hello", "▁hello", "▁", "t", "h", "e", "l", "o", "ab",
                            "abc", "a", "b", "c"}) {
    fields.scores.push_back(-static_cast<float>(fields.tokens.size()));
    fields.tokens.push_back(piece);
    fields.token_types.push_back(1);
  }
  return fields;
}

}  // namespace witan::test
