#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "base/error.h"
#include "commands.h"
#include "engine/memory_plan.h"
#include "files.h"
#include "in_words.h"
#include "model_flags.h"
#include "models/registry.h"

namespace witan {
namespace {

using nlohmann::json;

struct InspectFlags {
  ModelFlags model;
  bool json = false;
  bool tensors = false;
};

struct Inspection {
  const Checkpoint& checkpoint;
  const ModelInfo& info;
  const Tokenizer* tokenizer;
  MemoryPlan plan;
  std::map<std::string, std::pair<int64_t, int64_t>> types;  // name -> tensors, bytes
  int64_t num_parameters = 0;
  int64_t file_bytes = 0;
  int64_t expert_bytes = 0;  // one routed expert in the file: gate, up and down
};

Inspection inspect(const Checkpoint& checkpoint, const ModelInfo& info, const Tokenizer* tokenizer,
                   const MemoryPlan& plan) {
  Inspection result{.checkpoint = checkpoint, .info = info, .tokenizer = tokenizer, .plan = plan, .types = {}};
  int64_t all_experts = 0;
  for (const TensorEntry& tensor : checkpoint.tensors()) {
    auto& [count, bytes] = result.types[std::string(quant_type(tensor.dtype).name)];
    ++count;
    bytes += std::ssize(tensor.data);
    result.num_parameters += tensor.num_elements();
    result.file_bytes += std::ssize(tensor.data);
    if (is_expert_tensor(tensor.name)) all_experts += std::ssize(tensor.data);
  }
  if (!info.moe_layers.empty()) result.expert_bytes = all_experts / std::ssize(info.moe_layers) / info.num_experts;
  return result;
}

json to_json(const Inspection& i) {
  json types = json::object();
  for (const auto& [name, sums] : i.types) types[name] = {{"tensors", sums.first}, {"bytes", sums.second}};
  json tensors = json::array();
  for (const TensorEntry& tensor : i.checkpoint.tensors()) {
    tensors.push_back({{"name", tensor.name},
                       {"type", quant_type(tensor.dtype).name},
                       {"shape", tensor.shape},
                       {"bytes", tensor.data.size()}});
  }
  json result = {{"path", i.checkpoint.path()},
                 {"format", i.checkpoint.format() == CheckpointFormat::kGguf ? "gguf" : "huggingface"},
                 {"architecture", i.info.architecture},
                 {"parameters", i.num_parameters},
                 {"file_bytes", i.file_bytes},
                 {"vocab_size", i.info.vocab_size},
                 {"context_length", i.info.context_length},
                 {"model_dim", i.info.model_dim},
                 {"layers", i.info.num_layers},
                 {"layers_without_window", std::ranges::count(i.info.kv_layers, 0, &KvLayerSpec::window)},
                 {"heads", i.info.num_heads},
                 {"kv_heads", i.info.kv_layers.front().num_kv_heads},
                 {"key_dim", i.info.kv_layers.front().key_dim},
                 {"value_dim", i.info.kv_layers.front().value_dim},
                 {"moe_layers", i.info.moe_layers},
                 {"experts", i.info.num_experts},
                 {"experts_per_token", i.info.top_k},
                 {"expert_bytes", i.expert_bytes},
                 {"kv_bytes_per_token", i.plan.kv_bytes_per_token},
                 {"types", types},
                 {"tensors", tensors},
                 {"memory",
                  {{"budget_bytes", i.plan.budget_bytes},
                   {"weight_bytes", i.plan.weight_bytes},
                   {"expert_bytes", i.plan.expert_bytes},
                   {"activation_bytes", i.plan.activation_bytes},
                   {"context_tokens", i.plan.context_tokens},
                   {"kv_context_bytes", i.plan.kv_context_bytes},
                   {"kv_available_bytes", i.plan.kv_available_bytes},
                   {"fits", i.plan.kv_available_bytes >= i.plan.kv_context_bytes}}}};
  result["tokenizer"] = nullptr;
  if (i.tokenizer != nullptr) {
    result["tokenizer"] = {{"type", i.tokenizer->description()}, {"vocab_size", i.tokenizer->vocab_size()}};
  }
  return result;
}

void print_text(const Inspection& i, bool with_tensors) {
  const KvLayerSpec& kv = i.info.kv_layers.front();
  print_stdout("{}\n", i.checkpoint.path());
  print_stdout("architecture       {} ({})\n", i.info.architecture,
               i.checkpoint.format() == CheckpointFormat::kGguf ? "GGUF" : "Hugging Face");
  print_stdout("parameters         {}, {:.1f} MiB\n", in_words(i.num_parameters),
               static_cast<double>(i.file_bytes) / (1 << 20));
  print_stdout("layers             {}, of width {}\n", i.info.num_layers, i.info.model_dim);
  print_stdout("attention          {} heads, {} kv heads, keys {}, values {}{}\n", i.info.num_heads, kv.num_kv_heads,
               kv.key_dim, kv.value_dim, kv.value_in_key ? " (latent, MLA)" : "");
  if (i.info.moe_layers.empty()) {
    print_stdout("experts            none (dense)\n");
  } else {
    print_stdout("experts            {} per layer in {} layers, {} per token, {:.2f} MiB each\n", i.info.num_experts,
                 i.info.moe_layers.size(), i.info.top_k, static_cast<double>(i.expert_bytes) / (1 << 20));
  }
  print_stdout("vocabulary         {}\n", i.info.vocab_size);
  print_stdout("tokenizer          {}\n", i.tokenizer == nullptr ? "none" : i.tokenizer->description());
  print_stdout("context            {} tokens\n", i.info.context_length);
  print_stdout("KV cache           {} bytes per token\n", i.plan.kv_bytes_per_token);
  print_stdout("tensors            {}\n", i.checkpoint.tensors().size());
  for (const auto& [name, sums] : i.types) {
    print_stdout("  {:<16} {:>6} tensors {:>12.1f} MiB\n", name, sums.first,
                 static_cast<double>(sums.second) / (1 << 20));
  }
  print_stdout("{}", describe(i.plan));
  if (i.plan.kv_available_bytes < i.plan.kv_context_bytes) print_stdout("  does not fit the budget\n");
  if (!with_tensors) return;
  for (const TensorEntry& tensor : i.checkpoint.tensors()) {
    print_stdout("{:<5} {:<24} {}\n", quant_type(tensor.dtype).name, fmt::format("[{}]", fmt::join(tensor.shape, ", ")),
                 tensor.name);
  }
}

void run_inspect(const InspectFlags& flags) {
  const ModelOptions options = flags.model.finished();
  const std::unique_ptr<Checkpoint> checkpoint = Checkpoint::open(options.path);
  const std::unique_ptr<Model> model = create_model(*checkpoint);
  const std::unique_ptr<Tokenizer> tokenizer = checkpoint->load_tokenizer();
  const int threads = options.num_threads > 0 ? options.num_threads
                                              : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const MemoryPlan plan =
      plan_memory(*checkpoint, model->info(),
                  {.budget_bytes = options.memory_bytes > 0 ? options.memory_bytes : default_memory_budget(),
                   .kv_codec = options.kv_codec,
                   .context_tokens = options.context_length > 0 ? options.context_length : model->info().context_length,
                   .max_step_tokens = options.max_step_tokens,
                   .max_logit_rows = std::min(options.max_sequences, options.max_step_tokens),
                   .num_threads = threads});
  const Inspection result = inspect(*checkpoint, model->info(), tokenizer.get(), plan);
  if (flags.json) {
    print_stdout("{}\n", to_json(result).dump(2, ' ', false, json::error_handler_t::replace));
  } else {
    print_text(result, flags.tensors);
  }
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* command = app.add_subcommand("inspect", "What a model is, and what it needs of memory; loads no weights");
  add_model_flag(*command, flags->model.options.path);
  command->add_flag("--json", flags->json, "Print JSON, every tensor included");
  command->add_flag("--tensors", flags->tensors, "List every tensor");
  add_memory_flags(*command, flags->model, "the model's");
  add_step_flags(*command, flags->model);
  command->callback([flags] { run_inspect(*flags); });
}

}  // namespace witan
