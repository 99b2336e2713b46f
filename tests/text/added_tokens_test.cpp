#include "text/added_tokens.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>

#include "support/expect_error.h"

namespace witan {
namespace {

// "text|<id>|text": fragments as one string.
std::string show(const AddedTokens& tokens, std::string_view text, ParseSpecial parse = ParseSpecial::kYes) {
  std::string shown;
  tokens.split(text, parse, [&](const AddedTokens::Fragment& fragment) {
    if (!shown.empty()) shown += '|';
    if (fragment.token != nullptr) {
      shown += fmt::format("<{}>", fragment.token->id);
    } else {
      EXPECT_FALSE(fragment.text.empty());
      shown += fragment.text;
    }
  });
  return shown;
}

TEST(AddedTokens, TheLongestAtTheLeftmostPlaceIsFound) {
  const AddedTokens tokens({{1, "ab"}, {2, "abcd"}, {3, "bc"}, {4, "d"}}, "test");
  EXPECT_EQ(show(tokens, "xabcdx"), "x|<2>|x");
  EXPECT_EQ(show(tokens, "xabcx"), "x|<1>|cx");
  EXPECT_EQ(show(tokens, "bcd"), "<3>|<4>");
  EXPECT_EQ(show(tokens, "aab"), "a|<1>");
  EXPECT_EQ(show(tokens, ""), "");
  EXPECT_EQ(show(AddedTokens(), "abc"), "abc");
}

TEST(AddedTokens, ControlTokensAreFoundOnlyWhenAsked) {
  const AddedTokens tokens({{1, "<s>", ParseSpecial::kYes}, {2, "<s>x", ParseSpecial::kNo}, {3, "s"}}, "test");
  EXPECT_EQ(show(tokens, "<s>", ParseSpecial::kYes), "<1>");
  EXPECT_EQ(show(tokens, "<s>", ParseSpecial::kNo), "<|<3>|>");
  EXPECT_EQ(show(tokens, "<s>x", ParseSpecial::kNo), "<2>");
}

TEST(AddedTokens, WhitespaceGoesToTheTokenThatTakesIt) {
  AddedToken left{1, "<l>"}, right{2, "<r>"};
  left.left = SpaceAround::kTaken;
  right.right = SpaceAround::kTaken;
  const AddedTokens tokens({left, right, {3, " "}}, "test");
  EXPECT_EQ(show(tokens, "a\t\u3000<l> \tb"), "a|<1>|<3>|\tb");
  EXPECT_EQ(show(tokens, "a <r> \n\u00A0 b"), "a|<3>|<2>|b");
  EXPECT_EQ(show(tokens, "<r>  <l>"), "<2>|<1>");
}

TEST(AddedTokens, ASingleWordIsNotFoundInsideAWord) {
  AddedToken word{1, "cat"};
  word.in_word = MatchInWord::kRefused;
  const AddedTokens tokens({word, {2, "at"}}, "test");
  EXPECT_EQ(show(tokens, "cat"), "<1>");
  EXPECT_EQ(show(tokens, "(cat)"), "(|<1>|)");
  EXPECT_EQ(show(tokens, "cats"), "cats");  // "at" lies in the one refused
  EXPECT_EQ(show(tokens,
                 "\xC3\xA4"
                 "cat cat"),
            "\xC3\xA4"
            "cat |<1>");
}

TEST(AddedTokens, AgreesWithTryingEveryTokenInEveryPlace) {
  std::mt19937 random(3);
  const auto word = [&](size_t max) {
    std::string s(1 + random() % max, 'a');
    for (char& c : s) c = static_cast<char>('a' + random() % 2);
    return s;
  };
  for (int round = 0; round < 500; ++round) {
    std::vector<AddedToken> list;
    for (TokenId id = 0; id < 6; ++id) {
      const std::string content = word(5);
      bool known = false;
      for (const AddedToken& token : list) known = known || token.content == content;
      if (!known) list.push_back({id, content});
    }
    const std::string text = word(40);
    std::string expected, plain;
    const auto flush = [&] {
      if (!plain.empty()) expected.append(expected.empty() ? "" : "|").append(plain);
      plain.clear();
    };
    for (size_t at = 0; at < text.size();) {
      const AddedToken* best = nullptr;
      for (const AddedToken& token : list) {
        if (text.compare(at, token.content.size(), token.content) != 0) continue;
        if (best == nullptr || token.content.size() > best->content.size()) best = &token;
      }
      if (best == nullptr) {
        plain += text[at++];
        continue;
      }
      flush();
      expected += fmt::format("{}<{}>", expected.empty() ? "" : "|", best->id);
      at += best->content.size();
    }
    flush();
    ASSERT_EQ(show(AddedTokens(list, "test"), text), expected) << text;
  }
}

TEST(AddedTokens, HostileContentsTakeLinearTime) {
  // Trying each token in each place would compare 10^11 bytes.
  std::vector<AddedToken> list = {{0, std::string(300'000, 'a') + "b"}, {1, "b" + std::string(300'000, 'a')}};
  for (TokenId id = 2; id < 20'002; ++id) list.push_back({id, fmt::format("a{}", id)});
  const AddedTokens tokens(std::move(list), "test");
  const std::string text(1'000'000, 'a');
  EXPECT_EQ(show(tokens, text), text);
}

TEST(AddedTokens, TooMuchContentIsRefused) {
  std::vector<AddedToken> list = {{0, std::string(2'000'000, 'a')}};
  test::expect_error(ErrorCode::kUnsupported, "file: the added tokens hold 2000000 bytes",
                     [&] { AddedTokens(list, "file"); });
}

TEST(AddedTokens, AnyBytesAreText) {
  AddedToken token{1, "<s>"};
  token.left = token.right = SpaceAround::kTaken;
  token.in_word = MatchInWord::kRefused;
  const AddedTokens tokens({token}, "test");
  EXPECT_EQ(show(tokens, "\x80\xE2<s>\xFF"), "\x80\xE2|<1>|\xFF");
  EXPECT_EQ(show(tokens, std::string(1'000'000, '\x80') + "<s>").size(), 1'000'004u);
}

}  // namespace
}  // namespace witan
