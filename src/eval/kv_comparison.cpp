#include "eval/kv_comparison.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

#include "base/error.h"
#include "moe/telemetry.h"

namespace witan {
namespace {

// A request's continuation as the model sees it.
struct Reading {
  std::vector<double> logprobs;              // of each token
  std::vector<std::vector<int32_t>> routes;  // [tokens] [MoE layers, top_k]
  std::shared_ptr<const KvCompression> kv;
  std::string error;

  void take(const GenerationOutput& output) {
    kv = output.usage.kv;
    error = output.error;
    if (!output.token) return;
    logprobs.push_back(double{output.token->logprob});
    routes.push_back(output.routes);
  }
};

// Callbacks share the readings: should a later request be refused, the engine still has the earlier ones.
struct Window {
  std::shared_ptr<Reading> dense = std::make_shared<Reading>();
  std::shared_ptr<Reading> policy = std::make_shared<Reading>();
};

Window submit(Engine& engine, GenerationRequest request, const KvPolicy& policy) {
  Window window;
  request.wants_routes = true;
  engine.submit(request, [reading = window.dense](const GenerationOutput& output) { reading->take(output); });
  request.kv_policy = policy;
  engine.submit(request, [reading = window.policy](const GenerationOutput& output) { reading->take(output); });
  return window;
}

// Adds a window to sums over tokens.
void add(const Window& window, int32_t top_k, KvComparison& sums) {
  for (size_t i = 0; i < window.dense->logprobs.size(); ++i) {
    sums.dense.mean_nll -= window.dense->logprobs[i];
    sums.policy.mean_nll -= window.policy->logprobs[i];
    const std::span<const int32_t> dense = window.dense->routes[i];
    const std::span<const int32_t> policy = window.policy->routes[i];
    bool is_same = true;
    for (size_t layer = 0; layer < sums.route_overlap.size(); ++layer) {
      const auto first = layer * static_cast<size_t>(top_k);
      const double overlap = route_overlap(policy.subspan(first, static_cast<size_t>(top_k)),
                                           dense.subspan(first, static_cast<size_t>(top_k)));
      sums.route_overlap[layer] += overlap;
      is_same = is_same && overlap == 1.0;
    }
    sums.same_routes += is_same ? 1.0 : 0.0;
    ++sums.dense.num_tokens;
  }
  if (window.policy->kv == nullptr) return;
  sums.bytes_after += window.policy->kv->bytes_after;
  sums.bytes_before += window.policy->kv->bytes_before;
}

void turn_into_means(KvComparison& sums) {
  const auto num_tokens = static_cast<double>(sums.dense.num_tokens);
  sums.policy.num_tokens = sums.dense.num_tokens;
  sums.dense.mean_nll /= num_tokens;
  sums.policy.mean_nll /= num_tokens;
  sums.same_routes /= num_tokens;
  for (double& overlap : sums.route_overlap) overlap /= num_tokens;
}

}  // namespace

double KvComparison::mean_route_overlap() const {
  return std::accumulate(route_overlap.begin(), route_overlap.end(), 0.0) /
         static_cast<double>(std::max<size_t>(1, route_overlap.size()));
}

KvComparison compare_kv(Engine& engine, std::span<const TokenId> tokens, std::optional<TokenId> bos,
                        const KvPolicy& policy, int32_t window, int32_t num_prompt,
                        const std::function<void(int64_t done, int64_t total)>& progress) {
  constexpr size_t kTogether = 8;  // windows at once, so that decoding has rows to share weights
  const auto num_before = bos ? size_t{1} : size_t{0};
  if (num_prompt < 1 || num_prompt >= window) {
    fail(ErrorCode::kInvalidArgument, "a prompt of {} tokens in a window of {}: expected from 1 to {}", num_prompt,
         window, window - 1);
  }
  const size_t num_read = static_cast<size_t>(num_prompt) - num_before;  // of a window's tokens, by the prompt
  if (tokens.size() <= num_read) {
    fail(ErrorCode::kInvalidArgument, "a text of {} tokens has none behind a prompt of {}", tokens.size(), num_prompt);
  }
  const auto stride = static_cast<size_t>(window - num_prompt);
  const ModelInfo& info = engine.model_info();
  const auto num_predicted = static_cast<int64_t>(tokens.size() - num_read);
  KvComparison result;
  result.route_overlap.resize(info.moe_layers.size());

  size_t begin = 0;
  while (begin + num_read < tokens.size()) {
    std::vector<Window> windows;
    while (windows.size() < kTogether && begin + num_read < tokens.size()) {
      GenerationRequest request;
      const std::span<const TokenId> prompt = tokens.subspan(begin, num_read);
      const size_t first = begin + num_read;
      const std::span<const TokenId> rest = tokens.subspan(first, std::min(stride, tokens.size() - first));
      request.prompt.assign(prompt.begin(), prompt.end());
      if (bos) request.prompt.insert(request.prompt.begin(), *bos);
      request.continuation.assign(rest.begin(), rest.end());
      windows.push_back(submit(engine, std::move(request), policy));
      begin += stride;
    }
    while (engine.step()) {
      int64_t num_done = 2 * result.dense.num_tokens;
      for (const Window& w : windows) num_done += std::ssize(w.dense->logprobs) + std::ssize(w.policy->logprobs);
      if (progress) progress(num_done, 2 * num_predicted);
    }
    for (const Window& w : windows) {
      for (const Reading* reading : {w.dense.get(), w.policy.get()}) {
        if (!reading->error.empty()) fail(ErrorCode::kOutOfMemory, "{}", reading->error);
      }
      add(w, info.top_k, result);
    }
  }

  turn_into_means(result);
  return result;
}

}  // namespace witan
