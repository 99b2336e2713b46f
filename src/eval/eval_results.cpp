#include "eval/eval_results.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>
#include <tuple>

#include "base/atomic_file.h"
#include "base/error.h"

namespace witan {
namespace {

using nlohmann::json;

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf() || file.peek() == std::ifstream::traits_type::eof())) {
    fail(ErrorCode::kIo, "{}: cannot be read: {}", path, std::strerror(errno));
  }
  return text.str();
}

// A file of these lines under that name, or as before.
void replace_file(const std::string& path, const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  AtomicFile file(path);
  for (size_t done = 0; done < text.size();) {
    const ssize_t count = ::write(file.descriptor(), text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(ErrorCode::kIo, "{}: cannot be written: {}", path, std::strerror(errno));
    done += static_cast<size_t>(count);
  }
  file.commit();
}

json mark_json(Mark mark) { return mark == Mark::kMissing ? json(nullptr) : json(mark == Mark::kRight); }

Mark mark_of(const json& value) {
  if (value.is_null()) return Mark::kMissing;
  return value.get<bool>() ? Mark::kRight : Mark::kWrong;
}

json to_json(const EvalTaskLine& line, const EvalResult& result) {
  const EvalTask& task = line.task;
  json object = {{"id", task.id}};
  if (!task.task.empty()) object.update({{"task", task.task}, {"variant", task.variant}, {"length", task.length}});
  if (!result.error.empty()) {
    object.update({{"line", line.line}, {"error", result.error}});
    return object;
  }
  json marks = json::array();
  for (const Mark mark : result.marks) marks.push_back(mark_json(mark));
  object.update({{"correct", marks},
                 {"positions", task.positions},
                 {"prompt_tokens", result.prompt_tokens},
                 {"generated_tokens", result.generated_tokens},
                 {"max_tokens", task.max_tokens},
                 {"finish_reason", result.finish_reason},
                 {"reply", result.reply},
                 {"answers", task.answers.values},
                 {"first_token_seconds", result.first_token_seconds},
                 {"seconds", result.seconds},
                 {"fingerprint", fmt::format("{:016x}", task.fingerprint)}});
  if (result.kv) {
    object["kv"] = {{"tokens", result.kv->num_tokens},
                    {"kept", result.kv->kept},
                    {"kept_bytes", result.kv->bytes},
                    {"bytes_before", result.kv->bytes_before},
                    {"bytes_after", result.kv->bytes_after}};
  }
  if (result.reads) {
    object["kv_read"] = {{"bytes", result.reads->bytes}, {"bytes_of_all", result.reads->bytes_of_all}};
  }
  if (result.reuse) {
    object["kv_reuse"] = {{"tokens", result.reuse->num_tokens},
                          {"found", result.reuse->num_found_tokens},
                          {"recomputed", result.reuse->num_recomputed_tokens}};
  }
  if (result.chosen_policy) {
    object["kv_auto"] = result.chosen_policy->empty() ? json() : json(*result.chosen_policy);
  }
  return object;
}

EvalResult from_json(const json& object) {
  EvalResult result;
  result.reply = object.at("reply").get<std::string>();
  for (const json& mark : object.at("correct")) result.marks.push_back(mark_of(mark));
  result.finish_reason = object.at("finish_reason").get<std::string>();
  result.prompt_tokens = object.at("prompt_tokens").get<int32_t>();
  result.generated_tokens = object.at("generated_tokens").get<int32_t>();
  result.seconds = object.at("seconds").get<double>();
  return result;
}

// A later run of the same evaluation may be of another build and have more tasks; those that ran are checked one by
// one.
void check_same_header(json found, json wanted, const std::string& path) {
  for (json* header : {&found, &wanted}) {
    header->erase("version");
    header->erase("tasks");
  }
  const json differences = json::diff(found, wanted);
  if (differences.empty()) return;
  const json::json_pointer place(differences[0]["path"].get<std::string>());
  const auto value = [&](const json& header) { return header.contains(place) ? dump(header[place]) : "nothing"; };
  fail(ErrorCode::kInvalidArgument, "{}: has results of another evaluation: {} was {}, is {}; name another file", path,
       place.to_string().substr(1), value(found), value(wanted));
}

double percent(int64_t part, int64_t whole) {
  return whole == 0 ? 0.0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

std::string table_row(const std::string& name, const EvalTally& tally) {
  const double tokens =
      tally.tasks == 0 ? 0.0 : static_cast<double>(tally.generated_tokens) / static_cast<double>(tally.tasks);
  std::string row = fmt::format("{:<34}{:>7}{:>9}{:>8.1f} %{:>8.1f} %{:>9.1f}", name, tally.tasks, tally.answers,
                                percent(tally.right, tally.answers), percent(tally.given, tally.answers), tokens);
  if (tally.cut_off > 0) row += fmt::format("   {} cut off", tally.cut_off);
  if (tally.not_run > 0) row += fmt::format("   {} not run", tally.not_run);
  return row + "\n";
}

}  // namespace

EvalResultFile::EvalResultFile(std::string path, const json& header, const std::vector<EvalTaskLine>& lines)
    : path_(std::move(path)) {
  std::error_code none;
  if (std::filesystem::file_size(path_, none) > 0 && !none) {
    read(read_all(path_), header, lines);
  } else {
    kept_ = {dump(header)};
  }
  replace_file(path_, kept_);
  file_ = std::fopen(path_.c_str(), "ae");
  if (file_ == nullptr) fail(ErrorCode::kIo, "{}: cannot be written: {}", path_, std::strerror(errno));
}

EvalResultFile::~EvalResultFile() {
  if (file_ != nullptr) std::fclose(file_);
}

void EvalResultFile::read(const std::string& text, const json& header, const std::vector<EvalTaskLine>& lines) {
  std::unordered_map<std::string_view, const EvalTask*> tasks;
  for (const EvalTaskLine& line : lines) tasks.emplace(line.task.id, &line.task);
  int number = 0;
  for (size_t begin = 0; begin < text.size(); ++number) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos && number > 0) return;  // cut off
    const std::string line = text.substr(begin, end == std::string::npos ? end : end - begin);
    begin = end == std::string::npos ? text.size() : end + 1;
    const json object = json::parse(line, nullptr, false);
    const auto wrong = [&]() {
      fail(ErrorCode::kInvalidArgument, "{}: line {}: no result of witan eval; name another file", path_, number + 1);
    };
    if (!object.is_object()) wrong();
    if (number == 0) {
      if (!object.contains("format")) wrong();
      check_same_header(object, header, path_);
      kept_.push_back(dump(header));
      continue;
    }
    if (object.contains("error")) continue;
    if (object.contains("id")) {
      try {
        const auto id = object.at("id").get<std::string>();
        const auto task = tasks.find(id);
        if (task == tasks.end() || object.at("fingerprint") != fmt::format("{:016x}", task->second->fingerprint)) {
          fail(ErrorCode::kInvalidArgument,
               "{}: line {}: the result of a task {} that is not in the task files as it was; name another file", path_,
               number + 1, dump(object.at("id")));
        }
        results_[id] = from_json(object);
      } catch (const json::exception&) {
        wrong();
      }
    }
    kept_.push_back(line);
  }
}

