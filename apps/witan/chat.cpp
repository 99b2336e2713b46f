#include <unistd.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "base/atomic_file.h"
#include "base/error.h"
#include "chat_flags.h"
#include "chat_session.h"
#include "commands.h"
#include "files.h"
#include "generation.h"
#include "help.h"
#include "line_reader.h"
#include "model_flags.h"

namespace witan {
namespace {

struct ChatFlags {
  ModelFlags model;
  GenerationFlags generation;
  TemplateFlags chat_template;
  std::string system;
  std::string extra = "{}";
  std::string load_path;
};

constexpr std::string_view kHelp =
    "/help         this list\n"
    "/clear        forget the conversation, but for the system message\n"
    "/system TEXT  the system message from now on; without TEXT: none\n"
    "/save FILE    write the conversation as JSON; witan render reads it too\n"
    "/load FILE    go on with a conversation from such a file\n"
    "/stats        what was computed so far, and what --kv auto chose last\n"
    "/exit         leave; so does Ctrl-D\n"
    "A line that ends in \\ goes on in the next one; lines between two lines of\n"
    "\"\"\" are one message. A message that begins with a slash gets a second one.\n"
    "Ctrl-C ends an answer where it is.\n";

void notice(const std::string& text) { std::fputs((text + "\n").c_str(), stderr); }

// Writes an answer as it comes: reasoning dim on a terminal, between marks elsewhere.
class AnswerPrinter {
 public:
  AnswerPrinter() : dims_(isatty(STDOUT_FILENO) != 0) {}

  void add(const AnswerPiece& piece) {
    if (piece.part != part_) change_to(piece.part);
    write_stdout(piece.text);
    flush_stdout();
  }
  void end() {
    if (part_ == AnswerPart::kReasoning) change_to(AnswerPart::kAnswer);
    write_stdout("\n");
    flush_stdout();
  }

 private:
  void change_to(AnswerPart part) {
    if (part == AnswerPart::kReasoning) {
      write_stdout(dims_ ? "\033[2m" : "[reasoning]\n");
    } else {
      write_stdout(dims_ ? "\033[0m\n\n" : "\n[/reasoning]\n");
    }
    part_ = part;
  }

  bool dims_;
  AnswerPart part_ = AnswerPart::kAnswer;
};

// A message of one or several lines; nothing at the end of input.
std::optional<std::string> read_message(LineReader& reader) {
  std::optional<std::string> line = reader.read("> ");
  if (!line || reader.interrupted()) return line;
  constexpr std::string_view kQuotes = "\"\"\"";
  std::string text;
  if (*line == kQuotes) {
    while ((line = reader.read(". ")) && *line != kQuotes) {
      if (reader.interrupted()) return "";
      text += (text.empty() ? "" : "\n") + *line;
    }
    return text;
  }
  text = *line;
  while (text.ends_with('\\')) {
    text.back() = '\n';
    line = reader.read(". ");
    if (!line) break;
    if (reader.interrupted()) return "";
    text += *line;
  }
  return text;
}

class Chat {
 public:
  Chat(Engine& engine, ChatSession& session) : engine_(engine), session_(session) {}

  void run() {
    if (reader_.is_terminal()) notice("/help lists the commands");
    while (!ended_) {
      const std::optional<std::string> message = read_message(reader_);
      if (!message) break;
      if (message->find_first_not_of(" \t\n") == std::string::npos) continue;
      reader_.remember(*message);
      try {
        if (message->starts_with("//")) {
          ask(message->substr(1));
        } else if (message->starts_with('/')) {
          obey(*message);
        } else {
          ask(*message);
        }
      } catch (const Error& error) {
        if (error.code() == ErrorCode::kIo && !obeying_) throw;  // the answer has nowhere to go
        notice(fmt::format("witan: {}", error.what()));
      }
    }
    if (reader_.is_terminal() && !ended_) notice("");
  }

 private:
  void ask(const std::string& text) {
    obeying_ = false;
    AnswerPrinter printer;
    const ChatSession::Answer answer = session_.ask(text, [&](const AnswerPiece& piece) { printer.add(piece); });
    printer.end();
    kv_auto_ = answer.usage.kv_auto;
    if (answer.context_full) {
      notice(
          fmt::format("witan: the answer ends here: the context of {} tokens is full; /clear begins anew, /save FILE "
                      "keeps the conversation",
                      engine_.options().context_length));
    } else if (answer.finish == FinishReason::kLength) {
      notice(fmt::format("witan: the answer ends here: {} tokens are the limit (-n)", answer.usage.generated_tokens));
    }
  }

