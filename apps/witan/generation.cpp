#include "generation.h"

#include <csignal>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "progress_bar.h"

namespace witan {
namespace {

using nlohmann::json;

volatile std::sig_atomic_t interrupted = 0;

double rate(int64_t tokens, double seconds) { return seconds > 0.0 ? static_cast<double>(tokens) / seconds : 0.0; }

}  // namespace

json stats_json(const Engine& engine) {
  const EngineStats stats = engine.stats();
  const ModelInfo& info = engine.model_info();
  json expert_counts = json::array();  // by MoE layer
  const std::vector<int64_t> counts = engine.expert_counts();
  for (auto row = counts.begin(); row != counts.end(); row += info.num_experts) {
    expert_counts.push_back(std::vector<int64_t>(row, row + info.num_experts));
  }
  return {{"prompt_tokens", stats.prompt_tokens},
          {"generated_tokens", stats.generated_tokens},
          {"prefill_seconds", stats.prefill_seconds},
          {"prefill_tokens_per_second", rate(stats.prompt_tokens, stats.prefill_seconds)},
          {"decode_tokens", stats.decode_tokens},
          {"decode_seconds", stats.decode_seconds},
          {"decode_tokens_per_second", rate(stats.decode_tokens, stats.decode_seconds)},
          {"steps", stats.num_steps},
          {"schedule_seconds", stats.schedule_seconds},
          {"prefix_hit_tokens", stats.scheduler.num_prefix_hit_tokens},
          {"preemptions", stats.scheduler.num_preemptions},
          {"judged_for_room", stats.scheduler.num_judged_for_room},
          {"recomputed_tokens", stats.scheduler.num_recomputed_tokens},
          {"kv_peak_bytes", stats.kv.peak_block_bytes_held},
          {"weight_bytes", stats.weight_bytes_held},
          {"peak_memory_bytes", stats.peak_pool_bytes},
          {"distinct_experts", stats.distinct_experts},
          {"all_experts", static_cast<int64_t>(info.moe_layers.size()) * info.num_experts},
          {"expert_counts", std::move(expert_counts)}};
}

std::string stats_line(const EngineStats& stats, const ModelInfo& info) {
  std::string line = fmt::format(
      "prompt {} tokens, {:.2f} s, {:.1f} tokens/s | generated {} tokens, {:.2f} s, {:.1f} tokens/s | KV {:.1f} MiB",
      stats.prompt_tokens, stats.prefill_seconds, rate(stats.prompt_tokens, stats.prefill_seconds),
      stats.generated_tokens, stats.decode_seconds, rate(stats.decode_tokens, stats.decode_seconds),
      static_cast<double>(stats.kv.peak_block_bytes_held) / (1 << 20));
  if (stats.scheduler.num_prefix_hit_tokens > 0)
    line += fmt::format(" | {} prompt tokens from the prefix cache", stats.scheduler.num_prefix_hit_tokens);
  if (stats.scheduler.num_preemptions > 0) line += fmt::format(" | {} preemptions", stats.scheduler.num_preemptions);
  if (!info.moe_layers.empty()) {
    line += fmt::format(" | {} of {} experts used", stats.distinct_experts,
                        static_cast<int64_t>(info.moe_layers.size()) * info.num_experts);
  }
  return line;
}

std::unique_ptr<Engine> load_engine(const ModelOptions& options) {
  ProgressBar progress("loading");
  return std::make_unique<Engine>(options, [&](int64_t done, int64_t total) { progress.update(done, total); });
}

bool run_to_end(Engine& engine, const std::vector<RequestId>& requests, FunctionRef<void()> after_step) {
  interrupted = 0;
  struct sigaction once {};
  struct sigaction previous {};
  once.sa_handler = [](int) { interrupted = 1; };
  once.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &once, &previous);
  bool cancelled = false;
  while (engine.step()) {
    after_step();
    if (interrupted == 0 || cancelled) continue;
    cancelled = true;
    for (const RequestId request : requests) engine.cancel(request);
  }
  sigaction(SIGINT, &previous, nullptr);
  return cancelled;
}

std::string kv_auto_line(const KvAutoChoice& choice) {
  return fmt::format("--kv auto: {}: {}", choice.policy.empty() ? "every entry stays" : choice.policy, choice.reason);
}

}  // namespace witan