void EvalResultFile::append(const json& line) {
  const std::string text = dump(line) + "\n";
  if (std::fwrite(text.data(), 1, text.size(), file_) != text.size() || std::fflush(file_) != 0) {
    fail(ErrorCode::kIo, "{}: cannot be written: {}", path_, std::strerror(errno));
  }
}

void EvalResultFile::add(const EvalTaskLine& line, EvalResult result) {
  append(to_json(line, result));
  results_[line.task.id] = std::move(result);
}

void EvalResultFile::add_run(const json& statistics) { append({{"run", statistics}}); }

void EvalResultFile::add_perplexity(const json& perplexity) { append({{"perplexity", perplexity}}); }

void EvalTally::add(const EvalResult& result) {
  if (!result.error.empty()) {
    ++not_run;
    return;
  }
  ++tasks;
  answers += std::ssize(result.marks);
  given += std::ssize(result.marks) - std::ranges::count(result.marks, Mark::kMissing);
  right += std::ranges::count(result.marks, Mark::kRight);
  generated_tokens += result.generated_tokens;
  if (result.finish_reason == "length") ++cut_off;
}

std::string eval_table(const std::vector<EvalTaskLine>& lines,
                       const std::unordered_map<std::string, EvalResult>& results) {
  constexpr size_t kPlacesPerRow = 5;
  std::map<std::tuple<std::string, std::string, int32_t>, EvalTally> groups;
  EvalTally all;
  std::vector<std::array<int64_t, 2>> places;  // by place in the reply: right, all
  for (const EvalTaskLine& line : lines) {
    const auto found = results.find(line.task.id);
    if (found == results.end()) continue;
    const EvalResult& result = found->second;
    all.add(result);
    groups[{line.task.task, line.task.variant, line.task.length}].add(result);
    if (result.marks.size() < 2) continue;
    for (size_t i = 0; i < result.marks.size(); ++i) {
      if (i / kPlacesPerRow >= places.size()) places.emplace_back();
      auto& [right, count] = places[i / kPlacesPerRow];
      right += result.marks[i] == Mark::kRight ? 1 : 0;
      ++count;
    }
  }
  std::string table =
      fmt::format("{:<34}{:>7}{:>9}{:>10}{:>10}{:>9}\n", "task", "tasks", "answers", "right", "given", "tokens");
  for (const auto& [group, tally] : groups) {
    const auto& [task, variant, length] = group;
    std::string name = task.empty() ? "(broken lines)" : task;
    if (!variant.empty()) name += " " + variant;
    if (length > 0) name += fmt::format(" {}", length);
    table += table_row(name, tally);
  }
  table += table_row("all", all);
  if (!places.empty()) table += "right by place in replies of several:";
  for (size_t i = 0; i < places.size(); ++i) {
    table += fmt::format(" {}-{}: {:.1f} %", i * kPlacesPerRow + 1, (i + 1) * kPlacesPerRow,
                         percent(places[i][0], places[i][1]));
  }
  return places.empty() ? table : table + "\n";
}

}  // namespace witan
