#include "models/registry.h"

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

bool has_experts(const Checkpoint& checkpoint) {
  return checkpoint.format() == CheckpointFormat::kGguf &&
         checkpoint.config().get_int(checkpoint.architecture() + ".expert_count", 0) > 0;
}

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

std::unique_ptr<Model> create_model(const Checkpoint& checkpoint) {
  const bool gguf = checkpoint.format() == CheckpointFormat::kGguf;
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    const std::string_view name = gguf ? architecture.gguf : architecture.huggingface;
    if (checkpoint.architecture() == name && (!gguf || architecture.moe == has_experts(checkpoint))) {
      return architecture.make(checkpoint);
    }
    if (known.find(name) == std::string::npos) known += fmt::format("{}{}", known.empty() ? "" : ", ", name);
  }
  fail(ErrorCode::kUnsupported, "{}: unknown architecture \"{}\"; expected one of {}", checkpoint.path(),
       checkpoint.architecture(), known);
}

}  // namespace witan
