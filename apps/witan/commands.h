#pragma once

#include <CLI/CLI.hpp>

namespace witan {

// Each command adds its flags to `app` and a callback that runs it. The program's exit code: 0; 1 for an error in
// what was asked or computed; 2 for flags that do not parse, CLI::ParseError; 3 for a KV policy that the model or
// the prompt cannot have, KvPolicyError; that of a CLI::RuntimeError.
void add_run_command(CLI::App& app);
void add_chat_command(CLI::App& app);
void add_render_command(CLI::App& app);
void add_inspect_command(CLI::App& app);
void add_tokenize_command(CLI::App& app);
void add_logits_command(CLI::App& app);
void add_make_model_command(CLI::App& app);
void add_quantize_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_perplexity_command(CLI::App& app);
void add_bench_command(CLI::App& app);
void add_completion_command(CLI::App& app);  // the last: it looks at the others

// witan --list
void print_list();

}  // namespace witan