  void obey(const std::string& line) {
    obeying_ = true;
    const size_t space = std::min(line.find_first_of(" \n"), line.size());
    const std::string command = line.substr(0, space);
    const std::string rest = space < line.size() ? line.substr(space + 1) : "";
    const auto file = [&]() -> const std::string& {
      if (rest.empty()) fail(ErrorCode::kInvalidArgument, "{} needs the name of a file", command);
      return rest;
    };
    if (command == "/help") {
      std::fputs(std::string(kHelp).c_str(), stderr);
    } else if (command == "/clear") {
      session_.clear();
    } else if (command == "/system") {
      session_.set_system(rest);
    } else if (command == "/stats") {
      notice(stats_line(engine_.stats(), engine_.model_info()));
      if (kv_auto_ != nullptr) notice(kv_auto_line(*kv_auto_));
    } else if (command == "/save") {
      save(file());
    } else if (command == "/load") {
      session_.load_json(read_text_file(file()), rest);
      notice(fmt::format("{} messages from {}", session_.messages().size(), rest));
    } else if (command == "/exit" || command == "/quit") {
      ended_ = true;
    } else {
      fail(ErrorCode::kInvalidArgument, "unknown command '{}'; /help lists them", command);
    }
  }

  void save(const std::string& path) {
    const std::string text = session_.to_json();
    OutputFile file(path);
    file.write(text.data(), text.size());
    file.commit();
    notice(fmt::format("{} messages in {}", session_.messages().size(), path));
  }

  Engine& engine_;
  ChatSession& session_;
  LineReader reader_;
  std::shared_ptr<const KvAutoChoice> kv_auto_;  // of the last answer, with --kv auto
  bool obeying_ = false;
  bool ended_ = false;
};

void run_chat(const ChatFlags& flags, bool has_num_tokens) {
  flags.generation.check();
  const jinja::Value extra = jinja::parse_json(flags.extra, "--extra");
  if (extra.as_dict() == nullptr) fail(ErrorCode::kInvalidArgument, "--extra: expected a JSON object");
  const std::string conversation = flags.load_path.empty() ? "" : read_text_file(flags.load_path);
  ModelOptions options = flags.model.finished();
  if (options.path.empty()) options.path = shipped_model_path();
  const std::unique_ptr<Engine> engine = load_engine(options);
  const std::unique_ptr<ChatTemplate> chat_template =
      load_chat_template(flags.chat_template, &engine->checkpoint(), false);
  const GenerationDefaults defaults = engine->checkpoint().generation_defaults();
  GenerationFlags generation = flags.generation.with_defaults(defaults);
  if (!has_num_tokens && !defaults.max_new_tokens) generation.request.max_new_tokens = engine->options().context_length;
  ChatSession session(*engine, *chat_template, generation, extra);
  if (!flags.load_path.empty()) session.load_json(conversation, flags.load_path);
  if (!flags.system.empty()) session.set_system(flags.system);
  Chat(*engine, session).run();
}

}  // namespace

void add_chat_command(CLI::App& app) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = app.add_subcommand("chat", "A conversation, with the model's chat template");
  command->footer(
      "Every line is a message; on a terminal it can be edited, and earlier ones come back with the up key. Standard "
      "input may be a file or a pipe too. In the conversation:\n\n" +
      std::string(kHelp) +
      "\nReasoning that the model marks is shown dim on a terminal, elsewhere between [reasoning] and "
      "[/reasoning].\n\nFlags that are not given default to what the model's generation_config.json says, as for run.");
  add_model_flag(*command, flags->model.options.path)
      ->required(false)
      ->default_str("witan-tiny, which comes with Witan");
  command->add_option("--system", flags->system, "The system message")->type_name("TEXT")->default_str("none");
  command->add_option("--load", flags->load_path, "Go on with a conversation that /save wrote")
      ->type_name("FILE")
      ->default_str("none");
  add_template_flags(*command, flags->chat_template);
  command->add_option("--extra", flags->extra, "Variables of the template, such as {\"enable_thinking\": false}")
      ->type_name("JSON")
      ->capture_default_str();
  add_generation_flags(*command, flags->generation, AnswerKind::kChat);
  CLI::Option* num_tokens = command->get_option("--num-tokens");
  num_tokens->default_str("as far as the context reaches");
  add_exact_flag(*command, flags->model);
  add_memory_flags(*command, flags->model, "the model's, as far as memory allows");
  add_kv_offload_flag(*command, flags->model);
  command->callback([flags, num_tokens] { run_chat(*flags, num_tokens->count() > 0); });
}

}  // namespace witan
