#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "io/checkpoint.h"

namespace witan {

// Which chat template a command uses.
struct TemplateFlags {
  std::string path;  // a file; empty: the model's
  std::string name;  // of the model's named templates; empty: its default
};
void add_template_flags(CLI::App& app, TemplateFlags& flags);

// `checkpoint` may be null where a file is named; where it is not, its special tokens are used. Throws
// Error(kInvalidArgument) when there is no template; errors of ChatTemplate.
std::unique_ptr<ChatTemplate> load_chat_template(const TemplateFlags& flags, const Checkpoint* checkpoint,
                                                 bool has_tools);

}  // namespace witan
