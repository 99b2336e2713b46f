#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "base/error.h"
#include "commands.h"
#include "engine/engine.h"
#include "model_flags.h"
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
  std::string jsonl_path;
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

volatile std::sig_atomic_t interrupted = 0;

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

std::vector<Prompt> read_jsonl(const std::string& path) {
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
  }
  return prompts;
}

std::vector<Prompt> read_prompts(const RunFlags& flags) {
  std::vector<Prompt> prompts;
  for (const std::string& text : flags.texts) prompts.push_back({.name = "prompt", .text = text, .tokens = {}});
  for (const std::string& path : flags.files) {
    prompts.push_back({.name = path, .text = read_text_file(path), .tokens = {}});
  }
  for (const std::string& path : flags.token_files) {
    prompts.push_back({.name = path, .text = {}, .tokens = read_token_file(path)});
  }
  if (!flags.jsonl_path.empty()) std::ranges::move(read_jsonl(flags.jsonl_path), std::back_inserter(prompts));
  for (const Prompt& prompt : prompts) {
    if (prompt.text.empty() && prompt.tokens.empty()) {
      fail(ErrorCode::kInvalidArgument, "{}: the prompt is empty", prompt.name);
    }
  }
  if (prompts.empty()) fail(ErrorCode::kInvalidArgument, "{}: no prompts in it", flags.jsonl_path);
  return prompts;
}

// Where answers go: one answer streams, several appear whole, in the order of their prompts.
class Printer {
 public:
  Printer(const RunFlags& flags, size_t num_answers, bool has_tokenizer)
      : json_(flags.json_out), streams_(num_answers == 1 && !flags.json_out), text_(has_tokenizer) {}

  void update(const GenerationOutput& output) {
    if (!streams_) return;
    if (text_) {
      std::fwrite(output.text.data(), 1, output.text.size(), stdout);
    } else if (output.token) {
      fmt::print("{} ", output.token->token);
    }
    std::fflush(stdout);
    if (output.finish) std::fputc('\n', stdout);
  }

  void finish(const Answer& answer) {
    if (streams_) return;
    if (json_) {
      fmt::print("{}\n", dump(to_json(answer)));
    } else {
      fmt::print("==> {}{} <==\n{}\n", answer.prompt->name,
                 answer.choice > 0 ? fmt::format(" (choice {})", answer.choice) : "",
                 text_ ? answer.text : fmt::format("{}", fmt::join(answer.tokens, " ")));
    }
    std::fflush(stdout);
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
    if (!answer.logprobs.empty()) result["logprobs"] = answer.logprobs;
    if (!answer.last->error.empty()) result["error"] = answer.last->error;
    return result;
  }

