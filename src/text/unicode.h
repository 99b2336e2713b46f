#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace witan {

enum class Utf8Status : uint8_t {
  kValid,
  kInvalid,     // these bytes begin no character, whatever follows
  kIncomplete,  // the text ends inside a character that more bytes could complete
};

struct Utf8Char {
  Utf8Status status;
  uint8_t size;         // bytes; for kInvalid and kIncomplete the maximal subpart (Unicode 15, section 3.9, D93b)
  char32_t code_point;  // only for kValid
};

// The character at text[at]; at < text.size().
Utf8Char next_utf8(std::string_view text, size_t at);

// The length of the longest prefix of `text` that is valid UTF-8.
size_t valid_utf8_prefix(std::string_view text);

void append_utf8(char32_t code_point, std::string& out);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD
inline constexpr std::string_view kSpaceMarker = "\xE2\x96\x81";           // U+2581, SentencePiece's space

// The Unicode property White_Space.
bool is_whitespace(char32_t code_point);
// Letters, marks, digits and connectors: what a regular expression calls \w.
bool is_word_character(char32_t code_point);

// GPT-2's alphabet: 256 printable characters that stand for the bytes in the pieces of a byte-level vocabulary.
char32_t byte_to_alphabet(uint8_t byte);
std::optional<uint8_t> alphabet_to_byte(char32_t code_point);
// Appends the alphabet's spelling of `bytes`.
void append_alphabet(std::string_view bytes, std::string& out);
// The bytes a piece stands for; nullopt when it has a character outside the alphabet.
std::optional<std::string> alphabet_piece_bytes(std::string_view piece);

// The byte that a SentencePiece byte token "<0x0A>" stands for; nullopt for any other piece.
std::optional<uint8_t> byte_piece_value(std::string_view piece);

}  // namespace witan
