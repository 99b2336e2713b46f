#include <clocale>
#include <cstdio>
#include <exception>
#include <new>

#include "base/error.h"
#include "commands.h"
#include "version.h"

namespace {

int run(int argc, char** argv) {
  CLI::App app{"Witan: inference for Mixture-of-Experts language models with long contexts", "witan"};
  app.set_version_flag("--version", std::string("witan ") + WITAN_VERSION);
  app.get_formatter()->column_width(30);
  app.add_flag_callback(
      "--list",
      [] {
        witan::print_list();
        throw CLI::Success();
      },
      "Show architectures, weight types, kernel variants and which of these this CPU has");
  app.footer(
      "Environment: WITAN_ISA forces a kernel variant (witan --list names them).\nHelp for a command: witan COMMAND "
      "--help");
  app.require_subcommand(1);
  witan::add_run_command(app);
  witan::add_inspect_command(app);
  witan::add_tokenize_command(app);
  witan::add_logits_command(app);
  witan::add_make_model_command(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);  // --help, --version, --list
  } catch (const CLI::ParseError& error) {
    app.exit(error);
    return 2;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("witan: the system has no memory left\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "witan: %s\n", error.what());
  }
  return 1;
}
