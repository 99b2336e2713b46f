#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/isa.h"
#include "bench/machine_probe.h"
#include "bench/model_cost.h"
#include "commands.h"
#include "engine/engine.h"
#include "files.h"
#include "generation.h"
#include "help.h"
#include "model_flags.h"
#include "progress_bar.h"

namespace witan {
namespace {

using nlohmann::json;

struct BenchFlags {
  ModelFlags model;
  std::vector<int32_t> prompts = {512};
  std::vector<int32_t> depths = {0};
  std::vector<int32_t> batches = {1};
  std::vector<std::string> kv_policies;
  int32_t beside = 0;
  int32_t documents = 0;
  bool copy_depth = false;
  int32_t num_tokens = 64;
  int32_t rounds = 5;
  bool json_out = false;
  bool dry = false;
};

// What is measured: the speed of a prompt, of which a KV policy may reuse documents, or of generating when each of
// `batch` sequences has had `depth` tokens.
struct Case {
  int32_t prompt = 0;  // 0: generating
  int32_t depth = 0;
  int32_t batch = 0;
  std::optional<KvPolicy> kv_policy = {};
  int32_t beside = 0;     // tokens of a prompt that is computed in the same steps
  int32_t documents = 0;  // of a prompt

  std::string name() const {
    if (documents > 0) return fmt::format("prompt {} of {} documents, {}", prompt, documents, kv_policy->text);
    if (prompt > 0) return fmt::format("prompt {}", prompt);
    const std::string generate = fmt::format("generate, {} x {} deep", batch, depth);
    if (beside > 0) return fmt::format("{}, beside a prompt", generate);
    return kv_policy ? fmt::format("{}, {}", generate, kv_policy->text) : generate;
  }
  // Of each head, on average, once so many tokens of a sequence are computed.
  int32_t num_entries(int32_t num_tokens) const {
    return kv_policy ? kv_policy->num_entries(std::max(1, depth), num_tokens) : num_tokens;
  }
};

// One round of a case.
struct Measurement {
  double tokens_per_second = 0;
  double limit_share = 0;       // time that the machine would take at its limits over time taken; 0: unknown
  double distinct_experts = 0;  // mean over steps
  double bytes_per_token = 0;
  double operations_per_token = 0;
  double compression_seconds = 0;       // of the KV policy, per sequence
  double prompt_tokens_per_second = 0;  // of a prompt beside what is measured
  double first_tokens_per_second = 0;   // of a prompt whose documents none had before
};

// The machine's limits, at this moment.
struct Limits {
  double bandwidth = 0;         // bytes per second, all threads
  double bandwidth_of_one = 0;  // one thread
  // Operations per second, by Arithmetic; 0: unknown. Kernels that do not multiply BF16 do float32 instead.
  std::array<double, 3> per_core{};

  // Seconds that the machine needs for this at least, on so many cores.
  std::optional<double> seconds(const Operations& operations, int num_threads) const {
    double total = 0;
    for (size_t i = 0; i < operations.size(); ++i) {
      if (operations[i] == 0) continue;
      if (per_core[i] == 0) return std::nullopt;
      total += operations[i] / (per_core[i] * num_threads);
    }
    return total;
  }
};

class LimitProbe {
 public:
  static constexpr int64_t kBytes = int64_t{512} << 20;  // far more than caches hold

  explicit LimitProbe(int num_threads)
      : all_(num_threads), one_(1), pool_(kBytes), region_(pool_.allocate(MemoryTag::kActivations, kBytes)) {
    // Untouched pages would all be the same page of zeros.
    std::memset(region_->data(), 1, kBytes);
  }

  Limits measure() {
    const std::span<const std::byte> memory(region_->data(), kBytes);
    return {.bandwidth = read_bandwidth(all_, memory),
            .bandwidth_of_one = read_bandwidth(one_, memory.first(kBytes / 2)),
            .per_core = {int8_peak(), select_isa() == Isa::kAvx512Bf16 ? bf16_peak() : f32_peak(), f32_peak()}};
  }