  bool json_;
  bool streams_;
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

double rate(int64_t tokens, double seconds) { return seconds > 0.0 ? static_cast<double>(tokens) / seconds : 0.0; }

json stats_json(const EngineStats& stats, const ModelInfo& info) {
  return {{"prompt_tokens", stats.prompt_tokens},
          {"generated_tokens", stats.generated_tokens},
          {"prefill_seconds", stats.prefill_seconds},
          {"prefill_tokens_per_second", rate(stats.prompt_tokens, stats.prefill_seconds)},
          {"decode_tokens", stats.decode_tokens},
          {"decode_seconds", stats.decode_seconds},
          {"decode_tokens_per_second", rate(stats.decode_tokens, stats.decode_seconds)},
          {"steps", stats.num_steps},
          {"schedule_seconds", stats.schedule_seconds},
          {"prefix_hit_tokens", stats.kv.prefix_hit_tokens},
          {"preemptions", stats.scheduler.num_preemptions},
          {"recomputed_tokens", stats.scheduler.num_recomputed_tokens},
          {"kv_peak_bytes", stats.kv.peak_block_bytes_held},
          {"weight_bytes", stats.weight_bytes_held},
          {"peak_memory_bytes", stats.peak_pool_bytes},
          {"distinct_experts", stats.distinct_experts},
          {"all_experts", static_cast<int64_t>(info.moe_layers.size()) * info.num_experts}};
}

std::string stats_line(const EngineStats& stats, const ModelInfo& info) {
  std::string line = fmt::format(
      "prompt {} tokens, {:.2f} s, {:.1f} tokens/s | generated {} tokens, {:.2f} s, {:.1f} tokens/s | KV {:.1f} MiB",
      stats.prompt_tokens, stats.prefill_seconds, rate(stats.prompt_tokens, stats.prefill_seconds),
      stats.generated_tokens, stats.decode_seconds, rate(stats.decode_tokens, stats.decode_seconds),
      static_cast<double>(stats.kv.peak_block_bytes_held) / (1 << 20));
  if (stats.kv.prefix_hit_tokens > 0)
    line += fmt::format(" | {} prompt tokens from the prefix cache", stats.kv.prefix_hit_tokens);
  if (stats.scheduler.num_preemptions > 0) line += fmt::format(" | {} preemptions", stats.scheduler.num_preemptions);
  if (!info.moe_layers.empty()) {
    line += fmt::format(" | {} of {} experts used", stats.distinct_experts,
                        static_cast<int64_t>(info.moe_layers.size()) * info.num_experts);
  }
  return line;
}

void run_prompts(const RunFlags& flags) {
  const std::vector<Prompt> prompts = read_prompts(flags);
  std::unique_ptr<OutputFile> stats_file;
  if (!flags.stats_path.empty()) stats_file = std::make_unique<OutputFile>(flags.stats_path);
  std::unique_ptr<Engine> engine;
  {
    ProgressBar progress("loading");
    engine = std::make_unique<Engine>(flags.model.finished(),
                                      [&](int64_t done, int64_t total) { progress.update(done, total); });
  }
  const auto num_choices = static_cast<size_t>(std::max(1, flags.generation.request.num_choices));
  std::vector<Answer> answers(prompts.size() * num_choices);
  Printer printer(flags, answers.size(), engine->tokenizer() != nullptr);
  std::vector<RequestId> requests;
  size_t next_to_print = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    std::vector<TokenId> tokens = prompts[i].tokens;
    if (tokens.empty()) {
      tokens = engine->encode(prompts[i].text, flags.parse_special ? ParseSpecial::kYes : ParseSpecial::kNo);
    }
    const auto on_output = [&, i](const GenerationOutput& output) {
      Answer& answer = answers[i * num_choices + static_cast<size_t>(output.choice)];
      answer.prompt = &prompts[i];
      answer.choice = output.choice;
      record(answer, output, flags.generation.request.sampling.num_logprobs >= 0, engine->tokenizer());
      printer.update(output);
      while (next_to_print < answers.size() && answers[next_to_print].last) printer.finish(answers[next_to_print++]);
    };
    try {
      requests.push_back(engine->submit(flags.generation.finished(std::move(tokens)), on_output));
    } catch (const Error& error) {
      fail(error.code(), "{}: {}", prompts[i].name, error.what());
    }
  }

  std::signal(SIGINT, [](int) { interrupted = 1; });
  while (engine->step()) {
    if (interrupted == 0) continue;
    for (const RequestId request : requests) engine->cancel(request);
    std::signal(SIGINT, SIG_DFL);
    interrupted = 0;
  }
  const EngineStats stats = engine->stats();
  if (!flags.quiet) fmt::print(stderr, "{}\n", stats_line(stats, engine->model_info()));
  if (stats_file != nullptr) {
    const std::string text = stats_json(stats, engine->model_info()).dump(2) + "\n";
    stats_file->write(text.data(), text.size());
    stats_file->commit();
  }
  for (const Answer& answer : answers) {
    if (answer.last->finish == FinishReason::kError) {
      fail(ErrorCode::kInvalidArgument, "{}: {}", answer.prompt->name, answer.last->error);
    }
  }
}

}  // namespace

void add_run_command(CLI::App& app) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* command = app.add_subcommand("run", "Answer one or several prompts");
  command->footer(
      "Several prompts run as one batch; their answers appear in the prompts' order. The last line, on standard "
      "error:\n"
      "prompt tokens computed, and their speed over the steps that computed any; generated tokens, and the speed of "
      "the\n"
      "steps that only generated; the most bytes that KV blocks held; distinct (layer, expert) pairs used.");
  add_model_flag(*command, flags->model.options.path);
  CLI::Option_group* prompt = command->add_option_group("Prompt", "At least one; each may be repeated");
  prompt->add_option("-p,--prompt", flags->texts, "Text")->allow_extra_args(false);
  prompt->add_option("-f,--file", flags->files, "File of text; -: standard input")->allow_extra_args(false);
  prompt->add_option("--tokens", flags->token_files, "File of token ids separated by white space")
      ->allow_extra_args(false);
  prompt->add_option("--jsonl", flags->jsonl_path, "File of {\"prompt\"} lines, a prompt each");
  prompt->require_option(1, 0);
  command->add_flag("--parse-special", flags->parse_special, "Text such as <|im_end|> becomes the control token");
  command->add_flag("--json", flags->json_out, "Print each answer as a line of JSON");
  command->add_flag("-q,--quiet", flags->quiet, "No line of statistics");
  command->add_option("--stats-json", flags->stats_path, "File for the statistics as JSON");
  add_generation_flags(*command, flags->generation);
  add_compute_flags(*command, flags->model);
  command->callback([flags] { run_prompts(*flags); });
}

}  // namespace witan
