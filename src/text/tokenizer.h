#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/types.h"

namespace witan {

enum class TokenKind : uint8_t {
  kNormal,
  kUnknown,
  kControl,      // special: matched in text only with ParseSpecial::kYes, not printed by default
  kUserDefined,  // added: always matched in text before pre-tokenising, printed
  kUnused,
  kByte,  // "<0x0A>": one raw byte
};

enum class AddSpecial : uint8_t { kNo, kYes };    // put BOS (and EOS) where the model's tokenizer wants them
enum class ParseSpecial : uint8_t { kNo, kYes };  // text such as "<|im_end|>" becomes the control token

// Text to token ids and back. Immutable after construction; all members may be called from any thread.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // "bpe", "spm" or "unigram", with the pre-tokenizer's name where there is one: "bpe (qwen2)".
  virtual std::string description() const = 0;
  virtual int32_t vocab_size() const = 0;

  // Any bytes are accepted: invalid UTF-8 is encoded byte by byte where the vocabulary can, else as U+FFFD.
  virtual std::vector<TokenId> encode(std::string_view text, AddSpecial add_special,
                                      ParseSpecial parse_special) const = 0;

  // The raw bytes a token stands for in the middle of a text: "▁the" gives " the", "<0xE2>" one byte, a control token
  // its name. id must be in [0, vocab_size).
  virtual std::string token_bytes(TokenId id) const = 0;
  // The token as the vocabulary spells it ("Ġthe", "▁the", "<0x0A>"). For showing to people.
  virtual const std::string& token_piece(TokenId id) const = 0;
  virtual TokenKind token_kind(TokenId id) const = 0;
  virtual std::optional<TokenId> find_token(std::string_view piece) const = 0;

  virtual std::optional<TokenId> bos() const = 0;
  virtual std::optional<TokenId> eos() const = 0;

  // True when decoding drops the one space that encoding puts before the first word (SentencePiece).
  virtual bool strips_leading_space() const = 0;
};

enum class ShowSpecial : uint8_t { kNo, kYes };  // print control, unknown and unused tokens by name, or leave them out
enum class DecodeFrom : uint8_t {
  kTextStart,     // the tokens are a whole text: the space that encoding put before it is dropped
  kContinuation,  // they follow text decoded elsewhere, such as a prompt: every space counts
};

// Turns a stream of tokens into a stream of text that never splits a UTF-8 character: bytes are held back until their
// character is complete; bytes that can no longer become one come out as U+FFFD.
//   (push)* finish
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, ShowSpecial show_special = ShowSpecial::kNo,
                       DecodeFrom from = DecodeFrom::kTextStart);

  // The text that became complete with this token; may be empty.
  std::string push(TokenId token);
  // What is left at the end, with U+FFFD for an incomplete character.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  ShowSpecial show_special_;
  bool at_start_;  // nothing printed yet
  std::string pending_;
};

// The whole text of `tokens`, through a Detokenizer.
std::string decode(const Tokenizer& tokenizer, std::span<const TokenId> tokens,
                   ShowSpecial show_special = ShowSpecial::kNo);

}  // namespace witan
