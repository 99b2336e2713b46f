#include "text/pre_tokenizer_table.h"

#include <gtest/gtest.h>

#include <set>

namespace witan {
namespace {

std::string show(const PreTokenizer& pre_tokenizer, std::string_view text) {
  RegexWorkspace workspace(text.size());
  std::string shown;
  pre_tokenizer.split(text, TextPlace::kStart, workspace, [&](std::string_view piece) {
    if (!shown.empty()) shown += '|';
    shown += piece;
  });
  return shown;
}

TEST(PreTokenizerTable, NamesAreUnique) {
  std::set<std::string_view> names;
  for (const PreTokenizerRow& row : pre_tokenizer_table()) {
    for (const std::string_view name : row.names) EXPECT_TRUE(names.insert(name).second) << name;
  }
  EXPECT_EQ(find_pre_tokenizer("no-such-name"), nullptr);
}

TEST(PreTokenizerTable, EveryRowLosesNothing) {
  const std::string text =
      "Hello, WORLD's  I'LL\n\n 1234567 naïve 我想 ทดสอบ 🦙\t\r\n x=[1];//  \u3000!? 한국 "
      "ひらがな "
      " ";
  for (const PreTokenizerRow& row : pre_tokenizer_table()) {
    const PreTokenizer pre_tokenizer = make_pre_tokenizer(row);
    RegexWorkspace workspace(text.size());
    std::string joined;
    int count = 0;
    pre_tokenizer.split(text, TextPlace::kStart, workspace, [&](std::string_view piece) {
      joined += piece;
      ++count;
    });
    EXPECT_EQ(joined, text) << row.names.front();
    EXPECT_GT(count, 10) << row.names.front();
  }
}

TEST(PreTokenizerTable, EveryRowTakesLinearTime) {
  // A quadratic step would need minutes, or fail on its limits.
  const size_t size = 100'000;
  std::vector<std::string> texts;
  for (const char c : {'a', 'A', ' ', '\n', '7', '='}) texts.emplace_back(size, c);
  texts.push_back(std::string(size, ' ') + "我");
  texts.push_back(std::string(size, ' ') + "x");
  std::string thai, marks = "a", steps;
  while (thai.size() < size) thai += "ทดสอบ";
  while (marks.size() < size) marks += "\u0301";
  while (steps.size() < size) steps += "Ab c's ";
  for (const std::string* text : {&thai, &marks, &steps}) texts.push_back(*text);
  for (const PreTokenizerRow& row : pre_tokenizer_table()) {
    const PreTokenizer pre_tokenizer = make_pre_tokenizer(row);
    for (const std::string& text : texts) {
      RegexWorkspace workspace(text.size());
      size_t total = 0;
      pre_tokenizer.split(text, TextPlace::kStart, workspace, [&](std::string_view piece) { total += piece.size(); });
      ASSERT_EQ(total, text.size()) << row.names.front();
    }
  }
}

TEST(PreTokenizerTable, RowsSplitAsTheirModelsDo) {
  struct Case {
    const char* name;
    const char* text;
    const char* pieces;
  };
  // Each text tells its row from the neighbours: how many digits stay together, whether 'LL is a contraction, what a
  // newline, a capital inside a word, a mark or a Chinese character cuts.
  const Case cases[] = {
      {"olmo", "I'LL pay  1234", "I|'|LL| pay| | 1234"},
      {"phi-2", "x=12\n\ny", "x|=|12|\n|\n|y"},
      {"llama3", "x=12\n\ny", "x|=|12|\n\n|y"},
      {"chatglm-bpe", "I'LL 1234\n\n a", "I|'LL| |123|4|\n\n| a"},
      {"qwen2", "a.b 12\n\nc", "a|.b| |1|2|\n\n|c"},
      {"starcoder", "I'LL 12\n\nc", "I|'|LL| |1|2|\n|\n|c"},
      {"deepseek-llm", "a.b 12 \u3042\u4e00x's", "a|.|b| |1|2| |\u3042\u4e00|x|'|s"},
      {"deepseek-coder", "a\u05d0 b 12", "a\u05d0| b| |1|2"},
      {"deepseek-llm", "a\u05d0 b 12", "a|\u05d0| b| |1|2"},
      {"deepseek-v3", "a.b 1234 \u3042\u4e00x", "a|.b| |123|4| |\u3042\u4e00|x"},
      {"gpt-4o", "aB'll 1234/\n", "a|B'll| |123|4|/\n"},
      {"tekken", "aB'll 1234/\n", "a|B|'ll| |1|2|3|4|/\n"},
      {"gpt-2", "I'll pay  1234", "I|'ll| pay| | 1234"},
      {"llama-bpe", "I'LL pay  1234", "I|'LL| pay| | |123|4"},
      {"qwen2", "I'LL pay 1234", "I|'LL| pay| |1|2|3|4"},
      {"starcoder", "a12 b", "a|1|2| b"},
      {"deepseek-llm", "ab 12我们!\n", "ab| |1|2|我们|!|\n"},
      {"deepseek-v3", "a1234 我们,ok", "a|123|4| |我们|,ok"},
      {"gpt-4o", "HelloWorld's don'T", "Hello|World's| don'T"},
      {"tekken", "HelloWorld's 12", "Hello|World|'s| |1|2"},
      {"kimi-k2", "Hello我们Abc", "Hello|我们|Abc"},
      {"glm4", "a 1234", "a| |123|4"},
      {"bailingmoe", "it's 12\n\n", "it|'s| |1|2|\n\n"},
  };
  for (const Case& c : cases) {
    ASSERT_NE(find_pre_tokenizer(c.name), nullptr) << c.name;
    EXPECT_EQ(show(make_pre_tokenizer(*find_pre_tokenizer(c.name)), c.text), c.pieces) << c.name;
  }
}

}  // namespace
}  // namespace witan
