#include "models/gguf_source.h"

#include <fmt/format.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "commands.h"
#include "files.h"
#include "help.h"
#include "progress_bar.h"

namespace witan {
namespace {

struct QuantizeFlags {
  std::string in;
  std::string out;
  std::string type;
  std::string experts;
  std::vector<std::string> overrides;
  int num_threads = 0;
};

bool can_write(DType dtype) { return quant_type(dtype).can_encode() && quant_type(dtype).ggml_id != kNoGgmlId; }

std::string file_type_names() {
  std::string names;
  for (const GgufFileType& type : gguf_file_types()) {
    if (can_write(type.dtype)) names += fmt::format("{}{}", names.empty() ? "" : ", ", type.name);
  }
  return names;
}

std::string type_names() {
  std::string names;
  for (const QuantType& type : quant_types()) {
    if (can_write(type.dtype)) names += fmt::format("{}{}", names.empty() ? "" : ", ", type.name);
  }
  return names;
}

const GgufFileType& parse_file_type(const std::string& name) {
  const GgufFileType* type = find_gguf_file_type(name);
  if (type == nullptr) {
    fail(ErrorCode::kInvalidArgument, "--type {}: unknown type; expected one of {}", name, file_type_names());
  }
  if (!can_write(type->dtype)) {
    fail(ErrorCode::kInvalidArgument, "--type {}: Witan reads that type but does not write it; expected one of {}",
         name, file_type_names());
  }
  return *type;
}

DType parse_type(std::string_view flag, std::string_view name) {
  const std::optional<DType> dtype = dtype_from_name(name);
  if (!dtype || !can_write(*dtype)) {
    fail(ErrorCode::kInvalidArgument, "{}: {} is no type that Witan writes; expected one of {}", flag, name,
         type_names());
  }
  return *dtype;
}

TypeOverride parse_override(const std::string& text) {
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0) {
    fail(ErrorCode::kInvalidArgument, "--override {}: expected PATTERN=TYPE", text);
  }
  return {.pattern = text.substr(0, equals), .dtype = parse_type("--override " + text, text.substr(equals + 1))};
}

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

void print_row(std::string_view name, const QuantizedClass& sums, bool has_error) {
  std::string types;
  for (const DType dtype : sums.types) types += fmt::format("{}{}", types.empty() ? "" : " ", quant_type(dtype).name);
  print_stdout("{:<16}{:>7}{:>14.1f}{:>14.1f}{:>9.3f}{:>11}  {}\n", name, sums.num_tensors, mib(sums.bytes_before),
               mib(sums.bytes_after),
               8.0 * static_cast<double>(sums.bytes_after) / static_cast<double>(sums.num_values),
               has_error ? fmt::format("{:.5f}", sums.relative_error()) : "-", types);
}

void print_table(const QuantizedModel& model) {
  print_stdout("{:<16}{:>7}{:>14}{:>14}{:>9}{:>11}  {}\n", "class", "tensors", "MiB before", "MiB after", "bits",
               "rms error", "types");
  QuantizedClass all;
  for (int i = 0; i < kNumTensorClasses; ++i) {
    const QuantizedClass& sums = model.classes[static_cast<size_t>(i)];
    if (sums.num_tensors == 0) continue;
    print_row(tensor_class_name(static_cast<TensorClass>(i)), sums, sums.sum_square > 0);
    all.num_tensors += sums.num_tensors;
    all.num_values += sums.num_values;
    all.bytes_before += sums.bytes_before;
    all.bytes_after += sums.bytes_after;
    all.sum_square_error += sums.sum_square_error;
    all.sum_square += sums.sum_square;
  }
  print_row("all", all, all.sum_square > 0);
}

void run_quantize(const QuantizeFlags& flags) {
  TypeChoice choice{.file_type = &parse_file_type(flags.type)};
  if (!flags.experts.empty()) choice.experts = parse_type("--experts", flags.experts);
  for (const std::string& text : flags.overrides) choice.overrides.push_back(parse_override(text));
  const int threads =
      flags.num_threads > 0 ? flags.num_threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  ThreadPool pool(threads);
  const auto start = std::chrono::steady_clock::now();
  const ModelSource source = open_model_source(flags.in, pool);
  auto bar = std::make_unique<ProgressBar>("quantizing");
  const QuantizedModel model =
      quantize(source, choice, flags.out, pool, [&](int64_t done, int64_t total) { bar->update(done, total); });
  bar.reset();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (const std::string& note : model.notes) print_stdout("note: {}\n", note);
  print_table(model);
  print_stdout("{}: {:.1f} MiB, {:.1f} s\n", flags.out, mib(model.file_bytes), seconds);
}

}  // namespace

void add_quantize_command(CLI::App& app) {
  auto flags = std::make_shared<QuantizeFlags>();
  CLI::App* command = app.add_subcommand("quantize", "Write a model to a GGUF file with other weight types; lossy");
  command->footer(wrapped(
      "The types are chosen as llama.cpp does: norms and routers stay F32; the output projection gets Q6_K (Q8_0 in a "
      "file of that type); _S and _M give more bits to some layers' values and down projections; MXFP4 is for experts, "
      "the rest gets Q8_0. Rows that are no whole blocks fall back to a type of smaller blocks. The table shows the "
      "root "
      "mean square error relative to the weights' root mean square.",
      0));
  command->add_option("IN", flags->in, "GGUF file (any part of a split one) or Hugging Face directory")
      ->type_name("PATH")
      ->required();
  command->add_option("OUT", flags->out, "GGUF file to write; one of that name is replaced")
      ->type_name("PATH")
      ->required();
  command->add_option("--type", flags->type, "What most matrices become: " + file_type_names())
      ->type_name("TYPE")
      ->required();
  command->add_option("--experts", flags->experts, "What the matrices of routed experts become: " + type_names())
      ->type_name("TYPE")
      ->default_str("as --type");
  add_texts(*command, "--override", flags->overrides,
            "What matrices become whose GGUF names have a match of the regular expression; may be repeated, the first "
            "match counts")
      ->type_name("PATTERN=TYPE")
      ->default_str("none");
  command->add_option("-t,--threads", flags->num_threads, "Threads; 0: all cores")
      ->type_name("N")
      ->capture_default_str()
      ->check(in_range(0, 4096));
  command->callback([flags] { run_quantize(*flags); });
}

}  // namespace witan
