#include "io/make_model.h"

#include <fmt/format.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "base/error.h"
#include "commands.h"
#include "files.h"
#include "help.h"
#include "in_words.h"
#include "progress_bar.h"

namespace witan {
namespace {

struct MakeModelFlags {
  std::string arch;
  std::string preset;
  std::string type;
  std::string out;
  MakeModelOptions options;
};

std::string preset_table() {
  std::string table = "Architectures and presets (GGUF names):\n";
  for (const ModelPreset& preset : model_presets()) {
    const std::string name = fmt::format("  {:<10} {:<18}", preset.arch, preset.name);
    table += name + wrapped(preset.description, static_cast<int>(name.size())) + "\n";
  }
  table.pop_back();
  return table;
}

// Of the types that a GGUF file can hold.
std::string type_names() {
  std::string names;
  for (const QuantType& type : quant_types()) {
    if (type.ggml_id != kNoGgmlId) names += fmt::format("{}{}", names.empty() ? "" : ", ", type.name);
  }
  return names;
}

void run_make_model(MakeModelFlags& flags) {
  const std::optional<DType> dtype = dtype_from_name(flags.type);
  if (!dtype || quant_type(*dtype).ggml_id == kNoGgmlId) {
    fail(ErrorCode::kInvalidArgument, "--type {}: unknown type; expected one of {}", flags.type, type_names());
  }
  flags.options.dtype = *dtype;
  ThreadPool threads(std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  const auto start = std::chrono::steady_clock::now();
  const ModelPreset& preset = find_model_preset(flags.arch, flags.preset);
  auto bar = std::make_unique<ProgressBar>("writing");
  const MadeModel made = make_model(preset, flags.options, flags.out, threads,
                                    [&](int64_t done, int64_t total) { bar->update(done, total); });
  bar.reset();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (const std::string& note : made.notes) print_stdout("note: {}\n", note);
  print_stdout("{}: {} random weights in {} tensors, {:.1f} MiB, {:.1f} s\n", flags.out, in_words(made.num_parameters),
               made.num_tensors, static_cast<double>(made.file_bytes) / (1 << 20), seconds);
}

}  // namespace

void add_make_model_command(CLI::App& app) {
  auto flags = std::make_shared<MakeModelFlags>();
  CLI::App* command = app.add_subcommand(
      "make-model", "Write a GGUF file of a real model's shape with random weights, for tests and benchmarks");
  command->footer(preset_table());
  command->add_option("OUT", flags->out, "File to write; one of that name is replaced")->required();
  command->add_option("--arch", flags->arch, "Architecture, as GGUF files name it")->type_name("NAME")->required();
  command->add_option("--preset", flags->preset, "Whose shape")->type_name("NAME")->required();
  command->add_option("--type", flags->type, "Type of the matrices: " + type_names())->type_name("TYPE")->required();
  command->add_option("--layers", flags->options.num_layers, "How many layers; 0: as the preset")
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--seed", flags->options.seed, "The same seed gives the same file")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--tokenizer", flags->options.tokenizer_path,
                   "GGUF file or Hugging Face directory whose tokenizer and chat template to copy")
      ->type_name("MODEL")
      ->default_str("words made up of bytes");
  command->callback([flags] { run_make_model(*flags); });
}

}  // namespace witan
