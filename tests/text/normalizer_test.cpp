#include "text/normalizer.h"

#include <gtest/gtest.h>

#include "support/expect_error.h"

namespace witan {
namespace {

using Form = Normalizer::Form;

template <typename... Steps>
Normalizer make(Steps... list) {
  std::vector<Normalizer::Step> steps;
  (steps.emplace_back(std::move(list)), ...);
  return Normalizer(std::move(steps));
}

std::string run(const Normalizer& normalizer, std::string_view text, FragmentPart part = FragmentPart::kFirst) {
  RegexWorkspace workspace(text.size());
  return normalizer.normalize(text, part, workspace);
}

TEST(Normalizer, FourFormsGiveTheResultsOfUax15) {
  struct Case {
    const char* text;
    const char* nfc;
    const char* nfd;
    const char* nfkc;
    const char* nfkd;
  };
  // From the figures of UAX 15, and marks in another order than their classes.
  const Case cases[] = {
      {"abc", "abc", "abc", "abc", "abc"},
      {"\u212B", "\u00C5", "A\u030A", "\u00C5", "A\u030A"},
      {"A\u030A", "\u00C5", "A\u030A", "\u00C5", "A\u030A"},
      {"\uFB01", "\uFB01", "\uFB01", "fi", "fi"},
      {"2\u2075", "2\u2075", "2\u2075", "25", "25"},
      {"\u1E9B\u0323", "\u1E9B\u0323", "\u017F\u0323\u0307", "\u1E69", "s\u0323\u0307"},
      {"a\u0301\u0316b", "\u00E1\u0316b", "a\u0316\u0301b", "\u00E1\u0316b", "a\u0316\u0301b"},
      {"\uAC01", "\uAC01", "\u1100\u1161\u11A8", "\uAC01", "\u1100\u1161\u11A8"},
      {"x\u0301", "x\u0301", "x\u0301", "x\u0301", "x\u0301"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(run(make(Normalizer::Unicode{Form::kNfc}), c.text), c.nfc) << c.text;
    EXPECT_EQ(run(make(Normalizer::Unicode{Form::kNfd}), c.text), c.nfd) << c.text;
    EXPECT_EQ(run(make(Normalizer::Unicode{Form::kNfkc}), c.text), c.nfkc) << c.text;
    EXPECT_EQ(run(make(Normalizer::Unicode{Form::kNfkd}), c.text), c.nfkd) << c.text;
  }
}

TEST(Normalizer, MarksInARowTakeNoQuadraticTime) {
  std::string marks = "a";
  for (int i = 0; i < 250'000; ++i) marks += i % 2 == 0 ? "\u0301" : "\u0316";
  const std::string sorted = run(make(Normalizer::Unicode{Form::kNfc}), marks);
  EXPECT_EQ(sorted.substr(0, 6), "\u00E1\u0316\u0316");
  EXPECT_EQ(sorted.size(), marks.size() - 1);
}

TEST(Normalizer, StepsApplyInOrder) {
  const std::string marker = "\u2581";
  const Normalizer llama = make(Normalizer::Prepend{marker}, Normalizer::Replace{" ", marker});
  EXPECT_EQ(run(llama, "a b"), "▁a▁b");
  EXPECT_EQ(run(llama, " a"), "▁▁a");
  EXPECT_EQ(run(llama, ""), "");
  EXPECT_EQ(run(llama, "a b", FragmentPart::kLater), "a▁b");
  EXPECT_EQ(run(make(Normalizer::Strip{true, true}, Normalizer::Lowercase{}), " \u3000ÄB C\t"), "äb c");
  EXPECT_EQ(run(make(Normalizer::Strip{true, false}), "  "), "");
  EXPECT_EQ(run(make(Normalizer::Lowercase{}), "\u0130Σ"), "i\u0307σ");
  EXPECT_EQ(run(make(Normalizer::ReplaceMatches{Regex(R"(\s+)", "test"), "_"}), "a \n b  "), "a_b_");
  EXPECT_EQ(run(make(Normalizer::Replace{"aa", "b"}), "aaaaa"), "bba");
  EXPECT_EQ(run(make(Normalizer::CollapseSpaces{}), "  a   b "), "a b");
}

TEST(Normalizer, TextThatGrowsWithoutBoundIsAnError) {
  std::vector<Normalizer::Step> steps;
  for (int i = 0; i < 40; ++i) steps.emplace_back(Normalizer::Replace{"a", "aa"});
  const Normalizer doubling(std::move(steps));
  test::expect_error(ErrorCode::kInvalidArgument, "normalizer turns 1 bytes", [&] { run(doubling, "a"); });
}

}  // namespace
}  // namespace witan
