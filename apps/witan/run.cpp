#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>

#include "base/error.h"
#include "commands.h"
#include "engine/document_prompt.h"
#include "engine/engine.h"
#include "files.h"
#include "generation.h"
#include "help.h"
#include "model_flags.h"
#include "progress_bar.h"
#include "sampling_flags.h"

namespace witan {
namespace {

using nlohmann::json;

struct RunFlags {
  ModelFlags model;
  GenerationFlags generation;
  std::vector<std::string> texts;
  std::vector<std::string> files;
  std::vector<std::string> token_files;
  std::vector<std::string> jsonl_files;
  std::vector<std::string> document_files;
  bool no_prefix_cache = false;
  bool json_out = false;
  bool parse_special = false;
  bool quiet = false;
  std::string stats_path;
};

// A prompt and where it came from.
struct Prompt {
  std::string name;
  std::string text;
  std::vector<TokenId> tokens;  // instead of a text
  std::optional<KvPolicy> kv_policy = {};
};

// One answer as it grows.
struct Answer {
  const Prompt* prompt = nullptr;
  int32_t choice = 0;
  std::string text;
  std::vector<TokenId> tokens;
  json logprobs = json::array();
  std::optional<GenerationOutput> last;
};

constexpr int kInterruptedExitCode = 130;  // what shells report of a process that Ctrl-C ended

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

// The policy of a line, --kv's where it names none.
std::optional<KvPolicy> kv_policy_of(const json& line, const std::optional<KvPolicy>& otherwise) {
  if (!line.contains("kv")) return otherwise;
  const json& policy = line["kv"];
  if (policy.is_null()) return std::nullopt;
  if (!policy.is_string()) fail(ErrorCode::kInvalidArgument, "\"kv\" is no text that --kv takes, nor null");
  return parse_kv_policy(policy.get<std::string>());
}

std::vector<Prompt> read_jsonl(const std::string& path, const std::optional<KvPolicy>& kv_policy) {
  std::vector<Prompt> prompts;
  std::istringstream lines(read_text_file(path));
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const json object = json::parse(line, nullptr, false);
    if (!object.is_object() || !object.contains("prompt") || !object["prompt"].is_string()) {
      fail(ErrorCode::kInvalidArgument, "{}: line {}: expected a JSON object with a string \"prompt\"", path, number);
    }
    prompts.push_back({.name = fmt::format("{}:{}", path, number), .text = object["prompt"], .tokens = {}});
    try {
      prompts.back().kv_policy = kv_policy_of(object, kv_policy);
    } catch (const Error& error) {
      fail(error.code(), "{}: line {}: {}", path, number, error.what());
    }
  }
  if (prompts.empty()) fail(ErrorCode::kInvalidArgument, "{}: no prompts in it", path);
  return prompts;
}

std::vector<Prompt> read_prompts(const RunFlags& flags) {
  const std::optional<KvPolicy>& kv_policy = flags.generation.request.kv_policy;
  std::vector<Prompt> prompts;
  for (const std::string& text : flags.texts) {
    std::string name = flags.texts.size() == 1 ? "prompt" : fmt::format("prompt {}", prompts.size() + 1);
    prompts.push_back({.name = std::move(name), .text = text, .tokens = {}, .kv_policy = kv_policy});
  }
  for (const std::string& path : flags.files) {
    prompts.push_back({.name = path, .text = read_text_file(path), .tokens = {}, .kv_policy = kv_policy});
  }
  for (const std::string& path : flags.token_files) {
    prompts.push_back({.name = path, .text = {}, .tokens = read_token_file(path), .kv_policy = kv_policy});
  }
  for (const std::string& path : flags.jsonl_files) {
    std::ranges::move(read_jsonl(path, kv_policy), std::back_inserter(prompts));
  }
  for (const Prompt& prompt : prompts) {
    if (prompt.text.empty() && prompt.tokens.empty()) {
      fail(ErrorCode::kInvalidArgument, "{}: the prompt is empty", prompt.name);
    }
  }
  return prompts;
}

std::vector<std::string> read_documents(const RunFlags& flags) {
  std::vector<std::string> documents;
  for (const std::string& path : flags.document_files) {
    documents.push_back(read_text_file(path));
    if (documents.back().empty()) fail(ErrorCode::kInvalidArgument, "{}: the document is empty", path);
  }
  if (!documents.empty() && !flags.token_files.empty()) {
    fail(ErrorCode::kInvalidArgument, "--document needs prompts of text: --tokens has the tokens of whole prompts");
  }
  return documents;
}

// How far the answers are, in tokens. Where the answer streams, its text shows that, and the bar is of the prompt
// alone.
class AnswerProgress {
 public:
  AnswerProgress(bool streams, int32_t max_new_tokens)
      : bar_(streams ? "reading" : "answering"), new_tokens_(streams ? 0 : max_new_tokens) {}

