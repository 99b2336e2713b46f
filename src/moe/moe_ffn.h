#pragma once

#include <cstdint>
#include <vector>

#include "kernels/matmul/matmul.h"
#include "moe/router.h"
#include "moe/telemetry.h"
#include "nn/compute_context.h"

namespace witan {

// The weights of one feed-forward network down(silu(gate x) * up x): an expert, a shared expert or a dense layer.
struct FfnWeights {
  PackedMatrix gate;  // [ffn_dim, model_dim]
  PackedMatrix up;    // [ffn_dim, model_dim]
  PackedMatrix down;  // [model_dim, ffn_dim]
};

struct MoeWeights {
  int32_t moe_layer = 0;  // counted from 0 over the MoE layers, for telemetry
  RouterSpec spec;
  PackedMatrix router;              // [num_experts, model_dim]
  std::vector<FfnWeights> experts;  // [num_experts]
};

// out [n, model_dim] = the FFN of x [n, model_dim], f32.
void dense_ffn(ComputeContext& ctx, const FfnWeights& weights, const float* x, int64_t num_tokens, float* out);

// out [n, model_dim] = sum over the chosen experts e of weight_e * E_e(x), plus shared(x) when there is a shared
// expert.
//
// Tokens are grouped by expert, so each chosen expert's weights are walked once however many tokens chose it. A
// token's sum is taken in the order of its choices (descending score), the shared expert last, so its result does not
// depend on the other tokens. The router always computes in float32.
void moe_ffn(ComputeContext& ctx, const MoeWeights& weights, const FfnWeights* shared, const float* x,
             int64_t num_tokens, RouterTelemetry& telemetry, float* out);

}  // namespace witan
