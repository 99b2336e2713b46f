#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "eval/eval_task.h"
#include "kv/policy/kv_policy.h"

namespace witan {

// What a KV policy left of a task's KV cache when it judged last.
struct EvalKv {
  int32_t num_tokens = 0;                   // of the text by then
  std::vector<std::vector<int32_t>> kept;   // entries, [layer][head]
  std::vector<std::vector<int64_t>> bytes;  // of the blocks that these are in
  int64_t bytes_before = 0;
  int64_t bytes_after = 0;
};

// What a KV policy reused of a task's documents.
struct EvalReuse {
  int32_t num_tokens = 0;             // whose entries are those of the same text elsewhere
  int32_t num_found_tokens = 0;       // of them, in the prefix cache
  int32_t num_recomputed_tokens = 0;  // computed again where they are
};

// What became of a task.
struct EvalResult {
  std::string error = {};  // why there is no reply; all of the following is empty then
  std::string reply = {};  // what was scored: without reasoning
  std::vector<Mark> marks = {};
  std::string finish_reason = {};
  int32_t prompt_tokens = 0;
  int32_t generated_tokens = 0;
  double first_token_seconds = 0.0;               // since it was submitted, waiting included; not read back from files
  double seconds = 0.0;                           // the same, until it ended
  std::optional<EvalKv> kv = {};                  // where a KV policy dropped something; not read back from files
  std::optional<KvReads> reads = {};              // where generated tokens read pages; not read back either
  std::optional<EvalReuse> reuse = {};            // where it reused documents; not read back either
  std::optional<std::string> chosen_policy = {};  // in place of `auto`, empty where it is none; not read back either
};

// A file of results, as JSON Lines: what was evaluated, then a line per task in the order in which they ended, and a
// line with statistics per run. eval/README.md describes them. Every line is in the file when add() returns; an
// evaluation that was interrupted goes on with the same file.
class EvalResultFile {
 public:
  // `header` says what was evaluated and how. Of a file that is there, results are kept; errors are dropped, to be
  // tried again, and so is a last line that was cut off. Throws Error(kInvalidArgument), and leaves the file as it is,
  // where it holds something else than such results, results of another header (but for "version" and "tasks"), or of
  // tasks that are not in `lines` as they were; Error(kIo).
  EvalResultFile(std::string path, const nlohmann::json& header, const std::vector<EvalTaskLine>& lines);
  ~EvalResultFile();
  EvalResultFile(const EvalResultFile&) = delete;
  EvalResultFile& operator=(const EvalResultFile&) = delete;

  // By task id: results found in the file and added.
  const std::unordered_map<std::string, EvalResult>& results() const { return results_; }

  // Throw Error(kIo).
  void add(const EvalTaskLine& line, EvalResult result);
  void add_run(const nlohmann::json& statistics);
  void add_perplexity(const nlohmann::json& perplexity);

 private:
  void read(const std::string& text, const nlohmann::json& header, const std::vector<EvalTaskLine>& lines);
  void append(const nlohmann::json& line);

  std::string path_;
  std::vector<std::string> kept_;
  std::unordered_map<std::string, EvalResult> results_;
  std::FILE* file_ = nullptr;
};

// Answers and replies of a group of tasks.
struct EvalTally {
  int64_t tasks = 0;    // that ran
  int64_t not_run = 0;  // errors
  int64_t answers = 0;  // expected, of tasks that ran
  int64_t given = 0;    // of them, those whose place in the reply is not empty
  int64_t right = 0;
  int64_t generated_tokens = 0;
  int64_t cut_off = 0;  // replies that max_tokens or the context ended

  void add(const EvalResult& result);
};

// Tables for people: right and given answers by task, variant and length; then all together, and by the answer's place
// in replies of several.
std::string eval_table(const std::vector<EvalTaskLine>& lines,
                       const std::unordered_map<std::string, EvalResult>& results);

}  // namespace witan