  void add(const GenerationRequest& request) {
    total_ += std::ssize(request.prompt) + int64_t{request.num_choices} * new_tokens_;
  }
  // Of an answer, before it is printed.
  void update(const GenerationOutput& output) {
    bar_.wipe();
    ended_ = ended_ || new_tokens_ == 0;
    if (output.finish) not_needed_ += new_tokens_ - output.usage.generated_tokens;
  }
  void after_step(const EngineStats& stats) {
    if (ended_) return;
    const int64_t generated = new_tokens_ > 0 ? stats.generated_tokens : 0;
    bar_.update(stats.prompt_tokens + stats.scheduler.num_prefix_hit_tokens + generated + not_needed_, total_);
  }

 private:
  ProgressBar bar_;
  int32_t new_tokens_;
  int64_t total_ = 0;
  int64_t not_needed_ = 0;  // of finished answers
  bool ended_ = false;
};

// Where answers go: one answer streams, several appear whole, in the order of their prompts.
class Printer {
 public:
  Printer(const RunFlags& flags, size_t num_answers, bool has_tokenizer)
      : json_(flags.json_out),
        streams_(num_answers == 1 && !flags.json_out),
        choices_(flags.generation.request.num_choices > 1),
        text_(has_tokenizer) {}

  bool streams() const { return streams_; }

  void update(const GenerationOutput& output) {
    if (!streams_) return;
    if (text_) {
      write_stdout(output.text);
    } else if (output.token) {
      write_stdout(fmt::format("{} ", output.token->token));
    }
    if (output.finish) write_stdout("\n");
    flush_stdout();
  }

  void finish(const Answer& answer) {
    if (streams_) return;
    if (json_) {
      write_stdout(dump(to_json(answer)) + "\n");
    } else {
      write_stdout(fmt::format("==> {}{} <==\n{}\n", answer.prompt->name,
                               choices_ ? fmt::format(", choice {}", answer.choice) : "",
                               text_ ? answer.text : fmt::format("{}", fmt::join(answer.tokens, " "))));
    }
    flush_stdout();
  }

 private:
  static json to_json(const Answer& answer) {
    const GenerationUsage& usage = answer.last->usage;
    json result = {{"prompt", answer.prompt->name},
                   {"choice", answer.choice},
                   {"text", answer.text},
                   {"tokens", answer.tokens},
                   {"finish_reason", finish_reason_name(*answer.last->finish)},
                   {"usage",
                    {{"prompt_tokens", usage.prompt_tokens},
                     {"cached_prompt_tokens", usage.cached_prompt_tokens},
                     {"generated_tokens", usage.generated_tokens},
                     {"first_token_seconds", usage.first_token_seconds},
                     {"total_seconds", usage.total_seconds}}}};
    if (usage.kv != nullptr) {
      result["usage"]["kv"] = {{"times", usage.kv->num_times},         {"tokens", usage.kv->num_tokens},
                               {"kept_entries", usage.kv->kept},       {"bytes_before", usage.kv->bytes_before},
                               {"bytes_after", usage.kv->bytes_after}, {"seconds", usage.kv->seconds},
                               {"demoted_entries", usage.kv->demoted}, {"kept_bytes", usage.kv->bytes}};
      if (usage.kv->bytes_hidden > 0) result["usage"]["kv"]["bytes_hidden"] = usage.kv->bytes_hidden;
      if (usage.kv->bytes_offloaded > 0) result["usage"]["kv"]["bytes_offloaded"] = usage.kv->bytes_offloaded;
      if (usage.kv->attention_kept) {
        result["usage"]["kv"].update(
            {{"attention_kept", *usage.kv->attention_kept}, {"fell_back", usage.kv->fell_back}});
      }
    }
    if (usage.kv_auto != nullptr) {
      const KvAutoChoice& choice = *usage.kv_auto;
      result["usage"]["kv_auto"] = {{"policy", choice.policy.empty() ? json() : json(choice.policy)},
                                    {"reason", choice.reason}};
    }
    if (usage.kv_reads) {
      result["usage"]["kv_read"] = {{"bytes", usage.kv_reads->bytes}, {"bytes_of_all", usage.kv_reads->bytes_of_all}};
    }
    if (usage.kv_reuse) {
      result["usage"]["kv_reuse"] = {{"tokens", usage.kv_reuse->num_reused_tokens},
                                     {"found", usage.kv_reuse->num_found_tokens},
                                     {"recomputed", usage.kv_reuse->num_recomputed_tokens}};
    }
    if (!answer.logprobs.empty()) result["logprobs"] = answer.logprobs;
    if (!answer.last->error.empty()) result["error"] = answer.last->error;
    return result;
  }

