#include "engine/memory_plan.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <fstream>

#include "memory/memory_pool.h"

namespace witan {
namespace {

// Arenas take memory in regions of up to 64 MiB, of which the last is not filled.
constexpr int64_t kArenaSlackBytes = int64_t{64} << 20;
// Scratch that does not grow with the step: states of attention splits, the threads' own buffers.
constexpr int64_t kFixedActivationBytes = int64_t{40} << 20;
constexpr int64_t kActivationBytesPerThread = int64_t{4} << 20;

int64_t with_slack(int64_t bytes) { return bytes + std::min(bytes, kArenaSlackBytes); }

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

}  // namespace

int64_t packed_bytes(const TensorEntry& tensor) {
  if (tensor.is_part && tensor.dtype == DType::kMXFP4) {
    // Blocks [num_experts, rows, cols / 32, 16] and scales without the last; both together are counted with the blocks.
    if (tensor.shape.size() != 4) return 0;
    const int64_t cols = tensor.shape[2] * quant_type(tensor.dtype).block_size;
    return tensor.shape[0] * ((tensor.shape[1] + kPanelRows - 1) / kPanelRows) * panel_bytes(tensor.dtype, cols);
  }
  if (tensor.shape.size() < 2) return tensor.num_elements() * static_cast<int64_t>(sizeof(float));
  const int64_t cols = tensor.shape.back();
  const int64_t rows = tensor.shape[tensor.shape.size() - 2];
  int64_t matrices = 1;
  for (size_t i = 0; i + 2 < tensor.shape.size(); ++i) matrices *= tensor.shape[i];
  return matrices * ((rows + kPanelRows - 1) / kPanelRows) * panel_bytes(tensor.dtype, cols);
}

bool is_embedding_tensor(std::string_view name) {
  return name == "token_embd.weight" || name == "model.embed_tokens.weight";
}
bool is_output_tensor(std::string_view name) { return name == "output.weight" || name == "lm_head.weight"; }

bool is_expert_tensor(std::string_view name) {
  if (name.find("_exps.") != std::string_view::npos || name.find(".experts.") != std::string_view::npos) return true;
  // Older GGUF files: blk.N.ffn_gate.E.weight
  const size_t ffn = name.find(".ffn_");
  if (ffn == std::string_view::npos || !name.ends_with(".weight")) return false;
  const std::string_view middle = name.substr(ffn + 1, name.size() - ffn - 1 - std::string_view(".weight").size());
  const size_t dot = middle.find('.');
  return dot != std::string_view::npos && dot + 1 < middle.size() && std::isdigit(middle[dot + 1]) != 0;
}

MemoryPlan plan_memory(const Checkpoint& checkpoint, const ModelInfo& model, const MemoryPlanRequest& request) {
  MemoryPlan plan;
  plan.budget_bytes = request.budget_bytes;
  plan.context_tokens = request.context_tokens;
  int64_t weights = model.derived_weight_bytes;
  int64_t experts = 0;
  bool has_output = false;
  const TensorEntry* embedding = nullptr;
  for (const TensorEntry& tensor : checkpoint.tensors()) {
    if (is_embedding_tensor(tensor.name)) {
      embedding = &tensor;  // kept row by row, as in the file
      weights += std::ssize(tensor.data);
      continue;
    }
    has_output = has_output || is_output_tensor(tensor.name);
    (is_expert_tensor(tensor.name) ? experts : weights) += packed_bytes(tensor);
  }
  if (!has_output && embedding != nullptr) weights += packed_bytes(*embedding);
  plan.weight_bytes = with_slack(weights);
  plan.expert_bytes = with_slack(experts);

  plan.activation_bytes =
      request.max_step_tokens *
          (model.activation_bytes_per_token + request.num_threads * model.thread_bytes_per_token) +
      request.context_tokens * model.activation_bytes_per_entry +
      request.max_logit_rows * (model.vocab_size + int64_t{model.model_dim} * 2) * static_cast<int64_t>(sizeof(float)) +
      kFixedActivationBytes + request.num_threads * kActivationBytesPerThread;

  const auto kv_bytes = [&](int64_t num_tokens) {
    return kv_bytes_for_tokens(model.kv_layers, request.kv_codec, num_tokens, request.max_step_tokens) +
           kv_bytes_for_tokens(model.input_layers, request.kv_codec, num_tokens, num_tokens);
  };
  plan.kv_context_bytes = kv_bytes(request.context_tokens);
  // Beyond all windows, where only layers without one still grow.
  int64_t beyond = request.max_step_tokens + 2 * kKvBlockSize;
  for (const KvLayerSpec& layer : model.kv_layers) {
    beyond = std::max<int64_t>(beyond, layer.window + request.max_step_tokens + 2 * kKvBlockSize);
  }
  plan.kv_bytes_per_token = (kv_bytes(beyond + kKvBlockSize) - kv_bytes(beyond) + kKvBlockSize - 1) / kKvBlockSize;
  plan.kv_available_bytes = plan.budget_bytes - plan.weight_bytes - plan.expert_bytes - plan.activation_bytes;
  return plan;
}

std::string describe(const MemoryPlan& plan) {
  return fmt::format(
      "memory budget      {:10.1f} MiB\n"
      "  weights          {:10.1f} MiB\n"
      "  routed experts   {:10.1f} MiB\n"
      "  activations      {:10.1f} MiB\n"
      "  left for KV      {:10.1f} MiB   ({} bytes per token; {} tokens need {:.1f} MiB)\n",
      mib(plan.budget_bytes), mib(plan.weight_bytes), mib(plan.expert_bytes), mib(plan.activation_bytes),
      mib(plan.kv_available_bytes), plan.kv_bytes_per_token, plan.context_tokens, mib(plan.kv_context_bytes));
}

int64_t default_memory_budget() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  int64_t kib = 0;
  std::string unit;
  while (meminfo >> key >> kib) {
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") return kib * 1024 / 10 * 9;
  }
  return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE) / 10 * 9;
}

}  // namespace witan
