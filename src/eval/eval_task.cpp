#include "eval/eval_task.h"

#include <xxhash.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/error.h"
#include "text/json_text.h"

namespace witan {
namespace {

using nlohmann::json;

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

// The keys of a line, each taken once.
class Reader {
 public:
  Reader(const json& object, const std::string& source) : object_(object), source_(source) {}

  // nullptr where the key is absent.
  const json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
  }
  const json& get(const char* key) const {
    const json* value = find(key);
    if (value == nullptr) fail(ErrorCode::kInvalidArgument, "{}: \"{}\" is missing", source_, key);
    return *value;
  }

  std::string string(const char* key) const {
    if (!get(key).is_string()) wrong(key, "a string");
    return get(key).get<std::string>();
  }
  std::string string_or_empty(const char* key) const { return find(key) == nullptr ? "" : string(key); }
  int32_t integer(const char* key, int64_t low) const {
    const json& value = get(key);
    const bool fits = value.is_number_integer() && value >= low && value <= kMaxInt32;
    if (!fits) wrong(key, fmt::format("a whole number from {}", low));
    return value.get<int32_t>();
  }
  std::vector<std::string> strings(const char* key) const {
    const json& list = get(key);
    if (!list.is_array()) wrong(key, "an array of strings");
    for (const json& item : list) {
      if (!item.is_string() || item.get_ref<const std::string&>().empty()) wrong(key, "strings that are not empty");
    }
    return list.get<std::vector<std::string>>();
  }
  std::vector<double> shares(const char* key) const {
    const json& list = get(key);
    if (!list.is_array()) wrong(key, "an array of numbers");
    for (const json& item : list) {
      if (!item.is_number() || item < 0 || item > 1) wrong(key, "numbers from 0 to 1");
    }
    return list.get<std::vector<double>>();
  }

  [[noreturn]] void wrong(const char* key, std::string_view expected) const {
    fail(ErrorCode::kInvalidArgument, "{}: \"{}\" is {}, expected {}", source_, key, describe_json(get(key)), expected);
  }

 private:
  const json& object_;
  const std::string& source_;
};

}  // namespace

EvalTask parse_eval_task(std::string_view line, const std::string& source) {
  json object;
  try {
    object = parse_json_object(line, source);
  } catch (const Error& error) {
    throw Error(ErrorCode::kInvalidArgument, error.what());
  }
  const Reader reader(object, source);
  EvalTask task{.id = reader.string("id")};
  if (task.id.empty()) reader.wrong("id", "a string that is not empty");
  task.task = reader.string("task");
  task.variant = reader.string_or_empty("variant");
  if (reader.find("length") != nullptr) task.length = reader.integer("length", 0);
  if ((reader.find("prompt") == nullptr) == (reader.find("messages") == nullptr)) {
    fail(ErrorCode::kInvalidArgument, "{}: expected either \"messages\" or \"prompt\"", source);
  }
  if (reader.find("prompt") != nullptr) {
    task.prompt = reader.string("prompt");
    if (task.prompt.empty()) reader.wrong("prompt", "a string that is not empty");
  } else {
    task.chat = parse_chat_input(json{{"messages", reader.get("messages")}}.dump(), source);
  }
  if (reader.find("documents") != nullptr) {
    if (task.is_chat()) {
      fail(ErrorCode::kInvalidArgument,
           "{}: \"documents\" need a \"prompt\": a chat template says what comes before \"messages\"", source);
    }
    task.documents = reader.strings("documents");
  }
  if (reader.find("stop") != nullptr) task.stop = reader.strings("stop");
  task.answers.values = reader.strings("answers");
  if (task.answers.values.empty()) reader.wrong("answers", "at least one");
  if (reader.find("first_label") != nullptr) task.answers.first_label = reader.integer("first_label", 0);
  const std::string rule = reader.string("scoring");
  task.scoring = find_scoring_rule(rule);
  if (task.scoring == nullptr) {
    fail(ErrorCode::kInvalidArgument, "{}: unknown scoring \"{}\"; there are {}", source, rule, scoring_rule_names());
  }
  if (reader.find("positions") != nullptr) task.positions = reader.shares("positions");
  if (!task.positions.empty() && task.positions.size() != task.answers.values.size()) {
    fail(ErrorCode::kInvalidArgument, "{}: {} \"positions\" for {} \"answers\"", source, task.positions.size(),
         task.answers.values.size());
  }
  task.max_tokens = reader.integer("max_tokens", 1);
  task.fingerprint = XXH3_64bits(line.data(), line.size());
  return task;
}

void add_eval_tasks(std::string_view text, const std::string& path, std::vector<EvalTaskLine>& lines) {
  std::unordered_map<std::string, std::string> known;  // by id: where it is
  for (const EvalTaskLine& line : lines)
    known.emplace(line.task.id, fmt::format("line {} of {}", line.line, line.path));
  int32_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view content = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (content.ends_with('\r')) content.remove_suffix(1);
    if (content.find_first_not_of(" \t") == std::string_view::npos) continue;
    EvalTaskLine& line = lines.emplace_back();
    line.path = path;
    line.line = number;
    const std::string source = fmt::format("{}: line {}", path, number);
    try {
      line.task = parse_eval_task(content, source);
      const auto [first, is_new] = known.emplace(line.task.id, fmt::format("line {} of {}", number, path));
      if (is_new) continue;
      fail(ErrorCode::kInvalidArgument, "{}: the id \"{}\" appeared before, in {}", source, line.task.id,
           first->second);
    } catch (const Error& error) {
      line.error = error.what();
      line.task = {.id = fmt::format("{}:{}", path, number)};
    }
  }
}

}  // namespace witan
