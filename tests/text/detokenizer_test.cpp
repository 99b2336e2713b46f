#include <gtest/gtest.h>

#include <random>

#include "text/tokenizer.h"
#include "text/unicode.h"

namespace witan {
namespace {

// Tokens 0 to 255 are bytes, then a few words.
class FakeTokenizer : public Tokenizer {
 public:
  enum : TokenId { kSpaceThe = 256, kControl, kUser, kUnknown, kEmpty, kSize };

  std::string description() const override { return "fake"; }
  int32_t vocab_size() const override { return kSize; }
  std::vector<TokenId> encode(std::string_view, AddSpecial, ParseSpecial) const override { return {}; }
  std::string token_bytes(TokenId id) const override {
    return id < 256 ? std::string(1, static_cast<char>(id)) : pieces_[id - 256];
  }
  const std::string& token_piece(TokenId id) const override { return pieces_[id < 256 ? 4 : id - 256]; }
  TokenKind token_kind(TokenId id) const override {
    switch (id) {
      case kControl:
        return TokenKind::kControl;
      case kUser:
        return TokenKind::kUserDefined;
      case kUnknown:
        return TokenKind::kUnknown;
      default:
        return id < 256 ? TokenKind::kByte : TokenKind::kNormal;
    }
  }
  std::optional<TokenId> find_token(std::string_view) const override { return {}; }
  std::optional<TokenId> bos() const override { return {}; }
  std::optional<TokenId> eos() const override { return {}; }
  bool strips_leading_space() const override { return strips_; }

  bool strips_ = false;

 private:
  std::string pieces_[5] = {" the", "<|end|>", "<user>", "<unk>", ""};
};

std::vector<TokenId> bytes(std::string_view text) {
  std::vector<TokenId> ids;
  for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  return ids;
}

TEST(Detokenizer, HoldsBackACharacterUntilItIsComplete) {
  const FakeTokenizer tokenizer;
  Detokenizer detokenizer(tokenizer);
  EXPECT_EQ(detokenizer.push(0xF0), "");
  EXPECT_EQ(detokenizer.push(0x9F), "");
  EXPECT_EQ(detokenizer.push(0xA6), "");
  EXPECT_EQ(detokenizer.push(0x99), "🦙");
  EXPECT_EQ(detokenizer.push('a'), "a");
  EXPECT_EQ(detokenizer.finish(), "");
}

TEST(Detokenizer, WritesOneReplacementCharacterForEachMaximalSubpart) {
  const FakeTokenizer tokenizer;
  const std::string bad(kReplacementCharacter);
  // The examples of Unicode 15, tables 3-8 to 3-11.
  EXPECT_EQ(decode(tokenizer, bytes("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41")),
            bad + bad + bad + bad + bad + bad + bad + bad + "A");
  EXPECT_EQ(decode(tokenizer, bytes("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41")),
            bad + bad + bad + bad + bad + bad + bad + bad + "A");
  EXPECT_EQ(decode(tokenizer, bytes("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42")),
            bad + bad + bad + bad + bad + "A" + bad + bad + "B");
  EXPECT_EQ(decode(tokenizer, bytes("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41")), bad + bad + bad + bad + "A");
}

TEST(Detokenizer, FinishGivesUpOnAnIncompleteCharacterOnce) {
  const FakeTokenizer tokenizer;
  Detokenizer detokenizer(tokenizer);
  detokenizer.push(0xE2);
  detokenizer.push(0x96);
  EXPECT_EQ(detokenizer.finish(), kReplacementCharacter);
  EXPECT_EQ(detokenizer.finish(), "");
}

TEST(Detokenizer, LeavesOutControlTokensUnlessAsked) {
  const FakeTokenizer tokenizer;
  const std::vector<TokenId> ids = {FakeTokenizer::kControl, 'a', FakeTokenizer::kUser, FakeTokenizer::kUnknown,
                                    FakeTokenizer::kControl};
  EXPECT_EQ(decode(tokenizer, ids), "a<user>");
  EXPECT_EQ(decode(tokenizer, ids, ShowSpecial::kYes), "<|end|>a<user><unk><|end|>");
}

TEST(Detokenizer, DropsTheOneSpaceBeforeTheFirstWord) {
  FakeTokenizer tokenizer;
  const std::vector<TokenId> ids = {FakeTokenizer::kControl, FakeTokenizer::kSpaceThe, FakeTokenizer::kSpaceThe};
  EXPECT_EQ(decode(tokenizer, ids), " the the");
  tokenizer.strips_ = true;
  EXPECT_EQ(decode(tokenizer, ids), "the the");
  EXPECT_EQ(decode(tokenizer, std::vector<TokenId>{' ', ' ', 'a'}), " a");
  Detokenizer continuation(tokenizer, ShowSpecial::kNo, DecodeFrom::kContinuation);
  EXPECT_EQ(continuation.push(FakeTokenizer::kSpaceThe), " the");
}

TEST(Detokenizer, PushesAddUpToTheWholeTextAndAreEachValid) {
  std::mt19937 random(11);
  FakeTokenizer tokenizer;
  for (int round = 0; round < 2000; ++round) {
    tokenizer.strips_ = round % 2 == 0;
    std::vector<TokenId> ids(random() % 30);
    for (TokenId& id : ids) {
      id = static_cast<TokenId>(random() % 2 ? random() % FakeTokenizer::kSize : 0x80 + random() % 0x80);
    }
    Detokenizer detokenizer(tokenizer);
    std::string joined;
    for (const TokenId id : ids) {
      const std::string text = detokenizer.push(id);
      ASSERT_EQ(valid_utf8_prefix(text), text.size());
      joined += text;
    }
    joined += detokenizer.finish();
    ASSERT_EQ(joined, decode(tokenizer, ids));
  }
}

}  // namespace
}  // namespace witan
