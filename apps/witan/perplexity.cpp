#include "eval/perplexity.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "commands.h"
#include "eval/kv_comparison.h"
#include "files.h"
#include "generation.h"
#include "help.h"
#include "model_flags.h"
#include "progress_bar.h"
#include "sampling_flags.h"
#include "version.h"

namespace witan {
namespace {

using nlohmann::json;

struct PerplexityFlags {
  ModelFlags model;
  std::vector<std::string> files;
  std::string out_path;
  int32_t window = 2048;
  std::optional<KvPolicy> kv_policy;
  int32_t num_prompt = 0;  // with a policy; 0: half of the window, or of a shorter text
};

constexpr int32_t kChunk = 512;

std::string dump_line(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace) + "\n"; }

// Where the tokenizer puts one before a text.
std::optional<TokenId> bos_of(const Tokenizer& tokenizer) {
  const std::vector<TokenId> framed = tokenizer.encode("", AddSpecial::kYes, ParseSpecial::kNo);
  const std::optional<TokenId> bos = tokenizer.bos();
  return std::ranges::find(framed, bos) == framed.end() ? std::nullopt : bos;
}

const Tokenizer& tokenizer_of(const Tokenizer* tokenizer, const PerplexityFlags& flags) {
  if (tokenizer == nullptr) {
    fail(ErrorCode::kUnsupported, "{}: the model has no tokenizer", flags.model.options.path);
  }
  return *tokenizer;
}

json header_of(const PerplexityFlags& flags, const std::string& architecture) {
  json settings = {{"context", flags.window},
                   {"kv_type", kv_codec_name(flags.model.finished().kv_codec)},
                   {"exact", flags.model.exact}};
  if (flags.kv_policy) settings["kv"] = flags.kv_policy->text;
  return {{"format", "witan-eval-1"},     {"version", WITAN_VERSION}, {"model", flags.model.options.path},
          {"architecture", architecture}, {"settings", settings},     {"tasks", json::array()}};
}

json measure(LoadedModel& model, const PerplexityFlags& flags, const std::string& file, const std::string& text) {
  const Tokenizer& tokenizer = tokenizer_of(model.tokenizer(), flags);
  const std::vector<TokenId> tokens = tokenizer.encode(text, AddSpecial::kNo, ParseSpecial::kNo);
  ProgressBar bar("computing");
  const Perplexity result = measure_perplexity(model, tokens, bos_of(tokenizer), flags.window, kChunk,
                                               [&](int64_t done, int64_t total) { bar.update(done, total); });
  bar.wipe();
  print_stdout("{}: perplexity {:.4f}, {:.5f} nats per token, {} tokens\n", file, result.value(), result.mean_nll,
               result.num_tokens);
  return {{"file", file},
          {"tokens", result.num_tokens},
          {"window", flags.window},
          {"nll", result.mean_nll},
          {"value", result.value()}};
}

void print_comparison(const KvComparison& result, const std::string& file, int32_t num_prompt) {
  print_stdout("{}: perplexity {:.4f} with the policy, {:.4f} without, {} tokens behind prompts of {}\n", file,
               result.policy.value(), result.dense.value(), result.dense.num_tokens, num_prompt);
  if (!result.route_overlap.empty()) {
    print_stdout("  experts {:.4f} the same (by MoE layer {:.4f}), in every layer for {:.1f} % of the tokens\n",
                 result.mean_route_overlap(), fmt::join(result.route_overlap, " "), 100 * result.same_routes);
  }
  if (result.bytes_before > 0) {
    const auto after = static_cast<double>(result.bytes_after);
    const auto before = static_cast<double>(result.bytes_before);
    print_stdout("  KV cache {:.2f} of {:.2f} MiB, {:.1f} %\n", after / (1 << 20), before / (1 << 20),
                 100 * after / before);
  }
}

json compare(Engine& engine, const PerplexityFlags& flags, const std::string& file, const std::string& text) {
  const Tokenizer& tokenizer = tokenizer_of(engine.tokenizer(), flags);
  const std::vector<TokenId> tokens = tokenizer.encode(text, AddSpecial::kNo, ParseSpecial::kNo);
  const std::optional<TokenId> bos = bos_of(tokenizer);
  const int64_t num_tokens = std::ssize(tokens) + (bos ? 1 : 0);
  const auto half = static_cast<int32_t>(std::min<int64_t>(flags.window, num_tokens) / 2);
  const int32_t num_prompt = flags.num_prompt > 0 ? flags.num_prompt : std::max(1, half);
  ProgressBar bar("computing");
  const KvComparison result = compare_kv(engine, tokens, bos, *flags.kv_policy, flags.window, num_prompt,
                                         [&](int64_t done, int64_t total) { bar.update(done, total); });
  bar.wipe();
  print_comparison(result, file, num_prompt);
  return {{"file", file},
          {"tokens", result.policy.num_tokens},
          {"window", flags.window},
          {"nll", result.policy.mean_nll},
          {"value", result.policy.value()},
          {"kv",
           {{"prompt_tokens", num_prompt},
            {"dense_nll", result.dense.mean_nll},
            {"dense_value", result.dense.value()},
            {"route_overlap", result.route_overlap},
            {"same_routes", result.same_routes},
            {"bytes_after", result.bytes_after},
            {"bytes_before", result.bytes_before}}}};
}

void run_perplexity(const PerplexityFlags& flags) {
  if (flags.num_prompt >= flags.window) {
    fail(ErrorCode::kInvalidArgument, "--prompt-tokens {} leaves nothing to predict in a --window of {}",
         flags.num_prompt, flags.window);
  }
  check_depends_on_request(flags.kv_policy);
  if (flags.kv_policy && flags.kv_policy->under_pressure) {
    fail(ErrorCode::kInvalidArgument, "--kv {}: when it acts depends on what runs beside; leave when=pressure out",
         flags.kv_policy->text);
  }
  std::vector<std::string> texts;
  for (const std::string& path : flags.files) texts.push_back(read_text_file(path));
  std::unique_ptr<OutputFile> out;
  if (!flags.out_path.empty()) out = std::make_unique<OutputFile>(flags.out_path);
  std::string lines;
  const auto add_results = [&](const std::string& architecture, const auto& result_of) {
    lines += dump_line(header_of(flags, architecture));
    for (size_t i = 0; i < texts.size(); ++i) {
      try {
        lines += dump_line({{"perplexity", result_of(flags.files[i], texts[i])}});
      } catch (const KvPolicyError&) {
        throw;  // has an exit code of its own
      } catch (const Error& error) {
        fail(error.code(), "{}: {}", flags.files[i], error.what());
      }
      flush_stdout();
    }
  };
  if (flags.kv_policy) {
    const std::unique_ptr<Engine> engine = load_engine(flags.model.finished_for_throughput());
    tokenizer_of(engine->tokenizer(), flags);
    add_results(engine->model_info().architecture,
                [&](const std::string& file, const std::string& text) { return compare(*engine, flags, file, text); });
  } else {
    ModelOptions options = flags.model.finished();
    options.max_step_tokens = kChunk;
    options.max_sequences = kChunk;  // logits of every row of a step
    options.prefix_cache = false;
    options.context_length = flags.window;
    auto bar = std::make_unique<ProgressBar>("loading");
    LoadedModel model(options, [&](int64_t done, int64_t total) { bar->update(done, total); });
    bar.reset();
    tokenizer_of(model.tokenizer(), flags);
    add_results(model.info().architecture,
                [&](const std::string& file, const std::string& text) { return measure(model, flags, file, text); });
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
      "it has one; where not, nothing predicts the text's first token.\n\nWith --kv the first --prompt-tokens of each "
      "window are a prompt, at whose end the policy acts, and the others are taken one by one as if they were "
      "generated, with the policy and without; the next window goes on where they end. What both make of the same "
      "tokens is compared: perplexity, the experts that tokens are routed to (those chosen in both, as a share of "
      "those chosen in either), and the memory of KV entries.\n\nThe exit code is 3 where the model refuses the KV "
      "policy.");
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
  add_kv_flag(*command, flags->kv_policy, "OPTIONS");
  command->add_option("--prompt-tokens", flags->num_prompt, "Tokens of each window that the policy judges; needs --kv")
      ->type_name("N")
      ->check(in_range(1, 1 << 30))
      ->needs("--kv")
      ->default_str("half of --window, or of a shorter text");
  add_exact_flag(*command, flags->model);
  add_memory_flags(*command, flags->model, "");
  add_kv_offload_flag(*command, flags->model);
  command->remove_option(command->get_option("--context"));  // the window is the context
  command->callback([flags] { run_perplexity(*flags); });
}

}  // namespace witan
