#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/types.h"
#include "text/flat_map.h"
#include "text/vocabulary.h"

namespace witan {

// Which two neighbouring symbols become which one, and how urgently.
//
// Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (arXiv 1508.07909),
// section 3.2.
class MergeTable {
 public:
  // The first rule for a pair stays: rules come best first.
  void add(TokenId left, TokenId right, int32_t rank, TokenId merged) {
    rules_.insert(key(left, right), static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(merged));
  }

  // Applies rules to `symbols` until none fits: the lowest rank first, then the leftmost place. n log n in their
  // number.
  void merge(std::vector<TokenId>& symbols) const;

 private:
  struct Rule {
    int32_t rank;
    TokenId merged;
  };
  static constexpr int32_t kNoRank = INT32_MAX;

  static uint64_t key(TokenId left, TokenId right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  }
  Rule find(TokenId left, TokenId right) const {
    const uint64_t* value = rules_.find(key(left, right));
    if (value == nullptr) return {kNoRank, -1};
    return {static_cast<int32_t>(*value >> 32), static_cast<TokenId>(*value & 0xFFFFFFFF)};
  }
  void merge_few(std::vector<TokenId>& symbols) const;
  void merge_many(std::vector<TokenId>& symbols) const;

  FlatMap rules_;
};

enum class SymbolUnit : uint8_t {
  kByte,       // byte-level: a piece is a sequence of bytes, spelled in GPT-2's alphabet
  kCharacter,  // SentencePiece: a sequence of characters, with byte tokens for those the vocabulary lacks
};

// Byte-pair encoding of one piece of text. Ids at and above the vocabulary's size are characters that occur in merges
// but are no tokens.
struct BpeModel {
  SymbolUnit unit = SymbolUnit::kByte;
  MergeTable merges;
  std::array<TokenId, 256> byte_tokens;    // -1: none
  FlatMap character_symbols;               // code point -> symbol; kCharacter only
  std::vector<char32_t> extra_characters;  // symbol - vocabulary size -> code point
  std::optional<TokenId> unknown;
  bool fuse_unknown = false;     // one unknown token for several unknown characters in a row
  bool ignore_merges = false;    // a piece that is a token needs no merges
  bool words_are_apart = false;  // no merge has U+2581 behind another character, so pieces may be cut before it

  BpeModel() { byte_tokens.fill(-1); }

  // Sets words_are_apart from the vocabulary's pieces. Call when the merges are complete.
  void inspect_words(const Vocabulary& vocabulary);

  // Appends the tokens of `piece` (valid UTF-8). What the model can neither spell nor replace by an unknown token is
  // left out.
  void encode(std::string_view piece, const Vocabulary& vocabulary, std::vector<TokenId>& out) const;

  bool has_byte(uint8_t byte) const { return byte_tokens[byte] >= 0; }

 private:
  void encode_word(std::string_view word, const Vocabulary& vocabulary, std::vector<TokenId>& out) const;
  void append_unknown(std::vector<TokenId>& symbols, size_t begin) const;
  void append_bytes(std::string_view bytes, std::vector<TokenId>& symbols, size_t begin) const;
};

}  // namespace witan