  bool json_;
  bool streams_;
  bool choices_;
  bool text_;
};

json logprob_json(const SampleResult& result, const Tokenizer* tokenizer) {
  const auto entry = [&](TokenId token, float logprob) {
    json one = {{"token", token}, {"logprob", logprob}};
    if (tokenizer != nullptr) one["piece"] = tokenizer->token_piece(token);
    return one;
  };
  json top = json::array();
  for (const TokenLogprob& alternative : result.alternatives) {
    top.push_back(entry(alternative.token, alternative.logprob));
  }
  json result_json = entry(result.token, result.logprob);
  result_json["top"] = top;
  return result_json;
}

void record(Answer& answer, const GenerationOutput& output, bool logprobs, const Tokenizer* tokenizer) {
  answer.text += output.text;
  if (output.token) {
    answer.tokens.push_back(output.token->token);
    if (logprobs) answer.logprobs.push_back(logprob_json(*output.token, tokenizer));
  }
  if (output.finish) answer.last = output;
}

// What --kv auto chose, each choice once.
void report_choices(const std::vector<Answer>& answers) {
  std::set<std::string> lines;
  for (const Answer& answer : answers) {
    const KvAutoChoice* choice = answer.last->usage.kv_auto.get();
    if (choice != nullptr && lines.insert(kv_auto_line(*choice)).second) {
      std::fputs((kv_auto_line(*choice) + "\n").c_str(), stderr);
    }
  }
}

void report(const Engine& engine, const std::vector<Answer>& answers, bool quiet, OutputFile* stats_file) {
  const EngineStats stats = engine.stats();
  if (!quiet) {
    report_choices(answers);
    std::fputs((stats_line(stats, engine.model_info()) + "\n").c_str(), stderr);
  }
  if (stats_file == nullptr) return;
  const std::string text = stats_json(engine).dump(2) + "\n";
  stats_file->write(text.data(), text.size());
  stats_file->commit();
}

void run_prompts(const RunFlags& flags) {
  if (flags.generation.request.sampling.num_logprobs >= 0 && !flags.json_out) {
    fail(ErrorCode::kInvalidArgument, "--logprobs needs --json");
  }
  flags.generation.check();
  const std::vector<Prompt> prompts = read_prompts(flags);
  const std::vector<std::string> documents = read_documents(flags);
  std::unique_ptr<OutputFile> stats_file;
  if (!flags.stats_path.empty()) stats_file = std::make_unique<OutputFile>(flags.stats_path);
  ModelOptions options = flags.model.finished_for_throughput();
  options.prefix_cache = !flags.no_prefix_cache;
  const std::unique_ptr<Engine> engine = load_engine(options);
  const GenerationFlags generation = flags.generation.with_defaults(engine->checkpoint().generation_defaults());

  const auto num_choices = static_cast<size_t>(flags.generation.request.num_choices);
  std::vector<Answer> answers(prompts.size() * num_choices);
  Printer printer(flags, answers.size(), engine->tokenizer() != nullptr);
  AnswerProgress progress(printer.streams(), generation.request.max_new_tokens);
  const ParseSpecial parse_special = flags.parse_special ? ParseSpecial::kYes : ParseSpecial::kNo;
  std::vector<RequestId> requests;
  size_t next_to_print = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    DocumentPrompt prompt{.tokens = prompts[i].tokens, .documents = {}};
    if (prompt.tokens.empty()) prompt = encode_with_documents(*engine, documents, prompts[i].text, parse_special);
    const auto on_output = [&, i](const GenerationOutput& output) {
      Answer& answer = answers[i * num_choices + static_cast<size_t>(output.choice)];
      answer.prompt = &prompts[i];
      answer.choice = output.choice;
      record(answer, output, flags.generation.request.sampling.num_logprobs >= 0, engine->tokenizer());
      progress.update(output);
      printer.update(output);
      while (next_to_print < answers.size() && answers[next_to_print].last) printer.finish(answers[next_to_print++]);
    };
    try {
      GenerationRequest request = generation.finished(std::move(prompt.tokens));
      request.kv_policy = prompts[i].kv_policy;
      request.kv_documents = std::move(prompt.documents);
      for (const std::string& text : generation.kv_pin_texts) {
        pin_text(engine->tokenizer(), text, request);
      }
      requests.push_back(engine->submit(request, on_output));
      progress.add(request);
    } catch (const Error& error) {
      fail(error.code(), "{}: {}", prompts[i].name, error.what());
    }
  }

