#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "base/error.h"
#include "commands.h"
#include "engine/engine.h"
#include "files.h"
#include "help.h"
#include "version.h"

namespace {

constexpr int kUsageExitCode = 2;
constexpr int kPolicyExitCode = 3;  // the model refuses the KV policy: eval/kv_sweep goes on without it

// A standard stream that is closed would be taken by the first file opened, which output would then go into. Using
// these placeholders fails.
void occupy_standard_streams() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(descriptor, F_GETFD) >= 0) continue;
    if (open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) std::abort();
  }
}

std::string usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<CLI::App*> commands = app.get_subcommands();
  // CLI11 complains of what is missing before what is too much, which more often is the cause.
  const std::vector<std::string> unknown = app.remaining(true);
  if (commands.empty()) {
    const std::string what = unknown.empty() ? "no command is given" : fmt::format("'{}' is unknown", unknown.front());
    return fmt::format("{}\nwitan --help lists commands and flags", what);
  }
  const std::string& name = commands.front()->get_name();
  const std::string what = unknown.empty() ? error.what() : fmt::format("'{}' is unknown", unknown.front());
  return fmt::format("{}: {}\nwitan {} --help lists its flags", name, what, name);
}

void print_error(std::string message) {
  if (message.empty() || message.back() != '\n') message += '\n';
  std::fputs(("witan: " + message).c_str(), stderr);
}

int run(int argc, char** argv) {
  CLI::App app{"Witan: inference for Mixture-of-Experts language models with long contexts", "witan"};
  app.formatter(witan::make_help_formatter());
  app.set_help_flag("-h,--help", "Print this help");
  app.set_version_flag("--version", std::string("witan ") + WITAN_VERSION, "Print the version");
  app.add_flag_callback(
      "--list",
      [] {
        witan::print_list();
        throw CLI::Success();
      },
      "Print architectures, weight types, kernel variants and which of these this CPU has");
  app.require_subcommand(1);
  witan::add_run_command(app);
  witan::add_chat_command(app);
  witan::add_render_command(app);
  witan::add_inspect_command(app);
  witan::add_tokenize_command(app);
  witan::add_logits_command(app);
  witan::add_make_model_command(app);
  witan::add_quantize_command(app);
  witan::add_eval_command(app);
  witan::add_perplexity_command(app);
  witan::add_bench_command(app);
  witan::add_completion_command(app);
  app.footer(
      "witan COMMAND --help lists the flags of a command.\n\nThe environment variable WITAN_ISA forces a kernel "
      "variant; "
      "witan --list names them.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);  // --help, --version, --list
  } catch (const CLI::RuntimeError& error) {
    return error.get_exit_code();
  } catch (const CLI::ParseError& error) {
    print_error(usage_error(app, error));
    return kUsageExitCode;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    occupy_standard_streams();
    const int exit_code = run(argc, argv);
    witan::flush_stdout();
    return exit_code;
  } catch (const witan::KvPolicyError& error) {
    print_error(error.what());
    return kPolicyExitCode;
  } catch (const std::bad_alloc&) {
    print_error("the system has no memory left");
  } catch (const std::exception& error) {
    print_error(error.what());
  }
  return 1;
}
