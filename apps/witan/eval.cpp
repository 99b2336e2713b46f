#include <cstdio>
#include <deque>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "answer_reader.h"
#include "base/error.h"
#include "chat_flags.h"
#include "commands.h"
#include "engine/document_prompt.h"
#include "engine/engine.h"
#include "eval/eval_results.h"
#include "files.h"
#include "generation.h"
#include "help.h"
#include "model_flags.h"
#include "progress_bar.h"
#include "sampling_flags.h"
#include "version.h"

namespace witan {
namespace {

using nlohmann::json;

constexpr int kInterruptedExitCode = 130;

struct EvalFlags {
  ModelFlags model;
  GenerationFlags generation;
  TemplateFlags chat_template;
  std::string extra = "{}";
  std::vector<std::string> task_files;
  std::string replies_path;
  std::string out_path;
  std::string on_error = "stop";
  bool has_num_tokens = false;

  bool skips_errors() const { return on_error == "skip"; }
};

std::string name_of(const EvalTaskLine& line) {
  return fmt::format("{}: line {} ({})", line.path, line.line, line.task.id);
}

// A task that cannot run: an error, or a result that says so. `error` names the line.
void add_error(const EvalFlags& flags, const EvalTaskLine& line, const std::string& error, EvalResultFile* results) {
  if (!flags.skips_errors()) {
    fail(ErrorCode::kInvalidArgument, "{}\n--on-error skip goes on without such tasks", error);
  }
  if (results != nullptr) results->add(line, {.error = error});
}

// A task on its way: its prompt, and the reply as it grows.
struct Running {
  const EvalTaskLine* line;
  GenerationRequest request;
  AnswerReader reader;
  std::string reply;
};

// Runs tasks on an engine, several at a time.
class TaskRunner {
 public:
  TaskRunner(const EvalFlags& flags, const jinja::Value& extra, Engine& engine, EvalResultFile& results)
      : flags_(flags), extra_(extra), engine_(engine), results_(results) {}

  // The tasks without a result become requests. All that can be said about one before it runs is.
  void prepare(const std::vector<EvalTaskLine>& lines) {
    for (const EvalTaskLine& line : lines) {
      if (!line.error.empty()) {
        add_error(flags_, line, line.error, &results_);
      } else if (!results_.results().contains(line.task.id)) {
        try {
          waiting_.push_back(prepared(line));
        } catch (const Error& error) {
          add_error(flags_, line, fmt::format("{}: {}", name_of(line), error.what()), &results_);
        }
      }
    }
    total_ = std::ssize(waiting_);
  }

  // True when Ctrl-C ended it early.
  bool run() {
    ProgressBar bar("evaluating");
    submit_some();
    return run_to_end(engine_, submitted_, [&] {
      bar.update(num_ended_, total_);
      if (!is_interrupted_) submit_some();
    });
  }

 private:
  Running prepared(const EvalTaskLine& line) {
    const EvalTask& task = line.task;
    if (engine_.tokenizer() == nullptr) {
      fail(ErrorCode::kUnsupported, "{}: the model has no tokenizer", flags_.model.options.path);
    }
    DocumentPrompt encoded;
    ReasoningFormat format = ReasoningFormat::kNone;
    std::string prompt = task.prompt;
    if (task.is_chat()) {
      if (template_ == nullptr) template_ = load_chat_template(flags_.chat_template, &engine_.checkpoint(), false);
      ChatInput input = task.chat;
      input.extra = extra_;
      prompt = template_->render(input);
      format = AnswerSplitter::format_of(template_->source());
      encoded.tokens = encode_prompt(*engine_.tokenizer(), prompt);
    } else {
      encoded = encode_with_documents(engine_, task.documents, prompt);
    }
    const int32_t context = engine_.options().context_length;
    if (std::ssize(encoded.tokens) >= context) {
      fail(ErrorCode::kInvalidArgument, "the prompt's {} tokens leave no room for a reply in the context of {}",
           encoded.tokens.size(), context);
    }
    GenerationRequest request = flags_.generation.finished(std::move(encoded.tokens));
    request.kv_documents = std::move(encoded.documents);
    if (!flags_.has_num_tokens) request.max_new_tokens = task.max_tokens;
    request.stop_strings = task.stop;
    AnswerReader reader(*engine_.tokenizer(), format, prompt, !task.is_chat() || !task.stop.empty());
    return {.line = &line, .request = std::move(request), .reader = std::move(reader), .reply = {}};
  }

