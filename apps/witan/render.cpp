#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "chat_flags.h"
#include "commands.h"
#include "files.h"
#include "io/checkpoint.h"
#include "model_flags.h"

namespace witan {
namespace {

struct RenderFlags {
  std::string model_path;
  TemplateFlags chat_template;
  std::string messages_path;
};

void run_render(const RenderFlags& flags) {
  const std::string name = flags.messages_path == "-" ? "standard input" : flags.messages_path;
  const ChatInput input = parse_chat_input(read_text_file(flags.messages_path), name);
  const std::unique_ptr<Checkpoint> checkpoint =
      flags.model_path.empty() ? nullptr : Checkpoint::open(flags.model_path);
  const bool has_tools = !input.tools.is_none();
  write_stdout(load_chat_template(flags.chat_template, checkpoint.get(), has_tools)->render(input));
}

}  // namespace

void add_render_command(CLI::App& app) {
  auto flags = std::make_shared<RenderFlags>();
  CLI::App* command = app.add_subcommand("render", "The prompt that a conversation becomes, byte for byte");
  command->footer(
      "FILE is a JSON object: \"messages\", an array of {\"role\", \"content\", ...}; and, where wanted, \"tools\", an "
      "array of objects; \"add_generation_prompt\", true by default; \"extra\", an object of further variables; "
      "\"bos_token\" and \"eos_token\", which replace the model's; \"now\", such as \"2025-01-15 12:34:56\", what "
      "strftime_now() formats instead of the current time.");
  add_model_flag(*command, flags->model_path)->required(false);
  add_template_flags(*command, flags->chat_template);
  command->add_option("--messages", flags->messages_path, "File of the conversation; -: standard input")
      ->type_name("FILE")
      ->required();
  command->callback([flags] {
    if (flags->model_path.empty() && flags->chat_template.path.empty()) {
      throw CLI::RequiredError("One of --model and --template");
    }
    run_render(*flags);
  });
}

}  // namespace witan
