#include "chat_flags.h"

#include "base/error.h"
#include "files.h"

namespace witan {

void add_template_flags(CLI::App& app, TemplateFlags& flags) {
  app.add_option("--template", flags.path, "File of a chat template (Jinja), instead of the model's")
      ->type_name("FILE")
      ->default_str("none");
  app.add_option("--template-name", flags.name, "Which of a model's named templates, such as tool_use")
      ->type_name("NAME")
      ->default_str("its default");
}

std::unique_ptr<ChatTemplate> load_chat_template(const TemplateFlags& flags, const Checkpoint* checkpoint,
                                                 bool has_tools) {
  if (!flags.path.empty()) {
    if (!flags.name.empty())
      fail(ErrorCode::kInvalidArgument, "--template-name is of a model's templates, not of --template");
    SpecialTokenNames tokens;
    if (checkpoint != nullptr) tokens = checkpoint->special_tokens();
    return std::make_unique<ChatTemplate>(read_text_file(flags.path), flags.path, std::move(tokens));
  }
  std::unique_ptr<ChatTemplate> chat_template = checkpoint->load_chat_template(flags.name, has_tools);
  if (chat_template == nullptr) {
    fail(ErrorCode::kInvalidArgument, "{}: the model has no chat template; --template FILE names one",
         checkpoint->path());
  }
  return chat_template;
}

}  // namespace witan
