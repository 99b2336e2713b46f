#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe_model.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer.h"
#include "text/unigram_model.h"
#include "text/vocabulary.h"

namespace witan {

// How the vocabulary's pieces spell text.
struct PieceSpelling {
  bool byte_alphabet = false;                                     // GPT-2's alphabet
  std::vector<std::pair<std::string, std::string>> replacements;  // in order: "▁" -> " "
};

// Everything a tokenizer is made of; the two file formats differ in how they describe it.
struct TokenizerParts {
  std::string description;
  Vocabulary vocabulary{0};
  AddedTokens raw_added;  // found in the text as it is
  Normalizer normalizer;
  AddedTokens normalized_added;  // found in what the normalizer made of the text between those
  PreTokenizer pre_tokenizer;
  BpeModel model;
  std::optional<UnigramModel> unigram;  // cuts pieces instead of the model's merges; its bytes and unknown count too
  PieceSpelling spelling;
  bool strips_leading_space = false;
  std::optional<TokenId> bos;
  std::optional<TokenId> eos;
  std::vector<TokenId> prefix;  // put before a text with AddSpecial::kYes
  std::vector<TokenId> suffix;  // and behind it
};

// Text goes through: added tokens, normalizer, added tokens again, pre-tokenizer, merges or unigram model.
class SubwordTokenizer final : public Tokenizer {
 public:
  explicit SubwordTokenizer(TokenizerParts parts) : parts_(std::move(parts)) {}

  std::string description() const override { return parts_.description; }
  int32_t vocab_size() const override { return parts_.vocabulary.size(); }
  std::vector<TokenId> encode(std::string_view text, AddSpecial add_special, ParseSpecial parse_special) const override;
  std::string token_bytes(TokenId id) const override;
  const std::string& token_piece(TokenId id) const override;
  TokenKind token_kind(TokenId id) const override;
  std::optional<TokenId> find_token(std::string_view piece) const override { return parts_.vocabulary.find(piece); }
  std::optional<TokenId> bos() const override { return parts_.bos; }
  std::optional<TokenId> eos() const override { return parts_.eos; }
  bool strips_leading_space() const override { return parts_.strips_leading_space; }

 private:
  struct Encoding;
  std::string replace_unspeakable(std::string_view text) const;
  void encode_fragment(std::string_view text, Encoding& encoding) const;
  void encode_valid(std::string_view text, FragmentPart part, Encoding& encoding) const;

  TokenizerParts parts_;
};

}  // namespace witan
