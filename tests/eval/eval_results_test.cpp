#include "eval/eval_results.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "support/expect_error.h"

namespace witan {
namespace {

using nlohmann::json;
using test::expect_error;

EvalTaskLine line_of(const std::string& id, const std::string& answer = "1") {
  const json object = {{"id", id},          {"task", "t"},    {"variant", "v"},
                       {"length", 8},       {"prompt", "p"},  {"answers", {answer, "2"}},
                       {"scoring", "each"}, {"max_tokens", 4}};
  std::vector<EvalTaskLine> lines;
  add_eval_tasks(object.dump(), "tasks", lines);
  return lines.front();
}

EvalResult result_of(std::vector<Mark> marks, const std::string& reply = "1. 2.") {
  return {.reply = reply,
          .marks = std::move(marks),
          .finish_reason = "stop",
          .prompt_tokens = 3,
          .generated_tokens = 4,
          .first_token_seconds = 0.25,
          .seconds = 0.5};
}

class EvalResultFileTest : public testing::Test {
 protected:
  EvalResultFileTest() : path_(std::filesystem::temp_directory_path() / ("witan-results-" + std::to_string(getpid()))) {
    std::filesystem::remove(path_);
  }
  ~EvalResultFileTest() override { std::filesystem::remove(path_); }

  std::vector<json> lines_of_file() const {
    std::ifstream file(path_);
    std::vector<json> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(json::parse(line));
    return lines;
  }
  std::string text_of_file() const {
    std::ostringstream text;
    text << std::ifstream(path_).rdbuf();
    return text.str();
  }
  void append(const std::string& text) const { std::ofstream(path_, std::ios::app) << text; }