 private:
  ThreadPool all_;
  ThreadPool one_;
  MemoryPool pool_;
  std::optional<MemoryRegion> region_;
};

double total(const Operations& operations) { return operations[0] + operations[1] + operations[2]; }

// Tokens before documents, and at least so many behind them.
constexpr int32_t kAround = 16;

// As it is, or in prompts of documents that are copied from others.
KvPolicy kv_policy_of(const std::string& text, bool copies) {
  const KvPolicy policy = parse_kv_policy(text);
  return copies ? parse_kv_policy("epic," + policy.text) : policy;
}

// Most tokens that a sequence computes by itself, where the rest of its prompt was there before.
int32_t most_own_tokens(const BenchFlags& flags) {
  if (!flags.copy_depth) return kKvBlockSize;
  int32_t most = 0;  // of those that policies judge by, which are computed though they be a document's
  for (const std::string& policy : flags.kv_policies) {
    most = std::max(most, kv_policy_of(policy, false).wants().num_query_tokens);
  }
  return most + 3 * kKvBlockSize;
}

// Steps that a prompt beside sequences that generate may take. With chunks of 128 tokens that are 500 steps each.
constexpr int32_t kMostStepsPerPromptToken = 4;

class Bench {
 public:
  Bench(const BenchFlags& flags, Engine& engine)
      : flags_(flags),
        engine_(engine),
        cost_(engine.checkpoint(), engine.model_info(), engine.options().precision, engine.options().kv_codec) {}

  Measurement run(const Case& c, const Limits& limits, uint64_t round) {
    if (c.beside > 0) return run_beside(c, round);
    if (c.documents > 0) return run_documents(c);
    return c.prompt > 0 ? run_prompt(c, limits, round) : run_generation(c, limits);
  }

 private:
  std::vector<TokenId> random_tokens(int32_t count, uint64_t seed) const {
    std::mt19937_64 random(seed);
    std::vector<TokenId> tokens(static_cast<size_t>(count));
    const auto vocab_size = static_cast<uint64_t>(engine_.model_info().vocab_size);
    for (TokenId& token : tokens) token = static_cast<TokenId>(random() % vocab_size);
    return tokens;
  }

  Measurement run_prompt(const Case& c, const Limits& limits, uint64_t round) {
    const EngineStats before = engine_.stats();
    // Other tokens in every round, so that none are in the prefix cache.
    submit(random_tokens(c.prompt, 1 + round * 1000003 + static_cast<uint64_t>(c.prompt)), 1);
    int64_t experts = 0;
    while (engine_.step()) experts += engine_.stats().last_step_experts;
    const EngineStats after = engine_.stats();
    const double seconds = after.prefill_seconds - before.prefill_seconds;

    Operations operations = cost_.token_operations();
    for (double& count : operations) count *= c.prompt;
    for (size_t i = 0; i < operations.size(); ++i) operations[i] += cost_.logit_operations()[i];
    operations[static_cast<size_t>(cost_.prompt_attention_arithmetic(select_isa()))] +=
        cost_.prompt_attention_operations(0, c.prompt);
    Measurement result = measurement(c.prompt, seconds, limits.seconds(operations, engine_.options().num_threads));
    result.operations_per_token = total(operations) / c.prompt;
    result.distinct_experts = static_cast<double>(experts) / static_cast<double>(after.num_steps - before.num_steps);
    return result;
  }

  // A prompt whose documents another had before, in the opposite order; to its first token.
  Measurement run_documents(const Case& c) {
    const uint64_t seed = ++num_times_documents_ * 1000037;  // others' documents are not found
    const int32_t num_tokens = (c.prompt - 2 * kAround) / c.documents;
    const auto request_of = [&](bool reversed) {
      GenerationRequest request;
      request.prompt = random_tokens(kAround, seed + (reversed ? 1 : 2) * 7919);
      for (int32_t i = 0; i < c.documents; ++i) {
        const auto document = static_cast<uint64_t>(reversed ? c.documents - 1 - i : i);
        const std::vector<TokenId> tokens = random_tokens(num_tokens, (seed << 16) + document);
        const auto begin = static_cast<int32_t>(request.prompt.size());
        request.prompt.insert(request.prompt.end(), tokens.begin(), tokens.end());
        request.kv_documents.push_back({begin, begin + num_tokens});
      }
      const int32_t num_left = c.prompt - static_cast<int32_t>(request.prompt.size());
      const std::vector<TokenId> question = random_tokens(num_left, seed + (reversed ? 3 : 4) * 7919);
      request.prompt.insert(request.prompt.end(), question.begin(), question.end());
      request.max_new_tokens = 1;
      request.kv_policy = c.kv_policy;
      return request;
    };
    const auto run = [&](bool reversed) {
      const EngineStats before = engine_.stats();
      last_reuse_.reset();
      submit(request_of(reversed));
      while (engine_.step()) {
      }
      const EngineStats after = engine_.stats();
      // Documents are copied while the next step is planned.
      return after.prefill_seconds - before.prefill_seconds + after.schedule_seconds - before.schedule_seconds;
    };
    const double seconds_before = run(false);
    Measurement result = measurement(c.prompt, run(true), std::nullopt);
    if (!last_reuse_ || last_reuse_->num_found_tokens < last_reuse_->num_reused_tokens) {
      fail(ErrorCode::kOutOfMemory, "{}: the KV cache has no room for the documents and the prompt", c.name());
    }
    result.first_tokens_per_second = c.prompt / seconds_before;
    return result;
  }

