#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "commands.h"
#include "engine/loaded_model.h"
#include "files.h"
#include "help.h"
#include "model_flags.h"
#include "progress_bar.h"

namespace witan {
namespace {

struct LogitsFlags {
  ModelFlags model;
  std::string tokens_path;
  std::string out_path;
  std::string experts_path;
  std::string decoder_tokens_path;
  bool expert_capacity = false;
  int32_t chunk = 512;
};

void run_logits(const LogitsFlags& flags) {
  std::vector<TokenId> tokens = read_token_file(flags.tokens_path);
  std::vector<TokenId> input;
  if (!flags.decoder_tokens_path.empty()) input = std::exchange(tokens, read_token_file(flags.decoder_tokens_path));
  namespace fs = std::filesystem;
  if (!flags.experts_path.empty() && fs::weakly_canonical(flags.experts_path) == fs::weakly_canonical(flags.out_path)) {
    fail(ErrorCode::kInvalidArgument, "--out and --experts-out are both {}", flags.out_path);
  }
  OutputFile out(flags.out_path);
  std::unique_ptr<OutputFile> experts_out;
  if (!flags.experts_path.empty()) experts_out = std::make_unique<OutputFile>(flags.experts_path);

  ModelOptions options = flags.model.finished();
  // A capacity counts over all tokens at once.
  const int32_t chunk = flags.expert_capacity ? std::max(1, static_cast<int32_t>(tokens.size())) : flags.chunk;
  options.max_step_tokens = chunk;
  options.max_sequences = chunk;  // logits of every row of a step
  options.prefix_cache = false;
  options.with_tokenizer = false;
  if (options.context_length == 0) {
    options.context_length = static_cast<int32_t>(std::max(tokens.size(), input.size()));
  }
  auto bar = std::make_unique<ProgressBar>("loading");
  LoadedModel model(options, [&](int64_t done, int64_t total) { bar->update(done, total); });
  if (experts_out != nullptr && model.info().moe_layers.empty()) {
    fail(ErrorCode::kInvalidArgument, "--experts-out: {} is a dense model", options.path);
  }

  const auto& telemetry = model.telemetry();
  std::vector<std::vector<int32_t>> experts(static_cast<size_t>(telemetry.num_moe_layers()));
  bar = std::make_unique<ProgressBar>("computing");
  const auto write = [&](int32_t first, int32_t count, std::span<const float> logits) {
    out.write(logits.data(), logits.size_bytes());
    for (int32_t layer = 0; layer < telemetry.num_moe_layers(); ++layer) {
      const auto chosen = telemetry.last_experts(layer);
      experts[layer].insert(experts[layer].end(), chosen.begin(), chosen.end());
    }
    bar->update(first + count, std::ssize(tokens));
  };
  score_tokens(model, tokens, chunk, write, {.input = input, .expert_capacity = flags.expert_capacity});
  if (experts_out != nullptr) {
    for (const auto& layer : experts) experts_out->write(layer.data(), layer.size() * sizeof(int32_t));
    experts_out->commit();
  }
  out.commit();
}

}  // namespace

void add_logits_command(CLI::App& app) {
  auto flags = std::make_shared<LogitsFlags>();
  CLI::App* command = app.add_subcommand("logits", "Write the logits of every position of a token sequence");
  command->footer(
      "Files: logits are little-endian float32 [tokens, vocabulary]; experts int32 [MoE layers, tokens, top_k] in "
      "descending selection score. A file of that name is replaced. No tokenizer is needed.");
  add_model_flag(*command, flags->model.options.path);
  command->add_option("--tokens", flags->tokens_path, "File of token ids separated by white space; -: standard input")
      ->type_name("FILE")
      ->required();
  command
      ->add_option("--decoder-tokens", flags->decoder_tokens_path,
                   "Models with an encoder: file of the decoder's ids, which begin with its start token; --tokens are "
                   "the encoder's then")
      ->type_name("FILE")
      ->default_str("none");
  command->add_flag("--expert-capacity", flags->expert_capacity,
                    "Switch: drop decoder tokens beyond an expert's capacity too, as one pass of the original does");
  command->add_option("--out", flags->out_path, "File for the logits")->type_name("FILE")->required();
  command->add_option("--experts-out", flags->experts_path, "File for the experts chosen")
      ->type_name("FILE")
      ->default_str("none");
  command->add_option("--chunk", flags->chunk, "Tokens computed at once; does not change the result")
      ->type_name("N")
      ->check(in_range(1, 1 << 16))
      ->capture_default_str();
  add_exact_flag(*command, flags->model);
  add_memory_flags(*command, flags->model, "as many as the file has");
  command->callback([flags] { run_logits(*flags); });
}

}  // namespace witan
