#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "eval/scoring.h"
#include "text/chat_template.h"

namespace witan {

// A task: a prompt, and what its reply has to say. eval/README.md has the line of JSON that it is made of.
struct EvalTask {
  std::string id;
  std::string task = {};  // task, variant and length are for tables
  std::string variant = {};
  int32_t length = 0;       // tokens, as its maker counted them
  std::string prompt = {};  // raw; or else
  ChatInput chat = {};      // messages for the model's chat template
  // Texts before a raw prompt, in order; each is tokenised by itself.
  std::vector<std::string> documents = {};
  std::vector<std::string> stop = {};
  ExpectedAnswers answers = {};
  const ScoringRule* scoring = nullptr;
  std::vector<double> positions = {};  // empty, or per answer where in the document it is decided: 0 (start) to 1
  int32_t max_tokens = 0;
  uint64_t fingerprint = 0;  // of the line

  bool is_chat() const { return prompt.empty(); }
};

// Throws Error(kInvalidArgument) naming `source` and what is missing, unknown or of a wrong type.
EvalTask parse_eval_task(std::string_view line, const std::string& source);

// A task, or why there is none.
struct EvalTaskLine {
  EvalTask task;  // of a broken line: only an id, such as tasks.jsonl:17
  std::string path = {};
  int32_t line = 0;        // 1 is the first
  std::string error = {};  // names path and line; empty where there is a task
};

// All lines of a file's text but the blank ones; `path` names it in messages. Broken lines, and those whose id
// appeared in `lines` before, are added with their error.
void add_eval_tasks(std::string_view text, const std::string& path, std::vector<EvalTaskLine>& lines);

}  // namespace witan
