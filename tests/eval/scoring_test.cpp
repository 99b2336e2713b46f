#include "eval/scoring.h"

#include <gtest/gtest.h>

namespace witan {
namespace {

// A letter per expected value: r(ight), w(rong), - for missing.
std::string marks(std::string_view rule, std::string_view reply, std::vector<std::string> expected,
                  int32_t first_label = 1) {
  std::string letters;
  for (const Mark mark : score(*find_scoring_rule(rule), reply, {std::move(expected), first_label})) {
    letters += mark == Mark::kRight ? 'r' : mark == Mark::kWrong ? 'w' : '-';
  }
  return letters;
}

TEST(Scoring, LastTakesTheLastNumberWhereANumberIsExpectedElseTheLastWord) {
  EXPECT_EQ(marks("last", "The code of Ann is 12.", {"12"}), "r");
  EXPECT_EQ(marks("last", "12 or 13", {"12"}), "w");
  EXPECT_EQ(marks("last", "12 apples", {"12"}), "r");
  EXPECT_EQ(marks("last", "the color is Red!", {"red"}), "r");
  EXPECT_EQ(marks("last", "red 7", {"red"}), "w");
  EXPECT_EQ(marks("last", "no number", {"12"}), "-");
  EXPECT_EQ(marks("last", "", {"12"}), "-");
  EXPECT_EQ(marks("last", "?!", {"red"}), "-");
}

TEST(Scoring, NumbersCountByValue) {
  EXPECT_EQ(marks("last", "It costs $1,250.00!", {"1250"}), "r");
  EXPECT_EQ(marks("last", "1250", {"1,250"}), "r");
  EXPECT_EQ(marks("last", "0.50", {"0.5"}), "r");
  EXPECT_EQ(marks("last", "100", {"1"}), "w");
  EXPECT_EQ(marks("last", "5 - 8 = -3", {"-3"}), "r");
  EXPECT_EQ(marks("last", "-3", {"3"}), "w");
  EXPECT_EQ(marks("last", "pages 12-3", {"3"}), "r");  // a range, no sign
  EXPECT_EQ(marks("last", "3.", {"3"}), "r");
}

TEST(Scoring, EachTakesOneValueASentenceOrLine) {
  EXPECT_EQ(marks("each", "The code of A is 1. The code of B is 2.", {"1", "2"}), "rr");
  EXPECT_EQ(marks("each", "A: 1\n\nB: 3", {"1", "2"}), "rw");
  EXPECT_EQ(marks("each", "The code of A is 2.", {"1", "2"}), "w-");
  EXPECT_EQ(marks("each", "It is 1.5; then 2.", {"1.5", "2"}), "rr");
  EXPECT_EQ(marks("each", "", {"1", "2"}), "--");
}

TEST(Scoring, ItemsAreSeparatedByCommas) {
  EXPECT_EQ(marks("items", "List: ant, bee, cow.", {"ant", "bee", "dog"}), "rrw");
  EXPECT_EQ(marks("items", "ant", {"ant", "bee"}), "r-");
  EXPECT_EQ(marks("items", "List: bee, ant", {"ant", "bee"}), "ww");
  EXPECT_EQ(marks("items", "List: ant, , cow", {"ant", "bee", "cow"}), "r-r");
}

TEST(Scoring, NumberedBlocksAreFoundByTheirNumber) {
  EXPECT_EQ(marks("numbered", "Answer_1: 3 + 4 = 7.\nAnswer_2: 8", {"7", "8"}), "rr");
  EXPECT_EQ(marks("numbered", "Answer_2: 8\nAnswer_1: 7", {"7", "8"}), "rr");
  EXPECT_EQ(marks("numbered", "Answer_1: 7\nAnswer_3: 9", {"7", "8", "9"}), "r-r");
  EXPECT_EQ(marks("numbered", "Answer_1: 7\nAnswer_1: 8", {"7"}), "r");
  EXPECT_EQ(marks("numbered", "Answer_1: 7\nAnswer_1: 8\nAnswer_2: 9", {"7", "9"}), "rr");
  EXPECT_EQ(marks("numbered", "Answer_1:\nfirst 3\n\nthen 4.0\n\nAnswer_2 :\n5", {"4", "5"}), "rr");
  EXPECT_EQ(marks("numbered", "Answer_9: 1\nAnswer_10: 2", {"1", "2"}, 9), "rr");
  EXPECT_EQ(marks("numbered", "Answer_1: \nAnswer_2: 2", {"1", "2"}), "-r");
  EXPECT_EQ(marks("numbered", "Answer_1 is 7, Answer_x: 8", {"7"}), "-");
}

TEST(Scoring, TextIsEverythingBehindTheColon) {
  EXPECT_EQ(marks("text", "Output: dog  red\n", {"dog red"}), "r");
  EXPECT_EQ(marks("text", "Output: Dog red.", {"dog red"}), "r");
  EXPECT_EQ(marks("text", "Output: red dog", {"dog red"}), "w");
  EXPECT_EQ(marks("text", "dog red", {"dog red"}), "-");
  EXPECT_EQ(marks("text", "Output:", {"dog red"}), "-");
}

TEST(Scoring, ContainsLooksAnywhere) {
  EXPECT_EQ(marks("contains", "They are 17 and 4.", {"17", "5"}), "r-");
  EXPECT_EQ(marks("contains", "the ABC", {"abc"}), "r");
}

TEST(Scoring, UnknownRulesAreNone) {
  EXPECT_EQ(find_scoring_rule("guess"), nullptr);
  EXPECT_EQ(find_scoring_rule(""), nullptr);
  EXPECT_EQ(scoring_rule_names(), "last, each, items, numbered, text, contains");
}

}  // namespace
}  // namespace witan