  // The engine gets enough to choose from, and no more: of one at a time, no task waits while another runs.
  void submit_some() {
    const int64_t together = engine_.options().max_sequences;
    const int64_t enough = together == 1 ? 1 : 2 * together;
    while (!waiting_.empty() && std::ssize(submitted_) - num_ended_ < enough) {
      auto running = std::make_shared<Running>(std::move(waiting_.front()));
      waiting_.pop_front();
      const auto on_output = [this, running](const GenerationOutput& output) { update(*running, output); };
      submitted_.push_back(engine_.submit(std::exchange(running->request, {}), on_output));
    }
  }

  void update(Running& running, const GenerationOutput& output) {
    for (const AnswerPiece& piece : running.reader.push(output)) {
      if (piece.part == AnswerPart::kAnswer) running.reply += piece.text;
    }
    if (!output.finish) return;
    ++num_ended_;
    if (output.finish == FinishReason::kCancelled) {
      is_interrupted_ = true;
    } else if (output.finish == FinishReason::kError) {
      add_error(flags_, *running.line, fmt::format("{}: {}", name_of(*running.line), output.error), &results_);
    } else {
      const EvalTask& task = running.line->task;
      std::optional<EvalKv> kv;
      if (const KvCompression* report = output.usage.kv.get(); report != nullptr && report->num_tokens > 0) {
        kv = {.num_tokens = report->num_tokens,
              .kept = report->kept,
              .bytes = report->bytes,
              .bytes_before = report->bytes_before,
              .bytes_after = report->bytes_after};
      }
      std::optional<EvalReuse> reuse;
      if (const auto& count = output.usage.kv_reuse) {
        reuse = {.num_tokens = count->num_reused_tokens,
                 .num_found_tokens = count->num_found_tokens,
                 .num_recomputed_tokens = count->num_recomputed_tokens};
      }
      std::optional<std::string> chosen_policy;
      if (output.usage.kv_auto != nullptr) chosen_policy = output.usage.kv_auto->policy;
      results_.add(*running.line, {.reply = running.reply,
                                   .marks = score(*task.scoring, running.reply, task.answers),
                                   .finish_reason = std::string(finish_reason_name(*output.finish)),
                                   .prompt_tokens = output.usage.prompt_tokens,
                                   .generated_tokens = output.usage.generated_tokens,
                                   .first_token_seconds = output.usage.first_token_seconds,
                                   .seconds = output.usage.total_seconds,
                                   .kv = std::move(kv),
                                   .reads = output.usage.kv_reads,
                                   .reuse = reuse,
                                   .chosen_policy = chosen_policy});
    }
  }