  const bool cancelled = run_to_end(*engine, requests, [&] { progress.after_step(engine->stats()); });
  report(*engine, answers, flags.quiet, stats_file.get());
  for (const Answer& answer : answers) {
    if (answer.last->finish == FinishReason::kError) {
      fail(ErrorCode::kInvalidArgument, "{}: {}", answer.prompt->name, answer.last->error);
    }
  }
  if (cancelled) throw CLI::RuntimeError(kInterruptedExitCode);
}

}  // namespace

void add_run_command(CLI::App& app) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* command = app.add_subcommand("run", "Answer one or several prompts");
  command->footer(
      "A single answer appears as it grows. Several run as one batch and appear whole, in the order of --prompt, "
      "--file, --tokens and --jsonl.\n\nThe last line, on standard error: prompt tokens computed, and their speed over "
      "the steps that computed any; generated tokens, and the speed of the steps that only generated; the most bytes "
      "that KV blocks held; prompt tokens taken from the prefix cache, and preemptions, where there were any; distinct "
      "(layer, expert) pairs used.\n\nThe first Ctrl-C ends all answers where they are; the exit code is 130 "
      "then.\n\nFlags that are not given "
      "default to what the model's generation_config.json says, where it has one: -n, --repetition-penalty and, where "
      "it says do_sample, --temperature, --top-k, --top-p and --min-p.");
  add_model_flag(*command, flags->model.options.path);
  const auto add_prompts = [&](const char* name, std::vector<std::string>& values, const char* type, const char* help) {
    add_texts(*command, name, values, help)->type_name(type)->group("Prompts (at least one of these)");
  };
  add_prompts("-p,--prompt", flags->texts, "TEXT", "Text; may be repeated");
  add_prompts("-f,--file", flags->files, "FILE", "File of text, taken as it is; -: standard input; may be repeated");
  add_prompts("--tokens", flags->token_files, "FILE", "File of token ids separated by white space; may be repeated");
  add_prompts("--jsonl", flags->jsonl_files, "FILE",
              "File of {\"prompt\"} lines, a prompt each, with a policy of its own by \"kv\" (null: none); other keys "
              "are ignored; may be repeated");
  add_texts(*command, "--document", flags->document_files,
            "File of text that comes before each prompt, tokenised by itself; -: standard input; may be repeated. A "
            "KV policy may reuse its entries where other prompts have it elsewhere")
      ->type_name("FILE")
      ->default_str("none");
  command->add_flag("--parse-special", flags->parse_special, "Text such as <|im_end|> becomes the control token");
  command->add_flag("--json", flags->json_out, "Print each answer as a line of JSON");
  command->add_flag("-q,--quiet", flags->quiet, "No statistics, and no word of what --kv auto chose");
  command->add_option("--stats-json", flags->stats_path, "File for the statistics as JSON")
      ->type_name("FILE")
      ->default_str("none");
  add_generation_flags(*command, flags->generation);
  add_exact_flag(*command, flags->model);
  add_memory_flags(*command, flags->model, "the model's, as far as memory allows");
  add_kv_offload_flag(*command, flags->model);
  add_step_flags(*command, flags->model);
  command->add_flag("--no-prefix-cache", flags->no_prefix_cache, "Do not share KV blocks between equal beginnings");
  command->callback([flags] {
    if (flags->texts.empty() && flags->files.empty() && flags->token_files.empty() && flags->jsonl_files.empty()) {
      throw CLI::RequiredError("One of --prompt, --file, --tokens and --jsonl");
    }
    run_prompts(*flags);
  });
}

}  // namespace witan
