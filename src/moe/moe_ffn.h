#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/matmul/matmul.h"
#include "moe/router.h"
#include "moe/telemetry.h"
#include "nn/compute_context.h"

namespace witan {

enum class FfnActivation : uint8_t {
  kSwiglu,         // silu(gate) * up
  kClampedSwiglu,  // clamped_swiglu(gate, up, limit)
  kRelu,           // relu(up), no gate
};

// The weights of one feed-forward network down(activation(gate x, up x)): an expert, a shared expert or a dense layer.
// Biases f32, nullptr where there are none.
struct FfnWeights {
  PackedMatrix gate;                 // [ffn_dim, model_dim]; no rows with kRelu
  PackedMatrix up;                   // [ffn_dim, model_dim]
  PackedMatrix down;                 // [model_dim, ffn_dim]
  const float* gate_bias = nullptr;  // [ffn_dim]
  const float* up_bias = nullptr;    // [ffn_dim]
  const float* down_bias = nullptr;  // [model_dim]
  FfnActivation activation = FfnActivation::kSwiglu;
  float limit = 0.0f;  // of kClampedSwiglu

  int64_t ffn_dim() const { return up.rows; }
};

struct MoeWeights {
  int32_t moe_layer = 0;  // counted from 0 over the MoE layers, for telemetry
  RouterSpec spec;
  PackedMatrix router;                    // [num_experts, model_dim]
  const float* router_bias = nullptr;     // [num_experts] of the logits; nullptr: none
  const float* selection_bias = nullptr;  // [num_experts] see route(); nullptr: none
  std::vector<FfnWeights> experts;        // [num_experts]
  FfnWeights shared;                      // every token uses it; no rows: none
  PackedMatrix shared_gate;               // [1, model_dim]: the shared output is multiplied by its sigmoid; no rows: 1
};

// A limit on how many tokens of a range one expert takes, first come, first served (Switch Transformers, arXiv
// 2101.03961, 2.2). The tokens beyond it get nothing from that expert.
struct ExpertCapacity {
  struct Range {
    int64_t begin;
    int64_t end;
  };
  std::span<const Range> ranges = {};  // of tokens, each counted by itself; tokens in none are never dropped
  int32_t tokens_per_expert = 0;
};

// out [n, model_dim] = the FFN of x [n, model_dim], f32.
void dense_ffn(ComputeContext& ctx, const FfnWeights& weights, const float* x, int64_t num_tokens, float* out);

// out [n, model_dim] = sum over the chosen experts e of weight_e * E_e(x), plus sigmoid(shared_gate x) * shared(x) when
// there is a shared expert.
//
// Tokens are grouped by expert, so each chosen expert's weights are walked once however many tokens chose it. A
// token's sum is taken in the order of its choices (descending score), the shared expert last, so its result does not
// depend on the other tokens (but where there is a capacity). The router always computes in float32.
void moe_ffn(ComputeContext& ctx, const MoeWeights& weights, const float* x, int64_t num_tokens,
             RouterTelemetry& telemetry, float* out, const ExpertCapacity& capacity = {});

}  // namespace witan
