#include "engine/text_stream.h"

#include <gtest/gtest.h>

namespace witan {
namespace {

// Every token is one byte.
class ByteTokenizer final : public Tokenizer {
 public:
  std::string description() const override { return "bytes"; }
  int32_t vocab_size() const override { return 256; }
  std::vector<TokenId> encode(std::string_view text, AddSpecial, ParseSpecial) const override {
    std::vector<TokenId> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string token_bytes(TokenId id) const override { return std::string(1, static_cast<char>(id)); }
  const std::string& token_piece(TokenId) const override { return piece_; }
  TokenKind token_kind(TokenId) const override { return TokenKind::kNormal; }
  std::optional<TokenId> find_token(std::string_view) const override { return std::nullopt; }
  std::optional<TokenId> bos() const override { return std::nullopt; }
  std::optional<TokenId> eos() const override { return std::nullopt; }
  bool strips_leading_space() const override { return false; }

 private:
  std::string piece_;
};

struct Streamed {
  std::string text;
  bool stopped = false;
  std::vector<std::string> parts;
};

Streamed stream(std::string_view text, std::vector<std::string> stops) {
  const ByteTokenizer tokenizer;
  TextStream out(tokenizer, std::move(stops));
  Streamed result;
  for (const TokenId token : tokenizer.encode(text, AddSpecial::kNo, ParseSpecial::kNo)) {
    result.parts.push_back(out.push(token));
    result.text += result.parts.back();
    if (out.stopped()) break;
  }
  result.stopped = out.stopped();
  result.text += out.finish();
  return result;
}

TEST(TextStreamTest, WithoutStopStringsEverythingPasses) {
  const Streamed result = stream("grüße 🙂 end", {});
  EXPECT_EQ(result.text, "grüße 🙂 end");
  EXPECT_FALSE(result.stopped);
}

TEST(TextStreamTest, CharactersAreNeverSplit) {
  for (const std::string& part : stream("aß🙂b", {}).parts) {
    const bool splits = !part.empty() && (static_cast<unsigned char>(part.front()) & 0xc0u) == 0x80u;
    EXPECT_FALSE(splits) << part;
  }
}

TEST(TextStreamTest, TextEndsBeforeTheFirstStopString) {
  const Streamed result = stream("one two three", {"three", "tw"});
  EXPECT_EQ(result.text, "one ");
  EXPECT_TRUE(result.stopped);
}

TEST(TextStreamTest, AHalfStopStringIsHeldBackAndThenReleased) {
  const Streamed result = stream("ab STO and STOx", {"STOP"});
  EXPECT_EQ(result.text, "ab STO and STOx");
  EXPECT_FALSE(result.stopped);
  EXPECT_EQ(result.parts[3], "");  // "S" might begin the stop string
  EXPECT_EQ(stream("ends in STO", {"STOP"}).text, "ends in STO");
}

TEST(TextStreamTest, OverlappingBeginningsAreFound) {
  EXPECT_EQ(stream("aaab", {"aab"}).text, "a");
  EXPECT_EQ(stream("ababac", {"abac"}).text, "ab");
  EXPECT_EQ(stream("x🙂🙃y", {"🙃"}).text, "x🙂");
}

}  // namespace
}  // namespace witan