  Measurement run_generation(Case c, const Limits& limits) {
    if (c.kv_policy) c.kv_policy->max_generated = engine_.options().context_length - std::max(1, c.depth);
    const std::vector<RequestId> requests = begin_generating(c);
    double seconds = 0;
    double bytes = 0;
    double experts = 0;
    double operations = 0;
    int32_t steps = 0;
    const std::optional<KvPageReader> reader = c.kv_policy ? c.kv_policy->pages : std::nullopt;
    std::optional<KvDemotion> demotion;
    std::optional<int64_t> num_demoted;  // none: the older ones
    if (c.kv_policy && c.kv_policy->demotion) {
      demotion = c.kv_policy->demotion->of(engine_.model_info().kv_layers, engine_.options().kv_codec);
      const int32_t depth = std::max(1, c.depth);
      if (c.kv_policy->demotes_others) num_demoted = depth - c.kv_policy->num_kept(depth);
    }
    EngineStats before = engine_.stats();
    while (steps < flags_.num_tokens && engine_.step()) {
      const EngineStats after = engine_.stats();
      if (after.prompt_tokens == before.prompt_tokens && after.decode_tokens - before.decode_tokens == c.batch) {
        const int64_t entries = c.num_entries(std::max(1, c.depth) + steps) + 1;
        seconds += after.decode_seconds - before.decode_seconds;
        experts += static_cast<double>(after.last_step_experts);
        bytes +=
            static_cast<double>(cost_.dense_bytes()) +
            static_cast<double>(after.last_step_experts) * cost_.expert_bytes() +
            c.batch * (demotion ? cost_.kv_bytes(entries, *demotion, num_demoted) : cost_.kv_bytes(entries, reader));
        operations += total(cost_.token_operations()) + total(cost_.logit_operations()) +
                      cost_.decode_attention_operations(entries, reader);
        ++steps;
      }
      before = after;
    }
    cancel(requests);
    if (steps < flags_.num_tokens) {
      fail(ErrorCode::kOutOfMemory, "{}: the KV cache has no room for these sequences together", c.name());
    }
    const double tokens = static_cast<double>(steps) * c.batch;
    // How many layers are lazy is not known before, nor which pages are read, of demoted entries or others.
    const bool is_known = !c.kv_policy || (c.kv_policy->layers != KvLayerBudget::kLazy && !(demotion && reader) &&
                                           !c.kv_policy->automatic);
    Measurement result =
        measurement(tokens, seconds, is_known ? std::optional(bytes / limits.bandwidth) : std::nullopt);
    result.bytes_per_token = bytes / tokens;
    result.operations_per_token = operations / steps;
    result.distinct_experts = experts / steps;
    for (const auto& [request, taken] : compression_seconds_) result.compression_seconds += taken / c.batch;
    return result;
  }

  // From when a prompt comes until it is computed, while all sequences generate.
  Measurement run_beside(const Case& c, uint64_t round) {
    std::vector<RequestId> requests = begin_generating(c);
    for (int64_t before = num_generated_; engine_.step() && num_generated_ - before < c.batch;) before = num_generated_;
    const RequestId prompt = submit(random_tokens(c.beside, (round + 1) * 1000033 + static_cast<uint64_t>(c.batch) +
                                                                (static_cast<uint64_t>(c.depth) << 32)),
                                    1);  // found in no prefix cache
    requests.push_back(prompt);
    const EngineStats before = engine_.stats();
    const int64_t generated_before = num_generated_;
    while (last_finished_ != prompt && engine_.step()) {
    }
    const EngineStats after = engine_.stats();
    const auto steps = after.num_steps - before.num_steps;
    if (num_generated_ - generated_before < steps * c.batch + 1) {  // the prompt's token is one of them
      fail(ErrorCode::kOutOfMemory, "{}: not all sequences generated until the prompt was computed", c.name());
    }
    const double seconds =
        after.prefill_seconds - before.prefill_seconds + after.decode_seconds - before.decode_seconds;
    cancel(requests);
    Measurement result = measurement(static_cast<double>(steps) * c.batch, seconds, std::nullopt);
    result.prompt_tokens_per_second = c.beside / seconds;
    return result;
  }

