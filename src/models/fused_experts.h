#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "models/weight_loader.h"

namespace witan {

// Experts as Hugging Face directories of gpt-oss store them: one tensor for all experts of a layer, transposed to
// [num_experts, inputs, outputs], the outputs of gate and up alternating. MXFP4 checkpoints have X_blocks
// [num_experts, outputs, inputs / 32, 16] and X_scales [num_experts, outputs, inputs / 32] instead of X.
struct FusedExpertNames {
  std::string_view gate_up = {};  // "model.layers.{}.mlp.experts.gate_up_proj"; empty: the model has no such tensors
  std::string_view down = {};
};

std::vector<FfnWeights> load_fused_experts(WeightLoader& weights, const FusedExpertNames& names, int32_t layer,
                                           int32_t num_experts, int64_t ffn_dim, int64_t model_dim);

// Sets the biases of all experts: in GGUF files "blk.{}.ffn_gate_exps.bias" [num_experts, ffn_dim] and so on; in
// Hugging Face directories X_bias, gate and up alternating.
void load_expert_biases(WeightLoader& weights, const FusedExpertNames& names, int32_t layer, int64_t ffn_dim,
                        int64_t model_dim, std::vector<FfnWeights>& experts);

}  // namespace witan
