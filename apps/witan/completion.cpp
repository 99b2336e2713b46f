#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "commands.h"
#include "files.h"
#include "help.h"

// Scripts that complete the commands and flags as CLI11 knows them, so that they cannot tell otherwise than the parser.

namespace witan {
namespace {

std::vector<std::string> flag_names(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  return names;
}

bool takes_value(const CLI::Option& option) { return option.get_items_expected_max() > 0; }
bool takes_file(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  return type == "FILE" || type == "PATH" || type == "DIR";
}

// What follows the program's or a command's name.
struct Words {
  std::string command;  // empty: the program itself
  std::vector<std::string> words;
  std::vector<std::string> files;   // flags that a file follows
  std::vector<std::string> values;  // flags that something else follows
};

Words words_of(const CLI::App& app, const std::string& command) {
  Words result{.command = command, .words = {}, .files = {}, .values = {}};
  for (const CLI::App* inner : app.get_subcommands({})) result.words.push_back(inner->get_name());
  for (const CLI::Option* option : app.get_options({})) {
    for (const std::string& name : flag_names(*option)) {
      result.words.push_back(name);
      if (takes_value(*option)) (takes_file(*option) ? result.files : result.values).push_back(name);
    }
  }
  return result;
}

std::string bash_script(const CLI::App& app) {
  std::vector<Words> all = {words_of(app, "")};
  std::vector<std::string> commands;
  for (const CLI::App* command : app.get_subcommands({})) {
    all.push_back(words_of(*command, command->get_name()));
    commands.push_back(command->get_name());
  }
  std::string after_flags;
  std::string lists;
  const auto add_case = [&](const Words& words, const std::vector<std::string>& flags, const char* action) {
    if (flags.empty()) return;
    std::vector<std::string> patterns;
    for (const std::string& flag : flags) patterns.push_back(fmt::format("'{} {}'", words.command, flag));
    after_flags += fmt::format("    {}) {} ;;\n", fmt::join(patterns, " | "), action);
  };
  for (const Words& words : all) {
    add_case(words, words.files, "_witan_files; return");
    add_case(words, words.values, "return");
    lists += fmt::format("    '{}') words='{}' ;;\n", words.command, fmt::join(words.words, " "));
  }
  return fmt::format(
      R"(# bash completion for witan, written by "witan completion bash"
_witan_files() {{
  compopt -o filenames 2>/dev/null || true
  mapfile -t COMPREPLY < <(compgen -f -- "$cur")
}}
_witan() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} previous='' command='' word words=''
  ((COMP_CWORD > 0)) && previous=${{COMP_WORDS[COMP_CWORD - 1]}}
  COMPREPLY=()
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case $word in
    {}) command=$word; break ;;
    esac
  done
  case "$command $previous" in
{}  esac
  case $command in
{}  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
  if [[ $cur != -* && -n $command && ${{#COMPREPLY[@]}} -eq 0 ]]; then
    _witan_files
  fi
}}
complete -F _witan witan
)",
      fmt::join(commands, " | "), after_flags, lists);
}

// A description in zsh's _arguments: without what ends it or the quotes around it.
std::string zsh_text(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '\n') {
      result += ' ';
    } else if (c == '\'') {
      result += "'\\''";
    } else {
      if (c == '[' || c == ']' || c == ':' || c == '\\') result += '\\';
      result += c;
    }
  }
  return result;
}

std::string zsh_arguments(const CLI::App& app) {
  std::string result;
  for (const CLI::Option* option : app.get_options({})) {
    const std::string action = takes_file(*option) ? "_files" : " ";
    if (option->get_positional()) {
      result += fmt::format(" \\\n    ':{}:{}'", zsh_text(option->get_name()), action);
      continue;
    }
    const std::vector<std::string> names = flag_names(*option);
    const std::string value =
        takes_value(*option) ? fmt::format(":{}:{}", zsh_text(option->get_type_name()), action) : "";
    for (const std::string& name : names) {
      const bool repeats = option->get_items_expected_max() > 1;
      result += fmt::format(" \\\n    '{}{}[{}]{}'", repeats ? "*" : fmt::format("({})", fmt::join(names, " ")), name,
                            zsh_text(option->get_description()), value);
    }
  }
  return result;
}

std::string zsh_script(const CLI::App& app) {
  std::string commands;
  std::string cases;
  for (const CLI::App* command : app.get_subcommands({})) {
    commands += fmt::format("    '{}:{}'\n", command->get_name(), zsh_text(command->get_description()));
    cases += fmt::format("  {}) _arguments{} ;;\n", command->get_name(), zsh_arguments(*command));
  }
  return fmt::format(R"(#compdef witan
# zsh completion for witan, written by "witan completion zsh"
_witan() {{
  local context state line
  local -a commands=(
{}  )
  _arguments -C{} \
    '1:command:->command' '*::argument:->arguments'
  case $state in
  command) _describe command commands ;;
  arguments)
  case $words[1] in
{}  esac ;;
  esac
}}
if [[ $funcstack[1] == _witan ]]; then
  _witan "$@"
else
  compdef _witan witan
fi
)",
                     commands, zsh_arguments(app), cases);
}

}  // namespace

void add_completion_command(CLI::App& app) {
  auto shell = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("completion", "A script that completes commands and flags in a shell");
  command->footer(
      "For one session: source <(witan completion bash). cmake --install puts both scripts where the shells look for "
      "them.");
  command->add_option("SHELL", *shell, "bash or zsh")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh"}).description(""));
  command->callback([&app, shell] { write_stdout(*shell == "bash" ? bash_script(app) : zsh_script(app)); });
}

}  // namespace witan