  // Requests whose tokens are in the prefix cache but for less than a block or, of copies, a few, so that all begin to
  // generate within a few steps, none far deeper than the others.
  std::vector<RequestId> begin_generating(const Case& c) {
    std::vector<GenerationRequest> prompts;
    const std::vector<TokenId> document = flags_.copy_depth ? computed_document(c) : std::vector<TokenId>();
    for (int32_t i = 0; i < c.batch; ++i) {
      prompts.push_back(flags_.copy_depth ? copied_prompt(c, document, i) : own_prompt(c, i));
    }
    compression_seconds_.clear();
    ++num_times_generating_;
    std::vector<RequestId> requests;
    for (GenerationRequest& request : prompts) {
      request.max_new_tokens = engine_.options().context_length;
      if (c.kv_policy) request.kv_policy = kv_policy_of(c.kv_policy->text, flags_.copy_depth);
      // Under another name each time: what it leaves of a prompt is not found again.
      if (c.kv_policy) request.kv_policy->text += fmt::format(" {}", num_times_generating_);
      requests.push_back(submit(std::move(request)));
    }
    return requests;
  }

  // The same tokens in every round, computed and in the prefix cache.
  GenerationRequest own_prompt(const Case& c, int32_t i) {
    GenerationRequest request;
    request.prompt = random_tokens(std::max(1, c.depth), static_cast<uint64_t>(i) << 32);
    submit(request.prompt, 1);
    while (engine_.step()) {
    }
    return request;
  }

  // What all sequences and rounds have, computed and in the prefix cache.
  std::vector<TokenId> computed_document(const Case& c) {
    std::vector<TokenId> document = random_tokens((c.depth - 2 * kAround) / kKvBlockSize * kKvBlockSize, 1);
    submit(document, 1);
    while (engine_.step()) {
    }
    return document;
  }

  // The document between tokens of this sequence's own.
  GenerationRequest copied_prompt(const Case& c, const std::vector<TokenId>& document, int32_t i) const {
    const auto num_copied = static_cast<int32_t>(document.size());
    const uint64_t seed = static_cast<uint64_t>(i) << 32;
    const std::vector<TokenId> behind = random_tokens(c.depth - kAround - num_copied, seed + 3);
    GenerationRequest request;
    request.prompt = random_tokens(kAround, seed + 2);
    request.prompt.insert(request.prompt.end(), document.begin(), document.end());
    request.prompt.insert(request.prompt.end(), behind.begin(), behind.end());
    request.kv_documents = {{kAround, kAround + num_copied}};
    request.kv_policy = parse_kv_policy("epic");
    return request;
  }

  void cancel(const std::vector<RequestId>& requests) {
    for (const RequestId request : requests) engine_.cancel(request);
    while (engine_.step()) {
    }
  }

  RequestId submit(std::vector<TokenId> prompt, int32_t max_new_tokens) {
    GenerationRequest request;
    request.max_new_tokens = max_new_tokens;
    request.prompt = std::move(prompt);
    return submit(std::move(request));
  }

  RequestId submit(GenerationRequest request) {
    request.ignore_end_tokens = true;
    return engine_.submit(request, [this](const GenerationOutput& output) {
      if (output.finish == FinishReason::kError) throw Error(ErrorCode::kOutOfMemory, output.error);
      num_generated_ += output.token ? 1 : 0;
      if (output.finish) last_finished_ = output.request;
      last_reuse_ = output.usage.kv_reuse;
      if (output.usage.kv != nullptr) compression_seconds_[output.request] = output.usage.kv->seconds;
    });
  }

  static Measurement measurement(double tokens, double seconds, std::optional<double> least_seconds) {
    return {.tokens_per_second = tokens / seconds, .limit_share = least_seconds ? *least_seconds / seconds : 0.0};
  }

