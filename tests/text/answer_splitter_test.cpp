#include "text/answer_splitter.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

namespace witan {
namespace {

// "R(...)" for reasoning and "A(...)" for the answer, pushed in bits of `size` bytes.
std::string split(ReasoningFormat format, std::string_view prompt, std::string_view text, size_t size) {
  AnswerSplitter splitter(format, prompt);
  std::string shown;
  std::optional<AnswerPart> part;
  const auto add = [&](const std::vector<AnswerPiece>& pieces) {
    for (const AnswerPiece& piece : pieces) {
      if (part != piece.part) shown += piece.part == AnswerPart::kReasoning ? "R:" : "A:";
      part = piece.part;
      shown += piece.text;
    }
  };
  for (size_t at = 0; at < text.size(); at += size) add(splitter.push(text.substr(at, size)));
  add(splitter.finish());
  return shown;
}

TEST(AnswerSplitter, TellsReasoningFromAnswerHoweverTheTextArrives) {
  struct Case {
    ReasoningFormat format;
    const char* prompt;
    const char* text;
    const char* expected;
  };
  const auto think = ReasoningFormat::kThinkTags;
  const auto harmony = ReasoningFormat::kHarmony;
  const Case cases[] = {
      {ReasoningFormat::kNone, "", " <think>a</think> b", "A: <think>a</think> b"},
      {think, "", "<think>\nI see. \n</think>\n\nYes.\n", "R:I see.A:Yes.\n"},
      {think, "...<think>\n", "Hm, a b.\n</think>\nNo", "R:Hm, a b.A:No"},
      {think, "", "plain < 3 <thin", "A:plain < 3 <thin"},
      {think, "", "<think></think>ok", "A:ok"},
      {think, "", "<think>never ends ", "R:never ends"},
      {harmony, "<|start|>assistant",
       "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>final<|message|>Done.",
       "R:Think.A:Done."},
      {harmony, "", "<|channel|>final<|message|>Hi<|return|>", "A:Hi"},
      {harmony, "", "bare text", "A:bare text"},
  };
  for (const Case& c : cases) {
    for (const size_t size : {1, 2, 3, 7, 1000}) {
      EXPECT_EQ(split(c.format, c.prompt, c.text, size), c.expected) << c.text << " by " << size;
    }
  }
}

TEST(AnswerSplitter, TheTemplateTellsTheFormat) {
  EXPECT_EQ(AnswerSplitter::format_of("{{ '<|channel|>analysis' }} <think>"), ReasoningFormat::kHarmony);
  EXPECT_EQ(AnswerSplitter::format_of("{{ content.split('</think>') }}"), ReasoningFormat::kThinkTags);
  EXPECT_EQ(AnswerSplitter::format_of("{{ content }}"), ReasoningFormat::kNone);
  EXPECT_TRUE(AnswerSplitter::is_mark(ReasoningFormat::kHarmony, "<|message|>"));
  EXPECT_FALSE(AnswerSplitter::is_mark(ReasoningFormat::kThinkTags, "<|message|>"));
}

}  // namespace
}  // namespace witan
