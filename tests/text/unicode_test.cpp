#include "text/unicode.h"

#include <gtest/gtest.h>

namespace witan {
namespace {

TEST(Unicode, EveryCodePointSurvivesEncodingAndDecoding) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    append_utf8(c, text);
    const Utf8Char decoded = next_utf8(text, 0);
    ASSERT_EQ(decoded.status, Utf8Status::kValid) << std::hex << static_cast<uint32_t>(c);
    ASSERT_EQ(decoded.code_point, c);
    ASSERT_EQ(decoded.size, text.size());
    ASSERT_EQ(valid_utf8_prefix(text), text.size());
  }
}

TEST(Unicode, IllFormedBytesAreCutIntoMaximalSubparts) {
  struct Case {
    std::string bytes;
    Utf8Status status;
    int size;
  };
  const Case cases[] = {
      {"\x80", Utf8Status::kInvalid, 1},              // a continuation byte alone
      {"\xC0\xAF", Utf8Status::kInvalid, 1},          // overlong
      {"\xE0\x80\x80", Utf8Status::kInvalid, 1},      // overlong
      {"\xED\xA0\x80", Utf8Status::kInvalid, 1},      // a surrogate
      {"\xF4\x90\x80\x80", Utf8Status::kInvalid, 1},  // above U+10FFFF
      {"\xF5", Utf8Status::kInvalid, 1},
      {"\xFF", Utf8Status::kInvalid, 1},
      {"\xC3", Utf8Status::kIncomplete, 1},
      {"\xE2\x96", Utf8Status::kIncomplete, 2},
      {"\xF0\x9F\xA6", Utf8Status::kIncomplete, 3},
      {"\xE2\x96z", Utf8Status::kInvalid, 2},
      {"\xF0\x9F\xA6z", Utf8Status::kInvalid, 3},
  };
  for (const Case& c : cases) {
    const Utf8Char found = next_utf8(c.bytes, 0);
    EXPECT_EQ(static_cast<int>(found.status), static_cast<int>(c.status)) << testing::PrintToString(c.bytes);
    EXPECT_EQ(found.size, c.size) << testing::PrintToString(c.bytes);
    EXPECT_EQ(valid_utf8_prefix("a\xC3\xA4" + c.bytes), 3u);
  }
}

TEST(Unicode, ByteAlphabetIsABijectionWithGpt2sCharacters) {
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(alphabet_to_byte(byte_to_alphabet(static_cast<uint8_t>(byte))), byte);
  }
  EXPECT_EQ(byte_to_alphabet(' '), U'Ġ');
  EXPECT_EQ(byte_to_alphabet('\n'), U'Ċ');
  EXPECT_EQ(byte_to_alphabet(0xAD), U'Ń');  // the last one that was moved
  EXPECT_EQ(byte_to_alphabet('A'), U'A');
  EXPECT_EQ(alphabet_to_byte(U' '), std::nullopt);
  EXPECT_EQ(alphabet_piece_bytes("Ġthe"), " the");
  EXPECT_EQ(alphabet_piece_bytes("Ġ the"), std::nullopt);
}

TEST(Unicode, BytePiecesAreReadStrictly) {
  EXPECT_EQ(byte_piece_value("<0x0A>"), 10);
  EXPECT_EQ(byte_piece_value("<0xff>"), 255);
  for (const char* piece : {"<0x0A", "<0x0G>", "<0x-1>", "<0xA>", "<0x00A>", "x0x0A>", "<0x 1>", ""}) {
    EXPECT_EQ(byte_piece_value(piece), std::nullopt) << piece;
  }
}

TEST(Unicode, ClassesFollowTheUnicodeProperties) {
  for (const char32_t c : {U' ', U'\t', U'\r', U'\x85', U'\xA0', U'\u2003', U'\u2028', U'\u3000'}) {
    EXPECT_TRUE(is_whitespace(c)) << static_cast<uint32_t>(c);
  }
  for (const char32_t c : {U'a', U'\x1F', U'\u200B', U'\u180E', U'\u2581'}) EXPECT_FALSE(is_whitespace(c));
  for (const char32_t c : {U'a', U'Z', U'7', U'_', U'é', U'我', U'\u0301'}) EXPECT_TRUE(is_word_character(c));
  for (const char32_t c : {U' ', U'-', U'½', U'🦙'}) EXPECT_FALSE(is_word_character(c));
}

}  // namespace
}  // namespace witan
