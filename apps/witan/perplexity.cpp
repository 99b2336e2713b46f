#include "eval/perplexity.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "commands.h"
#include "files.h"
#include "help.h"
#include "model_flags.h"
#include "progress_bar.h"
#include "version.h"

namespace witan {
namespace {

using nlohmann::json;

struct PerplexityFlags {
  ModelFlags model;
  std::vector<std::string> files;
  std::string out_path;
  int32_t window = 2048;
};

std::string dump_line(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace) + "\n"; }

void run_perplexity(const PerplexityFlags& flags) {
  constexpr int32_t kChunk = 512;
  std::vector<std::string> texts;
  for (const std::string& path : flags.files) texts.push_back(read_text_file(path));
  std::unique_ptr<OutputFile> out;
  if (!flags.out_path.empty()) out = std::make_unique<OutputFile>(flags.out_path);
  ModelOptions options = flags.model.finished();
  options.max_step_tokens = kChunk;
  options.max_sequences = kChunk;  // logits of every row of a step
  options.prefix_cache = false;
  options.context_length = flags.window;
  auto bar = std::make_unique<ProgressBar>("loading");
  LoadedModel model(options, [&](int64_t done, int64_t total) { bar->update(done, total); });
  if (model.tokenizer() == nullptr) fail(ErrorCode::kUnsupported, "{}: the model has no tokenizer", options.path);

  std::string lines = dump_line(
      {{"format", "witan-eval-1"},
       {"version", WITAN_VERSION},
       {"model", options.path},
       {"architecture", model.info().architecture},
       {"settings",
        {{"context", flags.window}, {"kv_type", kv_codec_name(options.kv_codec)}, {"exact", flags.model.exact}}},
       {"tasks", json::array()}});
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::vector<TokenId> framed = model.tokenizer()->encode("", AddSpecial::kYes, ParseSpecial::kNo);
    std::optional<TokenId> bos = model.tokenizer()->bos();
    if (std::ranges::find(framed, bos) == framed.end()) bos.reset();
    const std::vector<TokenId> tokens = model.tokenizer()->encode(texts[i], AddSpecial::kNo, ParseSpecial::kNo);
    bar = std::make_unique<ProgressBar>("computing");
    Perplexity result;
    try {
      result = measure_perplexity(model, tokens, bos, flags.window, kChunk,
                                  [&](int64_t done, int64_t total) { bar->update(done, total); });
    } catch (const Error& error) {
      fail(error.code(), "{}: {}", flags.files[i], error.what());
    }
    bar.reset();
    lines += dump_line({{"perplexity",
                         {{"file", flags.files[i]},
                          {"tokens", result.num_tokens},
                          {"window", flags.window},
                          {"nll", result.mean_nll},
                          {"value", result.value()}}}});
    print_stdout("{}: perplexity {:.4f}, {:.5f} nats per token, {} tokens\n", flags.files[i], result.value(),
                 result.mean_nll, result.num_tokens);
    flush_stdout();
  }
  if (out == nullptr) return;
  out->write(lines.data(), lines.size());
  out->commit();
}

}  // namespace

void add_perplexity_command(CLI::App& app) {
  auto flags = std::make_shared<PerplexityFlags>();
  CLI::App* command = app.add_subcommand("perplexity", "How well a model predicts a text");
  command->footer(
      "Perplexity is exp of the mean negative log likelihood of the text's tokens. Windows begin every half of "
      "--window; each predicts the tokens of its later half, the first one all of them, so that every token is "
      "predicted "
      "once, after at least half a window of what comes before it. A window begins with the model's BOS token, where "
      "it has one; where not, nothing predicts the text's first token.");
  add_model_flag(*command, flags->model.options.path);
  add_texts(*command, "-f,--file", flags->files, "File of text; -: standard input; may be repeated")
      ->type_name("FILE")
      ->required();
  command->add_option("--window", flags->window, "Tokens that the model sees at once")
      ->type_name("N")
      ->check(in_range(4, 1 << 30))
      ->capture_default_str();
  command->add_option("--out", flags->out_path, "File for the results as JSON Lines, which eval/report reads")
      ->type_name("FILE")
      ->default_str("none");
  add_exact_flag(*command, flags->model);
  add_memory_flags(*command, flags->model, "");
  command->remove_option(command->get_option("--context"));  // the window is the context
  command->callback([flags] { run_perplexity(*flags); });
}

}  // namespace witan
