#include "help.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace witan {
namespace {

constexpr int kDescriptionColumn = 28;
constexpr char kUnbrokenSpace = '\x1f';

// "  name   description", the description in its column, below a name that reaches into it.
std::string entry(const std::string& name, const std::string& description) {
  std::string line = "  " + name;
  const int gap = kDescriptionColumn - static_cast<int>(line.size());
  line += gap >= 2 ? std::string(static_cast<size_t>(gap), ' ') : "\n" + std::string(kDescriptionColumn, ' ');
  line += wrapped(description, kDescriptionColumn) + "\n";
  std::ranges::replace(line, kUnbrokenSpace, ' ');
  return line;
}

bool takes_value(const CLI::Option& option) { return option.get_items_expected_max() > 0; }

// "-n, --num-tokens N", names without a short form indented as if they had one.
std::string names(const CLI::Option& option) {
  std::string result;
  for (const std::string& name : option.get_snames()) result += fmt::format("-{}, ", name);
  if (result.empty()) result = "    ";
  const std::vector<std::string>& long_names = option.get_lnames();
  for (size_t i = 0; i < long_names.size(); ++i) result += fmt::format("{}--{}", i > 0 ? ", " : "", long_names[i]);
  return takes_value(option) ? result + " " + option.get_type_name() : result;
}

std::string description(const CLI::Option& option) {
  std::string result = option.get_description();
  if (option.get_required()) return result + " (required)";
  if (takes_value(option) && !option.get_default_str().empty()) {
    result += fmt::format(" (default:{}{})", kUnbrokenSpace, option.get_default_str());
  }
  return result;
}

class HelpFormatter : public CLI::FormatterBase {
 public:
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode /*mode*/) const override {
    std::string usage = fmt::format("Usage: {}", name);
    std::string positionals;
    for (const CLI::Option* option : app->get_options({})) {
      if (option->get_positional()) {
        positionals += " " + option->get_name();
      } else if (option->get_required()) {
        usage += fmt::format(" --{} {}", option->get_lnames().front(), option->get_type_name());
      }
    }
    usage += positionals + " [FLAG...]";
    const std::vector<const CLI::App*> commands = app->get_subcommands({});
    if (!commands.empty()) usage += " COMMAND";

    std::string help = fmt::format("{}\n\n{}\n", usage, wrapped(app->get_description(), 0));
    if (!commands.empty()) {
      help += "\nCommands:\n";
      for (const CLI::App* command : commands) help += entry(command->get_name(), command->get_description());
    }
    for (const std::string& group : app->get_groups()) help += group_help(*app, group);
    if (!app->get_footer().empty()) help += "\n" + wrapped(app->get_footer(), 0) + "\n";
    return help;
  }

 private:
  static std::string group_help(const CLI::App& app, const std::string& group) {
    std::string entries;
    for (const CLI::Option* option :
         app.get_options([&](const CLI::Option* candidate) { return candidate->get_group() == group; })) {
      entries += entry(option->get_positional() ? option->get_name() : names(*option), description(*option));
    }
    return entries.empty() ? entries : fmt::format("\n{}:\n{}", group == "Options" ? "Flags" : group, entries);
  }
};

}  // namespace

std::string wrapped(std::string_view text, int indent) {
  const std::string margin(static_cast<size_t>(indent), ' ');
  const auto width = static_cast<size_t>(kHelpWidth - indent);
  std::string result;
  for (;;) {
    const size_t line_end = std::min(text.find('\n'), text.size());
    size_t end = line_end;
    if (line_end > width) {
      const size_t space = text.rfind(' ', width);
      end = space != std::string_view::npos && space > 0 ? space : std::min(text.find(' '), line_end);
    }
    result += text.substr(0, end);
    if (end >= text.size()) return result;
    text.remove_prefix(end + 1);
    result += "\n" + margin;
  }
}

CLI::Option* add_texts(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                       const std::string& description) {
  const auto keep = [&values](const CLI::results_t& results) {
    values = results;
    return true;
  };
  return app.add_option(name, keep, description)
      ->type_name("TEXT")
      ->expected(1, CLI::detail::expected_max_vector_size)
      ->allow_extra_args(false);
}

std::shared_ptr<CLI::FormatterBase> make_help_formatter() { return std::make_shared<HelpFormatter>(); }

}  // namespace witan
