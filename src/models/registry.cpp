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
    {"qwen2_moe", "Qwen1.5-MoE, Qwen2-MoE", "qwen2moe", "qwen2_moe", true, make_qwen2_moe},
    {"qwen3", "Qwen3", "qwen3", "qwen3", false, make_qwen3},
    {"qwen3_moe", "Qwen3-MoE", "qwen3moe", "qwen3_moe", true, make_qwen3_moe},
    {"olmoe", "OLMoE", "olmoe", "olmoe", true, make_olmoe},
    {"deepseek2", "DeepSeek-V2", "deepseek2", "deepseek_v2", true, make_deepseek2},
    {"deepseek2", "DeepSeek-V3, R1", "deepseek2", "deepseek_v3", true, make_deepseek2},
    {"glm4_moe", "GLM-4.5", "glm4moe", "glm4_moe", true, make_glm4_moe},
    {"gpt_oss", "gpt-oss", "gpt-oss", "gpt_oss", true, make_gpt_oss},
    {"switch", "Switch Transformer", "", "switch_transformers", true, make_switch},
};

std::string_view name_in(const Architecture& architecture, CheckpointFormat format) {
  return format == CheckpointFormat::kGguf ? architecture.gguf : architecture.huggingface;
}

bool matches(const Architecture& architecture, const Checkpoint& checkpoint) {
  if (checkpoint.architecture() != name_in(architecture, checkpoint.format())) return false;
  const auto is_other_kind = [&](const Architecture& other) {
    return name_in(other, checkpoint.format()) == checkpoint.architecture() && other.moe != architecture.moe;
  };
  if (std::ranges::none_of(kArchitectures, is_other_kind)) return true;
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
    if (!name.empty() && std::ranges::find(known, name) == known.end()) known.push_back(name);
  }
  fail(ErrorCode::kUnsupported, "{}: unknown architecture \"{}\"; expected one of {}", checkpoint.path(),
       checkpoint.architecture(), fmt::join(known, ", "));
}

}  // namespace witan