  const EvalFlags& flags_;
  const jinja::Value& extra_;
  Engine& engine_;
  EvalResultFile& results_;
  std::unique_ptr<ChatTemplate> template_;
  std::deque<Running> waiting_;
  std::vector<RequestId> submitted_;
  int64_t num_ended_ = 0;
  int64_t total_ = 0;
  bool is_interrupted_ = false;
};

// Replies that were made elsewhere, by task id.
std::map<std::string, std::string> read_replies(const std::string& path) {
  std::map<std::string, std::string> replies;
  std::istringstream lines(read_text_file(path));
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const json object = json::parse(line, nullptr, false);
    const auto has = [&](const char* key) { return object.contains(key) && object[key].is_string(); };
    if (!object.is_object() || !has("id") || !has("reply")) {
      fail(ErrorCode::kInvalidArgument, "{}: line {}: expected a JSON object with strings \"id\" and \"reply\"", path,
           number);
    }
    if (!replies.emplace(object["id"], object["reply"]).second) {
      fail(ErrorCode::kInvalidArgument, "{}: line {}: a second reply to {}", path, number, object["id"].dump());
    }
  }
  return replies;
}

std::vector<EvalTaskLine> read_tasks(const EvalFlags& flags) {
  std::vector<EvalTaskLine> lines;
  for (const std::string& path : flags.task_files) {
    const size_t before = lines.size();
    add_eval_tasks(read_text_file(path), path, lines);
    if (lines.size() == before) fail(ErrorCode::kInvalidArgument, "{}: no tasks in it", path);
  }
  for (const EvalTaskLine& line : lines) {
    if (!line.error.empty()) add_error(flags, line, line.error, nullptr);
  }
  return lines;
}

// Everything that decides a reply, but for what the task says.
json settings_of(const EvalFlags& flags) {
  const SamplingParams& sampling = flags.generation.request.sampling;
  json settings = {{"kv_type", kv_codec_name(flags.model.finished().kv_codec)},
                   {"exact", flags.model.exact},
                   {"temperature", sampling.temperature}};
  // Without one it is what memory allows at the moment, of which a resumed run may have more or less.
  if (flags.model.options.context_length > 0) settings["context"] = flags.model.options.context_length;
  if (flags.has_num_tokens) settings["num_tokens"] = flags.generation.request.max_new_tokens;
  if (sampling.temperature != 0.0f) {
    settings.update(
        {{"seed", sampling.seed}, {"top_k", sampling.top_k}, {"top_p", sampling.top_p}, {"min_p", sampling.min_p}});
  }
  if (sampling.repetition_penalty != 1.0f) settings["repetition_penalty"] = sampling.repetition_penalty;
  if (sampling.presence_penalty != 0.0f) settings["presence_penalty"] = sampling.presence_penalty;
  if (sampling.frequency_penalty != 0.0f) settings["frequency_penalty"] = sampling.frequency_penalty;
  if (flags.generation.request.kv_policy) settings["kv"] = flags.generation.request.kv_policy->text;
  if (!flags.generation.logit_bias.empty()) settings["logit_bias"] = flags.generation.logit_bias;
  if (!flags.chat_template.path.empty()) settings["template"] = flags.chat_template.path;
  if (!flags.chat_template.name.empty()) settings["template_name"] = flags.chat_template.name;
  if (flags.extra != "{}") settings["extra"] = flags.extra;
  return settings;
}

json header_of(const EvalFlags& flags, const std::string& model, const std::string& architecture, json settings) {
  return {{"format", "witan-eval-1"},     {"version", WITAN_VERSION},        {"model", model},
          {"architecture", architecture}, {"settings", std::move(settings)}, {"tasks", flags.task_files}};
}

void score_replies(const EvalFlags& flags) {
  const std::map<std::string, std::string> replies = read_replies(flags.replies_path);
  const std::vector<EvalTaskLine> lines = read_tasks(flags);
  EvalResultFile results(flags.out_path, header_of(flags, flags.replies_path, "", json::object()), lines);
  for (const EvalTaskLine& line : lines) {
    if (results.results().contains(line.task.id)) continue;
    const auto reply = replies.find(line.task.id);
    if (!line.error.empty() || reply == replies.end()) {
      add_error(flags, line, line.error.empty() ? name_of(line) + ": there is no reply to it" : line.error, &results);
      continue;
    }
    const EvalTask& task = line.task;
    results.add(line, {.reply = reply->second, .marks = score(*task.scoring, reply->second, task.answers)});
  }
  print_stdout("{}", eval_table(lines, results.results()));
}

void run_eval(const EvalFlags& flags) {
  flags.generation.check();
  const jinja::Value extra = jinja::parse_json(flags.extra, "--extra");
  if (extra.as_dict() == nullptr) fail(ErrorCode::kInvalidArgument, "--extra: expected a JSON object");
  check_depends_on_request(flags.generation.request.kv_policy);
  const std::vector<EvalTaskLine> lines = read_tasks(flags);
  const std::unique_ptr<Engine> engine = load_engine(flags.model.finished_for_throughput());
  const json header = header_of(flags, flags.model.options.path, engine->model_info().architecture, settings_of(flags));
  EvalResultFile results(flags.out_path, header, lines);
  if (!results.results().empty()) {
    std::fputs(fmt::format("{}: {} results are there and stay\n", flags.out_path, results.results().size()).c_str(),
               stderr);
  }
  TaskRunner runner(flags, extra, *engine, results);
  runner.prepare(lines);
  const bool interrupted = runner.run();
  results.add_run(stats_json(*engine));
  print_stdout("{}", eval_table(lines, results.results()));
  std::fputs((stats_line(engine->stats(), engine->model_info()) + "\n").c_str(), stderr);
  if (interrupted) throw CLI::RuntimeError(kInterruptedExitCode);
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command = app.add_subcommand("eval", "Run sets of tasks and score the replies");
  command->footer(
      "eval/make_tasks writes task files, eval/README.md describes them, eval/report makes a page of results.\n\nThe "
      "results are JSON Lines: a line is in the file as soon as its task ends, and the same command again goes on "
      "where one was interrupted. The table shows right answers as a share of those expected (a missing one is wrong), "
      "the "
      "share that was given at all, and the mean length of replies.\n\nReplies are scored without reasoning that the "
      "model marks. The most likely token is always taken, unless --temperature says otherwise; a model's "
      "generation_config.json is not asked.\n\nThe exit code is 3 where the model refuses the KV policy.");
  CLI::Option* model = add_model_flag(*command, flags->model.options.path)->required(false);
  add_texts(*command, "--tasks", flags->task_files, "File of tasks, a line of JSON each; may be repeated")
      ->type_name("FILE")
      ->required();
  command->add_option("--out", flags->out_path, "File for the results; one that is there is gone on with")
      ->type_name("FILE")
      ->required();
  CLI::Option* replies =
      command
          ->add_option("--replies", flags->replies_path,
                       "Score the {\"id\", \"reply\"} lines of this file, from wherever they come, without a model")
          ->type_name("FILE")
          ->default_str("none")
          ->excludes(model);
  command
      ->add_option("--on-error", flags->on_error,
                   "What to do about a broken line, or a prompt longer than the context: stop, or skip it and "
                   "record why")
      ->type_name("ACTION")
      ->check(CLI::IsMember({"stop", "skip"}).description(""))
      ->capture_default_str();
  add_template_flags(*command, flags->chat_template);
  command->add_option("--extra", flags->extra, "Variables of the template, such as {\"enable_thinking\": false}")
      ->type_name("JSON")
      ->capture_default_str();
  add_generation_flags(*command, flags->generation, AnswerKind::kTasks);
  CLI::Option* num_tokens = command->get_option("--num-tokens");
  num_tokens->default_str("the task's max_tokens");
  add_exact_flag(*command, flags->model);
  add_memory_flags(*command, flags->model, "the model's, as far as memory allows");
  add_kv_offload_flag(*command, flags->model);
  add_step_flags(*command, flags->model);
  command->callback([flags, model, replies, num_tokens] {
    flags->has_num_tokens = num_tokens->count() > 0;
    if (replies->count() > 0) {
      score_replies(*flags);
    } else if (model->count() > 0) {
      run_eval(*flags);
    } else {
      throw CLI::RequiredError("One of --model and --replies");
    }
  });
}

}  // namespace witan
