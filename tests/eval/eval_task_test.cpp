#include "eval/eval_task.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "support/expect_error.h"

namespace witan {
namespace {

using test::expect_error;

const std::string kTask =
    R"({"id": "a/1", "task": "a", "variant": "v", "length": 64, "prompt": "p", "stop": ["\n"], "answers": ["1", "2"],)"
    R"( "scoring": "numbered", "first_label": 3, "positions": [0, 0.5], "max_tokens": 9})";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(EvalTask, IsWhatItsLineSays) {
  const EvalTask task = parse_eval_task(kTask, "f: line 1");
  EXPECT_EQ(task.id, "a/1");
  EXPECT_EQ(task.task, "a");
  EXPECT_EQ(task.variant, "v");
  EXPECT_EQ(task.length, 64);
  EXPECT_EQ(task.prompt, "p");
  EXPECT_FALSE(task.is_chat());
  EXPECT_TRUE(task.documents.empty());
  EXPECT_EQ(task.stop, std::vector<std::string>{"\n"});
  EXPECT_EQ(task.answers.values, (std::vector<std::string>{"1", "2"}));
  EXPECT_EQ(task.answers.first_label, 3);
  EXPECT_EQ(task.scoring, find_scoring_rule("numbered"));
  EXPECT_EQ(task.positions, (std::vector<double>{0.0, 0.5}));
  EXPECT_EQ(task.max_tokens, 9);
  EXPECT_EQ(task.fingerprint, parse_eval_task(kTask, "g").fingerprint);
  EXPECT_NE(task.fingerprint, parse_eval_task(replaced(kTask, "\"2\"", "\"4\""), "g").fingerprint);

  const EvalTask chat = parse_eval_task(
      R"({"id": "c", "task": "t", "messages": [{"role": "user", "content": "x"}], "answers": ["1"], "scoring": "last",)"
      R"( "max_tokens": 1})",
      "f");
  EXPECT_TRUE(chat.is_chat());
  EXPECT_EQ(chat.answers.first_label, 1);
  EXPECT_TRUE(chat.positions.empty());
}

TEST(EvalTask, DocumentsAreTextsInTheirOrder) {
  const auto with = [](const char* documents) {
    return replaced(kTask, "\"prompt\": \"p\"", fmt::format("\"documents\": {}, \"prompt\": \"p\"", documents));
  };
  const EvalTask task = parse_eval_task(with("[\"b\", \"a\", \"b\"]"), "f");
  EXPECT_EQ(task.documents, (std::vector<std::string>{"b", "a", "b"}));
  EXPECT_EQ(task.prompt, "p");
  EXPECT_NE(task.fingerprint, parse_eval_task(with("[\"a\", \"b\", \"b\"]"), "f").fingerprint);
}

TEST(EvalTask, WhatIsWrongIsNamed) {
  const struct {
    const char* from;
    const char* to;
    const char* says;
  } cases[] = {
      {"{\"id\"", "{\"id\": \"b\", \"id\"", "f: line 7"},
      {"\"max_tokens\": 9}", "\"max_tokens\": 9", "f: line 7"},
      {"\"id\": \"a/1\", ", "", "f: line 7: \"id\" is missing"},
      {"\"a/1\"", "\"\"", "\"id\" is the string"},
      {"\"task\": \"a\"", "\"task\": 5", "\"task\" is the number 5, expected a string"},
      {"\"prompt\": \"p\", ", "", "either \"messages\" or \"prompt\""},
      {"\"prompt\": \"p\"", "\"prompt\": \"p\", \"messages\": []", "either \"messages\" or \"prompt\""},
      {"\"prompt\": \"p\"", "\"prompt\": \"\"", "\"prompt\" is the string"},
      {"\"prompt\": \"p\"", "\"messages\": [5]", "messages[0]"},
      {"\"prompt\"", "\"documents\": \"d\", \"prompt\"", "\"documents\" is the string"},
      {"\"prompt\"", "\"documents\": [\"d\", \"\"], \"prompt\"", "\"documents\""},
      {"\"prompt\": \"p\"", "\"documents\": [\"d\"], \"messages\": [{\"role\": \"user\", \"content\": \"x\"}]",
       "f: line 7: \"documents\" need a \"prompt\""},
      {"[\"\\n\"]", "[\"\"]", "\"stop\""},
      {"[\"1\", \"2\"]", "[]", "\"answers\""},
      {"[\"1\", \"2\"]", "[1, 2]", "\"answers\""},
      {"numbered", "guess", "unknown scoring \"guess\"; there are last, each, items, numbered, text, contains"},
      {"\"first_label\": 3", "\"first_label\": -3", "\"first_label\""},
      {"[0, 0.5]", "[0]", "1 \"positions\" for 2 \"answers\""},
      {"[0, 0.5]", "[0, 1.5]", "\"positions\""},
      {"\"max_tokens\": 9", "\"max_tokens\": 0", "\"max_tokens\" is the number 0, expected a whole number from 1"},
      {"\"max_tokens\": 9", "\"max_tokens\": 3000000000", "\"max_tokens\""},
      {"\"max_tokens\": 9", "\"max_tokens\": 1.5", "\"max_tokens\""},
      {"\"length\": 64", "\"length\": \"64\"", "\"length\""},
  };
  for (const auto& [from, to, says] : cases) {
    SCOPED_TRACE(to);
    expect_error(ErrorCode::kInvalidArgument, says, [&] { parse_eval_task(replaced(kTask, from, to), "f: line 7"); });
  }
  expect_error(ErrorCode::kInvalidArgument, "f", [] { parse_eval_task("[1]", "f"); });
}

TEST(EvalTask, LinesKeepTheirNumbersAndTheirErrors) {
  std::vector<EvalTaskLine> lines;
  add_eval_tasks(kTask + "\r\n\n  \n{\"id\": 5}\n" + kTask + "\n" + replaced(kTask, "a/1", "a/2"), "f.jsonl", lines);
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_EQ(lines[0].line, 1);
  EXPECT_EQ(lines[0].error, "");
  EXPECT_EQ(lines[0].task.fingerprint, parse_eval_task(kTask, "").fingerprint);
  EXPECT_EQ(lines[1].line, 4);
  EXPECT_EQ(lines[1].task.id, "f.jsonl:4");
  EXPECT_EQ(lines[1].error, "f.jsonl: line 4: \"id\" is the number 5, expected a string");
  EXPECT_EQ(lines[2].error, "f.jsonl: line 5: the id \"a/1\" appeared before, in line 1 of f.jsonl");
  EXPECT_EQ(lines[2].task.id, "f.jsonl:5");
  EXPECT_EQ(lines[3].error, "");
  add_eval_tasks(replaced(kTask, "a/1", "a/2"), "g.jsonl", lines);
  EXPECT_EQ(lines[4].error, "g.jsonl: line 1: the id \"a/2\" appeared before, in line 6 of f.jsonl");
}

}  // namespace
}  // namespace witan
