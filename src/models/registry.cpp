#include "models/registry.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "models/models.h"

namespace witan {
namespace {

// GGUF files of Mixtral call themselves "llama" and have experts.
constexpr Architecture kArchitectures[] = {
    {"llama", "Llama", "llama", "llama", false, make_llama},
    {"mixtral", "Mixtral", "llama", "mixtral", true, make_mixtral},
    {"qwen3", "Qwen3", "qwen3", "qwen3", false, make_qwen3},
    {"qwen3_moe", "Qwen3-MoE", "qwen3moe", "qwen3_moe", true, make_qwen3_moe},
    {"deepseek2", "DeepSeek-V2", "deepseek2", "deepseek_v2", true, make_deepseek2},
};

std::string_view name_in(const Architecture& architecture, CheckpointFormat format) {
  return format == CheckpointFormat::kGguf ? architecture.gguf : architecture.huggingface;
}

bool matches(const Architecture& architecture, const Checkpoint& checkpoint) {
  if (checkpoint.architecture() != name_in(architecture, checkpoint.format())) return false;
  const auto same_name = [&](const Architecture& other) {
    return name_in(other, checkpoint.format()) == checkpoint.architecture();
  };
  if (std::ranges::count_if(kArchitectures, same_name) == 1) return true;
  const bool has_experts = checkpoint.config().get_int(checkpoint.architecture() + ".expert_count", 0) > 0;
  return architecture.moe == has_experts;
}

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

std::unique_ptr<Model> create_model(const Checkpoint& checkpoint) {
  std::vector<std::string_view> known;
  for (const Architecture& architecture : kArchitectures) {
    if (matches(architecture, checkpoint)) return architecture.make(checkpoint);
    const std::string_view name = name_in(architecture, checkpoint.format());
    if (std::ranges::find(known, name) == known.end()) known.push_back(name);
  }
  fail(ErrorCode::kUnsupported, "{}: unknown architecture \"{}\"; expected one of {}", checkpoint.path(),
       checkpoint.architecture(), fmt::join(known, ", "));
}

}  // namespace witan