  std::string path_;
  json header_ = {{"format", "witan-eval-1"}, {"version", "1"}, {"model", "m"}, {"settings", {{"context", 64}}}};
  std::vector<EvalTaskLine> tasks_ = {line_of("a"), line_of("b"), line_of("c")};
};

TEST_F(EvalResultFileTest, EveryLineIsThereAsSoonAsItIsAdded) {
  EvalResultFile file(path_, header_, tasks_);
  EXPECT_EQ(lines_of_file(), std::vector<json>{header_});
  file.add(tasks_[0], result_of({Mark::kRight, Mark::kMissing}));
  file.add(tasks_[1], {.error = "tasks: line 2: no room"});
  file.add_run({{"steps", 7}});
  const std::vector<json> lines = lines_of_file();
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_EQ(lines[1]["id"], "a");
  EXPECT_EQ(lines[1]["task"], "t");
  EXPECT_EQ(lines[1]["variant"], "v");
  EXPECT_EQ(lines[1]["length"], 8);
  EXPECT_EQ(lines[1]["correct"], json({true, nullptr}));
  EXPECT_EQ(lines[1]["answers"], json({"1", "2"}));
  EXPECT_EQ(lines[1]["reply"], "1. 2.");
  EXPECT_EQ(lines[1]["prompt_tokens"], 3);
  EXPECT_EQ(lines[1]["generated_tokens"], 4);
  EXPECT_EQ(lines[1]["first_token_seconds"], 0.25);
  EXPECT_EQ(lines[1]["seconds"], 0.5);
  EXPECT_EQ(lines[1]["finish_reason"], "stop");
  EXPECT_EQ(lines[2]["error"], "tasks: line 2: no room");
  EXPECT_EQ(lines[3], json({{"run", {{"steps", 7}}}}));
}

TEST_F(EvalResultFileTest, WhatAKvPolicyLeftIsTold) {
  EvalResultFile file(path_, header_, tasks_);
  EvalResult result = result_of({Mark::kRight, Mark::kMissing});
  result.kv = {.num_tokens = 9,
               .kept = {{3, 4}, {5, 2}},
               .bytes = {{30, 40}, {50, 20}},
               .bytes_before = 900,
               .bytes_after = 140};
  result.reads = {.bytes = 70, .bytes_of_all = 210};
  file.add(tasks_[0], result);
  file.add(tasks_[1], result_of({Mark::kRight}));
  const std::vector<json> lines = lines_of_file();
  EXPECT_EQ(lines[1]["kv"], json({{"tokens", 9},
                                  {"kept", {{3, 4}, {5, 2}}},
                                  {"kept_bytes", {{30, 40}, {50, 20}}},
                                  {"bytes_before", 900},
                                  {"bytes_after", 140}}));
  EXPECT_EQ(lines[1]["kv_read"], json({{"bytes", 70}, {"bytes_of_all", 210}}));
  EXPECT_FALSE(lines[2].contains("kv"));
  EXPECT_FALSE(lines[2].contains("kv_read"));
}

TEST_F(EvalResultFileTest, ThePolicyThatWasChosenIsTold) {
  EvalResultFile file(path_, header_, tasks_);
  EvalResult result = result_of({Mark::kRight, Mark::kMissing});
  file.add(tasks_[0], result);
  result.chosen_policy = "k=int8-hadamard";
  file.add(tasks_[0], result);
  result.chosen_policy = "";
  file.add(tasks_[0], result);
  const std::vector<json> lines = lines_of_file();
  EXPECT_FALSE(lines[1].contains("kv_auto"));
  EXPECT_EQ(lines[2]["kv_auto"], "k=int8-hadamard");
  EXPECT_TRUE(lines[3]["kv_auto"].is_null());
}

TEST_F(EvalResultFileTest, WhatAKvPolicyReusedIsTold) {
  EvalResultFile file(path_, header_, tasks_);
  EvalResult result = result_of({Mark::kRight, Mark::kMissing});
  result.reuse = {.num_tokens = 96, .num_found_tokens = 64, .num_recomputed_tokens = 15};
  file.add(tasks_[0], result);
  file.add(tasks_[1], result_of({Mark::kRight}));
  const std::vector<json> lines = lines_of_file();
  EXPECT_EQ(lines[1]["kv_reuse"], json({{"tokens", 96}, {"found", 64}, {"recomputed", 15}}));
  EXPECT_FALSE(lines[2].contains("kv_reuse"));
}

TEST_F(EvalResultFileTest, AnInterruptedEvaluationGoesOn) {
  {
    EvalResultFile file(path_, header_, tasks_);
    file.add(tasks_[0], result_of({Mark::kRight, Mark::kWrong}));
    file.add(tasks_[1], {.error = "no room"});
    file.add_run({{"steps", 7}});
  }
  append(R"({"id": "c", "task": "t", "corr)");
  header_["version"] = "2";
  header_["tasks"] = {"tasks", "more"};
  EvalResultFile file(path_, header_, tasks_);
  ASSERT_EQ(file.results().size(), 1U);
  const EvalResult& found = file.results().at("a");
  EXPECT_EQ(found.marks, (std::vector<Mark>{Mark::kRight, Mark::kWrong}));
  EXPECT_EQ(found.reply, "1. 2.");
  EXPECT_EQ(found.generated_tokens, 4);
  EXPECT_EQ(found.finish_reason, "stop");
  file.add(tasks_[2], result_of({Mark::kMissing, Mark::kMissing}));
  const std::vector<json> lines = lines_of_file();
  ASSERT_EQ(lines.size(), 4U);  // the error and the cut line are gone
  EXPECT_EQ(lines[0]["version"], "2");
  EXPECT_EQ(lines[1]["id"], "a");
  EXPECT_EQ(lines[2]["run"]["steps"], 7);
  EXPECT_EQ(lines[3]["id"], "c");
}

TEST_F(EvalResultFileTest, FilesThatDoNotTellWhenTheFirstTokenCameGoOn) {
  EvalResultFile(path_, header_, tasks_).add(tasks_[0], result_of({Mark::kRight, Mark::kWrong}));
  std::string text = text_of_file();
  const std::string field = "\"first_token_seconds\":0.25,";
  const size_t at = text.find(field);
  ASSERT_NE(at, std::string::npos);
  std::ofstream(path_) << text.erase(at, field.size());
  const EvalResultFile file(path_, header_, tasks_);
  EXPECT_EQ(file.results().at("a").seconds, 0.5);
  EXPECT_EQ(text_of_file(), text);
}

TEST_F(EvalResultFileTest, WhatIsNotOfThisEvaluationIsRefusedAndStays) {
  const auto refuses = [&](const std::vector<std::string>& parts, const json& header,
                           const std::vector<EvalTaskLine>& tasks) {
    const std::string before = text_of_file();
    expect_error(ErrorCode::kInvalidArgument, parts, [&] { EvalResultFile(path_, header, tasks); });
    EXPECT_EQ(text_of_file(), before);
  };
  append("a letter\nto a friend\n");
  refuses({path_, "line 1: no result of witan eval"}, header_, tasks_);
  std::filesystem::remove(path_);
  EvalResultFile(path_, header_, tasks_).add(tasks_[0], result_of({Mark::kRight, Mark::kRight}));
  json other = header_;
  other["settings"]["context"] = 128;
  refuses({"settings/context was 64, is 128"}, other, tasks_);
  other = header_;
  other["settings"].erase("context");
  refuses({"settings/context was 64, is nothing"}, other, tasks_);
  refuses({"line 2", "\"a\"", "not in the task files as it was"}, header_, {tasks_[1]});
  refuses({"line 2", "\"a\"", "not in the task files as it was"}, header_, {line_of("a", "3")});
  append("{\"id\": \"b\"}\n");
  refuses({"line 3"}, header_, tasks_);
}

TEST_F(EvalResultFileTest, AFileThatCannotBeIsAnError) {
  expect_error(ErrorCode::kIo, "/nonexistent/x", [&] { EvalResultFile("/nonexistent/x", header_, tasks_); });
}

TEST(EvalTable, CountsByTaskAndByPlace) {
  std::vector<EvalTaskLine> lines = {line_of("a"), line_of("b"), line_of("c"), line_of("d")};
  lines[3].task.length = 16;
  std::unordered_map<std::string, EvalResult> results;
  results["a"] = result_of({Mark::kRight, Mark::kWrong});
  results["b"] = result_of({Mark::kRight, Mark::kMissing});
  results["b"].finish_reason = "length";
  results["c"].error = "no room";
  results["d"] = result_of({Mark::kRight, Mark::kRight});
  const std::string table = eval_table(lines, results);
  EXPECT_EQ(table,
            "task                                tasks  answers     right     given   tokens\n"
            "t v 8                                   2        4    50.0 %    75.0 %      4.0   1 cut off   1 not run\n"
            "t v 16                                  1        2   100.0 %   100.0 %      4.0\n"
            "all                                     3        6    66.7 %    83.3 %      4.0   1 cut off   1 not run\n"
            "right by place in replies of several: 1-5: 66.7 %\n");
}

}  // namespace
}  // namespace witan
