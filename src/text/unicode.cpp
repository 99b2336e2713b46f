#include "text/unicode.h"

#include <utf8proc.h>

#include <array>
#include <charconv>

namespace witan {

namespace {

// What may follow a lead byte: the number of continuation bytes and the range of the first one, which excludes overlong
// forms, surrogates and code points above U+10FFFF (Unicode 15, table 3-7).
struct Lead {
  uint8_t num_continuations;
  uint8_t first_min;
  uint8_t first_max;
};

Lead lead_of(uint8_t byte) {
  if (byte < 0xC2 || byte > 0xF4) return {0, 0, 0};
  if (byte < 0xE0) return {1, 0x80, 0xBF};
  if (byte == 0xE0) return {2, 0xA0, 0xBF};
  if (byte == 0xED) return {2, 0x80, 0x9F};
  if (byte < 0xF0) return {2, 0x80, 0xBF};
  if (byte == 0xF0) return {3, 0x90, 0xBF};
  if (byte == 0xF4) return {3, 0x80, 0x8F};
  return {3, 0x80, 0xBF};
}

struct ByteAlphabet {
  std::array<char32_t, 256> from_byte;
  std::array<int16_t, 512> to_byte;  // -1 where no byte has that character
};

// Printable Latin-1 bytes keep their character; the others take U+0100 onwards in order.
const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet kAlphabet = [] {
    ByteAlphabet a;
    a.to_byte.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      const char32_t code_point = printable ? static_cast<char32_t>(byte) : next++;
      a.from_byte[byte] = code_point;
      a.to_byte[code_point] = static_cast<int16_t>(byte);
    }
    return a;
  }();
  return kAlphabet;
}

}  // namespace

Utf8Char next_utf8(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(at);
  if (first < 0x80) return {Utf8Status::kValid, 1, first};
  const Lead lead = lead_of(first);
  if (lead.num_continuations == 0) return {Utf8Status::kInvalid, 1, 0};
  // 0x3F >> continuations keeps the lead byte's payload: 5, 4 or 3 bits.
  char32_t code_point = first & (0x3Fu >> lead.num_continuations);
  for (uint8_t i = 1; i <= lead.num_continuations; ++i) {
    if (at + i >= text.size()) return {Utf8Status::kIncomplete, i, 0};
    const uint8_t min = i == 1 ? lead.first_min : 0x80;
    const uint8_t max = i == 1 ? lead.first_max : 0xBF;
    if (byte(at + i) < min || byte(at + i) > max) return {Utf8Status::kInvalid, i, 0};
    code_point = (code_point << 6) | (byte(at + i) & 0x3Fu);
  }
  return {Utf8Status::kValid, static_cast<uint8_t>(lead.num_continuations + 1), code_point};
}

size_t valid_utf8_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Char c = next_utf8(text, at);
    if (c.status != Utf8Status::kValid) break;
    at += c.size;
  }
  return at;
}

void append_utf8(char32_t code_point, std::string& out) {
  const auto put = [&](char32_t value) { out.push_back(static_cast<char>(value)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | (code_point >> 6));
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | (code_point >> 12));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | (code_point >> 18));
    put(0x80 | ((code_point >> 12) & 0x3F));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

bool is_whitespace(char32_t code_point) {
  if (code_point < 0x80) return code_point == ' ' || (code_point >= '\t' && code_point <= '\r');
  if (code_point == 0x85) return true;
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
  return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
}

bool is_word_character(char32_t code_point) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

char32_t byte_to_alphabet(uint8_t byte) { return byte_alphabet().from_byte[byte]; }

std::optional<uint8_t> alphabet_to_byte(char32_t code_point) {
  const auto& to_byte = byte_alphabet().to_byte;
  if (code_point >= to_byte.size() || to_byte[code_point] < 0) return std::nullopt;
  return static_cast<uint8_t>(to_byte[code_point]);
}

void append_alphabet(std::string_view bytes, std::string& out) {
  for (const char byte : bytes) append_utf8(byte_to_alphabet(static_cast<uint8_t>(byte)), out);
}

std::optional<std::string> alphabet_piece_bytes(std::string_view piece) {
  std::string bytes;
  for (size_t at = 0; at < piece.size();) {
    const Utf8Char c = next_utf8(piece, at);
    if (c.status != Utf8Status::kValid) return std::nullopt;
    const std::optional<uint8_t> byte = alphabet_to_byte(c.code_point);
    if (!byte) return std::nullopt;
    bytes.push_back(static_cast<char>(*byte));
    at += c.size;
  }
  return bytes;
}

std::optional<uint8_t> byte_piece_value(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return std::nullopt;
  uint8_t value = 0;
  const auto [end, error] = std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
  if (error != std::errc() || end != piece.data() + 5) return std::nullopt;
  return value;
}

}  // namespace witan
