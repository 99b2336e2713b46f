#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "io/make_model.h"

namespace witan {
namespace {

// Dimensions of published models are those of their config.json.
constexpr auto kPresets = std::to_array<ModelPreset>({
    {.arch = "llama",
     .name = "mixtral-8x7b",
     .description = "Mixtral 8x7B v0.1: 46.7 B parameters, 8 experts, top 2",
     .num_layers = 32,
     .model_dim = 4096,
     .vocab_size = 32000,
     .context_length = 32768,
     .num_heads = 32,
     .rms_epsilon = 1e-5f,
     .rope_freq_base = 1e6f,
     .num_kv_heads = 8,
     .head_dim = 128,
     .num_experts = 8,
     .experts_per_token = 2,
     .expert_dim = 14336},
    {.arch = "llama",
     .name = "tiny",
     .description = "for tests: dense, 2 layers, a kv head per head",
     .num_layers = 2,
     .model_dim = 256,
     .vocab_size = 512,
     .context_length = 8192,
     .num_heads = 4,
     .rms_epsilon = 1e-5f,
     .rope_freq_base = 5e5f,
     .num_kv_heads = 4,
     .head_dim = 64,
     .ffn_dim = 512},
    {.arch = "llama",
     .name = "tiny-mixtral",
     .description = "for tests: 2 layers of 4 experts, top 2",
     .num_layers = 2,
     .model_dim = 256,
     .vocab_size = 512,
     .context_length = 8192,
     .num_heads = 4,
     .rms_epsilon = 1e-5f,
     .rope_freq_base = 1e6f,
     .num_kv_heads = 2,
     .head_dim = 64,
     .num_experts = 4,
     .experts_per_token = 2,
     .expert_dim = 256},
    {.arch = "qwen3",
     .name = "tiny",
     .description = "for tests: dense, 2 layers, tied embeddings",
     .num_layers = 2,
     .model_dim = 256,
     .vocab_size = 512,
     .context_length = 8192,
     .num_heads = 4,
     .rms_epsilon = 1e-6f,
     .rope_freq_base = 1e6f,
     .num_kv_heads = 2,
     .head_dim = 128,
     .norm_heads = true,
     .ffn_dim = 512,
     .tied_embeddings = true},
    {.arch = "qwen3moe",
     .name = "qwen3-30b-a3b",
     .description = "Qwen3-30B-A3B: 30.5 B parameters, 128 experts, top 8",
     .num_layers = 48,
     .model_dim = 2048,
     .vocab_size = 151936,
     .context_length = 40960,
     .num_heads = 32,
     .rms_epsilon = 1e-6f,
     .rope_freq_base = 1e6f,
     .num_kv_heads = 4,
     .head_dim = 128,
     .norm_heads = true,
     .ffn_dim = 6144,
     .num_experts = 128,
     .experts_per_token = 8,
     .expert_dim = 768},
    {.arch = "qwen3moe",
     .name = "olmoe-1b-7b-dims",
     .description = "the dimensions of OLMoE-1B-7B (6.9 B parameters, 64 experts, top 8) in Qwen3's architecture, not "
                    "OLMoE's own: q and k are normed per head, routing weights renormalised",
     .num_layers = 16,
     .model_dim = 2048,
     .vocab_size = 50304,
     .context_length = 4096,
     .num_heads = 16,
     .rms_epsilon = 1e-5f,
     .rope_freq_base = 1e4f,
     .num_kv_heads = 16,
     .head_dim = 128,
     .norm_heads = true,
     .ffn_dim = 1024,
     .num_experts = 64,
     .experts_per_token = 8,
     .expert_dim = 1024},
    {.arch = "qwen3moe",
     .name = "tiny",
     .description = "for tests: 2 layers of 8 experts, top 2",
     .num_layers = 2,
     .model_dim = 256,
     .vocab_size = 512,
     .context_length = 8192,
     .num_heads = 4,
     .rms_epsilon = 1e-6f,
     .rope_freq_base = 1e6f,
     .num_kv_heads = 2,
     .head_dim = 128,
     .norm_heads = true,
     .ffn_dim = 512,
     .num_experts = 8,
     .experts_per_token = 2,
     .expert_dim = 256},
    {.arch = "deepseek2",
     .name = "deepseek-v2-lite",
     .description = "DeepSeek-V2-Lite: 15.7 B parameters, latent attention, 64 experts, top 6, 2 shared",
     .num_layers = 27,
     .model_dim = 2048,
     .vocab_size = 102400,
     .context_length = 163840,
     .num_heads = 16,
     .rms_epsilon = 1e-6f,
     .rope_freq_base = 1e4f,
     .latent_dim = 512,
     .content_dim = 128,
     .rotated_dim = 64,
     .value_dim = 128,
     .yarn_factor = 40,
     .yarn_context = 4096,
     .ffn_dim = 10944,
     .num_experts = 64,
     .num_dense_layers = 1,
     .experts_per_token = 6,
     .expert_dim = 1408,
     .num_shared_experts = 2},
    {.arch = "deepseek2",
     .name = "tiny",
     .description = "for tests: latent attention, 1 dense layer and 2 of 8 experts, top 3, 2 shared",
     .num_layers = 3,
     .model_dim = 256,
     .vocab_size = 512,
     .context_length = 163840,
     .num_heads = 4,
     .rms_epsilon = 1e-6f,
     .rope_freq_base = 1e4f,
     .latent_dim = 256,
     .content_dim = 64,
     .rotated_dim = 32,
     .value_dim = 64,
     .yarn_factor = 40,
     .yarn_context = 4096,
     .ffn_dim = 512,
     .num_experts = 8,
     .num_dense_layers = 1,
     .experts_per_token = 3,
     .expert_dim = 256,
     .num_shared_experts = 2},
});

void add_once(std::vector<std::string_view>& names, std::string_view name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

}  // namespace

std::span<const ModelPreset> model_presets() { return kPresets; }

const ModelPreset& find_model_preset(std::string_view arch, std::string_view name) {
  std::vector<std::string_view> architectures;
  std::vector<std::string_view> names;
  for (const ModelPreset& preset : kPresets) {
    add_once(architectures, preset.arch);
    if (preset.arch != arch) continue;
    if (preset.name == name) return preset;
    names.push_back(preset.name);
  }
  if (names.empty()) {
    fail(ErrorCode::kInvalidArgument, "no presets for architecture '{}'; there are some for {}", arch,
         fmt::join(architectures, ", "));
  }
  fail(ErrorCode::kInvalidArgument, "no preset '{}' for architecture '{}'; it has {}", name, arch,
       fmt::join(names, ", "));
}

}  // namespace witan