  const BenchFlags& flags_;
  Engine& engine_;
  ModelCost cost_;
  std::map<RequestId, double> compression_seconds_;
  int64_t num_generated_ = 0;
  int64_t num_times_generating_ = 0;
  uint64_t num_times_documents_ = 0;
  RequestId last_finished_ = 0;
  std::optional<KvReuseCount> last_reuse_;
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

template <typename T, typename Member>
double median_of(const std::vector<T>& items, Member member) {
  std::vector<double> values;
  for (const T& item : items) values.push_back(std::invoke(member, item));
  return median(std::move(values));
}

json case_json(const Case& c, const std::vector<Measurement>& rounds) {
  json speeds = json::array();
  for (const Measurement& round : rounds) speeds.push_back(round.tokens_per_second);
  json result = {{"name", c.name()},
                 {"tokens_per_second", median_of(rounds, &Measurement::tokens_per_second)},
                 {"rounds", speeds}};
  if (c.beside == 0 && c.documents == 0) {
    result["operations_per_token"] = rounds.front().operations_per_token;
    result["distinct_experts_per_step"] = median_of(rounds, &Measurement::distinct_experts);
  }
  if (c.prompt > 0) {
    result["prompt"] = c.prompt;
  } else {
    result.update({{"depth", c.depth}, {"batch", c.batch}});
    if (c.beside == 0) result["bytes_per_token"] = median_of(rounds, &Measurement::bytes_per_token);
  }
  if (c.beside > 0) {
    result["beside"] = c.beside;
    result["prompt_tokens_per_second"] = median_of(rounds, &Measurement::prompt_tokens_per_second);
  }
  if (c.documents > 0) {
    result["kv"] = c.kv_policy->text;
    result["documents"] = c.documents;
    result["first_tokens_per_second"] = median_of(rounds, &Measurement::first_tokens_per_second);
  } else if (c.kv_policy) {
    result["kv"] = c.kv_policy->text;
    result["compression_seconds"] = median_of(rounds, &Measurement::compression_seconds);
  }
  const double share = median_of(rounds, &Measurement::limit_share);
  if (share > 0) result["limit_share"] = share;
  return result;
}

json limits_json(const std::vector<Limits>& rounds) {
  json result = {{"read_bandwidth", median_of(rounds, &Limits::bandwidth)},
                 {"read_bandwidth_of_one_thread", median_of(rounds, &Limits::bandwidth_of_one)}};
  const char* names[] = {"int8_operations_of_one_core", "bf16_operations_of_one_core", "f32_operations_of_one_core"};
  for (size_t i = 0; i < 3; ++i) {
    const double peak = median_of(rounds, [i](const Limits& limits) { return limits.per_core[i]; });
    if (peak > 0) result[names[i]] = peak;
  }
  return result;
}

int64_t peak_process_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

void print_results(const json& result) {
  const json& limits = result["limits"];
  print_stdout("{}, {}, {} threads, {}, KV {}\n", result["model"].get<std::string>(),
               result["architecture"].get<std::string>(), result["threads"].get<int>(),
               result["isa"].get<std::string>(), result["kv_type"].get<std::string>());
  const auto giga = [&](const char* key) { return limits.value(key, 0.0) * 1e-9; };
  print_stdout(
      "limits: read {:.1f} GB/s, one thread {:.1f}; a core: int8 {:.0f} GOPS, bf16 {:.0f} and f32 {:.0f} GFLOPS\n",
      giga("read_bandwidth"), giga("read_bandwidth_of_one_thread"), giga("int8_operations_of_one_core"),
      giga("bf16_operations_of_one_core"), giga("f32_operations_of_one_core"));
  size_t width = 28;
  for (const json& c : result["cases"]) width = std::max(width, c["name"].get_ref<const std::string&>().size() + 1);
  print_stdout("{:<{}}{:>10}{:>18}{:>11}{:>14}{:>14}{:>9}\n", "case", width, "tokens/s", "least..most", "of limit",
               "MB/token", "Mop/token", "experts");
  for (const json& c : result["cases"]) {
    const auto rounds = c["rounds"].get<std::vector<double>>();
    const auto [least, most] = std::ranges::minmax(rounds);
    const std::string share =
        c.contains("limit_share") ? fmt::format("{:.0f} %", 100 * c["limit_share"].get<double>()) : "unknown";
    const auto known = [&](const char* key, double unit) {
      return c.contains(key) ? fmt::format("{:.1f}", c[key].get<double>() * unit) : std::string();
    };
    print_stdout("{:<{}}{:>10.1f}{:>18}{:>11}{:>14}{:>14}{:>9}\n", c["name"].get<std::string>(), width,
                 c["tokens_per_second"].get<double>(), fmt::format("{:.1f}..{:.1f}", least, most), share,
                 known("bytes_per_token", 1e-6), known("operations_per_token", 1e-6),
                 known("distinct_experts_per_step", 1));
  }
  for (const json& c : result["cases"]) {
    if (!c.contains("compression_seconds")) continue;
    print_stdout("{}: chosen and freed in {:.3f} s a prompt\n", c["name"].get<std::string>(),
                 c["compression_seconds"].get<double>());
  }
  for (const json& c : result["cases"]) {
    if (!c.contains("documents")) continue;
    print_stdout("{}: {:.1f} tokens/s where no other had them before\n", c["name"].get<std::string>(),
                 c["first_tokens_per_second"].get<double>());
  }
  for (const json& c : result["cases"]) {
    if (!c.contains("beside")) continue;
    print_stdout("{}: {:.1f} tokens/s of the prompt\n", c["name"].get<std::string>(),
                 c["prompt_tokens_per_second"].get<double>());
  }
  print_stdout("peak memory {:.1f} MiB, of it big allocations {:.1f} MiB\n",
               result["peak_process_bytes"].get<double>() / (1 << 20),
               result["peak_pool_bytes"].get<double>() / (1 << 20));
}

// What the scheduler and the KV cache's tables cost when `batch` sequences generate, without a model. The tables are
// those of Qwen3-30B-A3B; their blocks are small, as nothing is written into them.
json dry_run(int32_t batch, int32_t num_steps) {
  constexpr int32_t kLayers = 48;
  constexpr int32_t kHeads = 4;
  constexpr int32_t kPrompt = 100;
  using Clock = std::chrono::steady_clock;
  const std::vector<KvLayerSpec> layers(kLayers, {.num_kv_heads = kHeads, .key_dim = 1, .value_dim = 1});
  const int32_t tokens = kPrompt + num_steps + batch + kKvBlockSize;  // some generate while others are read
  const auto bytes = static_cast<size_t>(batch * kv_bytes_for_tokens(layers, KvCodec::kF32, tokens, tokens));
  MemoryPool pool(2 * bytes + (size_t{64} << 20));
  KvCache kv(pool, {.layers = layers, .codec = KvCodec::kF32, .capacity_bytes = bytes});
  Scheduler scheduler(kv, {.max_step_tokens = std::max(512, batch), .max_sequences = batch, .context_length = tokens});
  for (int32_t i = 0; i < batch; ++i) {
    std::vector<TokenId> prompt(kPrompt, i);
    scheduler.add({.prompt = std::move(prompt), .max_new_tokens = tokens - kPrompt});
  }
  std::vector<double> schedule_seconds;
  std::vector<double> commit_seconds;
  std::vector<TokenId> sampled;
  while (std::ssize(schedule_seconds) < num_steps) {
    const auto start = Clock::now();
    const StepPlan plan = scheduler.schedule();
    const auto scheduled = Clock::now();
    sampled.assign(static_cast<size_t>(std::ranges::count_if(plan.slices, &ScheduledSlice::samples)), 7);
    const auto computed = Clock::now();
    scheduler.commit(plan, sampled);
    if (plan.num_tokens != batch || std::ssize(plan.slices) != batch) continue;  // prompts
    schedule_seconds.push_back(std::chrono::duration<double>(scheduled - start).count());
    commit_seconds.push_back(std::chrono::duration<double>(Clock::now() - computed).count());
  }
  return {{"batch", batch}, {"schedule_seconds", median(schedule_seconds)}, {"commit_seconds", median(commit_seconds)}};
}

void run_dry(const BenchFlags& flags) {
  json result = json::array();
  for (const int32_t batch : flags.batches) result.push_back(dry_run(batch, flags.num_tokens));
  if (flags.json_out) {
    print_stdout("{}\n", json{{"dry", result}}.dump(2));
    return;
  }
  for (const json& c : result) {
    print_stdout("{:>5} sequences: schedule {:.1f} us, commit {:.1f} us a step\n", c["batch"].get<int>(),
                 1e6 * c["schedule_seconds"].get<double>(), 1e6 * c["commit_seconds"].get<double>());
  }
}

void run_bench(const BenchFlags& flags) {
  std::vector<Case> cases;
  std::vector<std::string> generating;  // policies
  for (const std::string& policy : flags.kv_policies) {
    if (!parse_kv_policy(policy).reuse) {
      kv_policy_of(policy, flags.copy_depth);  // or refuses what does not go with copies
      generating.push_back(policy);
    } else if (flags.documents == 0) {
      fail(ErrorCode::kInvalidArgument, "--kv {}: prompts have no documents; give --documents", policy);
    }
  }
  for (const int32_t prompt : flags.prompts) {
    cases.push_back({.prompt = prompt});
    if (flags.documents > 0 && prompt < 2 * kAround + kKvBlockSize * flags.documents) {
      fail(ErrorCode::kInvalidArgument, "a prompt of {} tokens is too short for {} documents; at least {} are needed",
           prompt, flags.documents, 2 * kAround + kKvBlockSize * flags.documents);
    }
    for (const std::string& policy : flags.kv_policies) {
      if (const KvPolicy reuse = parse_kv_policy(policy); reuse.reuse) {
        cases.push_back({.prompt = prompt, .kv_policy = reuse, .documents = flags.documents});
      }
    }
  }
  if (flags.num_tokens > 0) {
    for (const int32_t depth : flags.depths) {
      if (flags.copy_depth && depth < 2 * kAround + kKvBlockSize) {
        fail(ErrorCode::kInvalidArgument,
             "--copy-depth: a depth of {} has no room for a document; at least {} is needed", depth,
             2 * kAround + kKvBlockSize);
      }
      for (const int32_t batch : flags.batches) {
        cases.push_back({.depth = depth, .batch = batch});
        if (flags.beside > 0) cases.push_back({.depth = depth, .batch = batch, .beside = flags.beside});
        for (const std::string& policy : generating) {
          cases.push_back({.depth = depth, .batch = batch, .kv_policy = parse_kv_policy(policy)});
        }
      }
    }
  }
  if (cases.empty()) fail(ErrorCode::kInvalidArgument, "nothing to measure: no --prompt, and --num-tokens 0");
  ModelOptions options = flags.model.finished();
  options.with_tokenizer = false;
  int32_t longest = 1;
  for (const Case& c : cases) {
    longest = std::max({longest, c.prompt, c.beside, std::max(1, c.depth) + flags.num_tokens});
    // Generated while a prompt is computed, in chunks and with steps in between.
    if (c.beside > 0) longest = std::max(longest, c.depth + kMostStepsPerPromptToken * c.beside + 64);
  }
  if (flags.beside == 0) options.max_decode_slowdown = 0;
  // What a sequence generates while the others' last prompt tokens are computed.
  const int32_t most_together = *std::ranges::max_element(flags.batches);
  options.context_length = longest + 8 +
                           most_together * most_own_tokens(flags) /
                               std::max(1, std::min(options.max_step_tokens, options.max_mixed_prompt_tokens) / 2);
  options.max_sequences = std::max(options.max_sequences, most_together);
  const std::unique_ptr<Engine> engine = load_engine(options);
  if (engine->model_info().has_encoder) {
    fail(ErrorCode::kUnsupported, "{}: a model with an encoder; bench measures decoders alone", options.path);
  }
  LimitProbe probe(engine->options().num_threads);
  Bench bench(flags, *engine);

  std::vector<std::vector<Measurement>> results(cases.size());
  std::vector<Limits> limits;
  const auto num_rounds = static_cast<size_t>(flags.rounds) + 1;
  ProgressBar bar("measuring");
  // Every round has every case, so that drift of the machine hits all alike. The first warms up and does not count.
  for (size_t round = 0; round < num_rounds; ++round) {
    for (size_t i = 0; i < cases.size(); ++i) {
      limits.push_back(probe.measure());
      const Measurement measured = bench.run(cases[i], limits.back(), round);
      if (round > 0) results[i].push_back(measured);
      bar.update(static_cast<int64_t>(round * cases.size() + i + 1), static_cast<int64_t>(num_rounds * cases.size()));
    }
  }
  bar.wipe();

  const EngineStats stats = engine->stats();
  json result = {{"model", options.path},
                 {"architecture", engine->model_info().architecture},
                 {"isa", isa_name(select_isa())},
                 {"threads", engine->options().num_threads},
                 {"kv_type", kv_codec_name(options.kv_codec)},
                 {"exact", flags.model.exact},
                 {"copied_depth", flags.copy_depth},
                 {"limits", limits_json(limits)},
                 {"peak_process_bytes", peak_process_bytes() - LimitProbe::kBytes},
                 {"peak_pool_bytes", stats.peak_pool_bytes},
                 {"cases", json::array()}};
  for (size_t i = 0; i < cases.size(); ++i) result["cases"].push_back(case_json(cases[i], results[i]));
  if (flags.json_out) {
    print_stdout("{}\n", result.dump(2));
  } else {
    print_results(result);
  }
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = app.add_subcommand("bench", "Measure speed against the machine's limits");
  command->footer(
      "Prompts are of random tokens. Generating is measured over the steps in which every sequence generates; each has "
      "KV entries of its own and, without --copy-depth, tokens. Every round has every case, one after the other, and "
      "the medians count; a first round warms "
      "up.\n\nOf limit: for prompts, the time of all multiplications at the core's peaks over the time taken; for "
      "generating, the bytes that the steps had to read (weights, the experts that were chosen, KV entries) at the "
      "read bandwidth. Limits are measured before each case, and need AVX-512 with VNNI and BF16; machines drift.");
  CLI::Option* model = add_model_flag(*command, flags->model.options.path)->required(false);
  command
      ->add_flag("--dry", flags->dry,
                 "No model: time the scheduler and the bookkeeping of the KV cache for --batch sequences that generate")
      ->excludes(model);
  const auto add_list = [&](const char* name, std::vector<int32_t>& values, int32_t low, const char* help,
                            const char* fallback) {
    command->add_option(name, values, help)
        ->type_name("N,N,...")
        ->delimiter(',')
        ->check(in_range(low, 1 << 24))
        ->default_str(fallback);
  };
  add_list("-p,--prompt", flags->prompts, 1, "Tokens of prompts", "512");
  add_list("-d,--depth", flags->depths, 0, "Tokens that a sequence has before it generates", "0");
  add_list("-b,--batch", flags->batches, 1, "Sequences that generate together", "1");
  add_texts(*command, "--kv", flags->kv_policies,
            "Generate with this KV policy too, besides all entries, or where it reuses documents compute prompts of "
            "--documents with it; may be repeated")
      ->type_name("POLICY")
      ->default_str("none");
  command
      ->add_option("--beside", flags->beside, "Generate also while a prompt of so many tokens is computed; 0: do not")
      ->type_name("N")
      ->check(in_range(0, 1 << 24))
      ->capture_default_str();
  command
      ->add_option("--documents", flags->documents,
                   "Prompts of so many documents, which another had before in other places, with the KV policies that "
                   "reuse them")
      ->type_name("N")
      ->check(in_range(0, 1 << 16))
      ->capture_default_str();
  command->add_flag("--copy-depth", flags->copy_depth,
                    "Tokens of --depth are a document that is computed once, and of which each sequence has a copy "
                    "behind tokens of its own, as with --kv epic: many long sequences begin to generate in seconds");
  command->add_option("-n,--num-tokens", flags->num_tokens, "Tokens that each sequence generates; 0: prompts alone")
      ->type_name("N")
      ->check(in_range(0, 1 << 20))
      ->capture_default_str();
  command->add_option("-r,--rounds", flags->rounds, "Rounds")
      ->type_name("N")
      ->check(in_range(1, 1000))
      ->capture_default_str();
  command->add_flag("--json", flags->json_out,
                    "Print JSON; speeds in tokens, limits in bytes and operations, per second");
  add_exact_flag(*command, flags->model);
  add_memory_flags(*command, flags->model, "");
  add_kv_offload_flag(*command, flags->model);
  command->remove_option(command->get_option("--context"));  // as long as the cases need
  command->add_option("--step-tokens", flags->model.options.max_step_tokens, "Most tokens computed in one step")
      ->type_name("N")
      ->check(in_range(1, 1 << 20))
      ->capture_default_str();
  command
      ->add_option("--mixed-tokens", flags->model.options.max_mixed_prompt_tokens,
                   "Most prompt tokens computed in a step in which other sequences generate")
      ->type_name("N")
      ->check(in_range(1, 1 << 20))
      ->capture_default_str();
  command
      ->add_option(
          "--max-slowdown", flags->model.options.max_decode_slowdown,
          "How many times slower sequences may generate, on average, while a prompt is computed: more than 1, or "
          "0: any")
      ->type_name("X")
      ->capture_default_str();
  command->callback([flags, model] {
    if (flags->dry) {
      if (flags->num_tokens == 0) throw CLI::ValidationError("--dry", "needs --num-tokens of at least 1");
      run_dry(*flags);
    } else if (model->count() > 0) {
      run_bench(*flags);
    } else {
      throw CLI::RequiredError("One of --model and --dry");
    }
  });
}

}  // namespace witan
