#pragma once

#include <cstdint>
#include <vector>

#include "models/config_reader.h"
#include "models/fused_experts.h"
#include "models/model.h"
#include "models/weight_loader.h"
#include "moe/moe_ffn.h"

namespace witan {

// The feed-forward parts of a decoder's layers: a dense network or a router with experts in each.

// Tensor names that architectures spell differently; these are the usual ones.
struct FfnTensorNames {
  TensorName router{"blk.{}.ffn_gate_inp.weight", "model.layers.{}.mlp.gate.weight"};
  TensorName router_bias{"blk.{}.ffn_gate_inp.bias", "model.layers.{}.mlp.router.bias"};
  ExpertTensorNames experts{
      .gate = {"blk.{}.ffn_gate_exps.weight", "blk.{}.ffn_gate.{}.weight",
               "model.layers.{}.mlp.experts.{}.gate_proj.weight"},
      .up = {"blk.{}.ffn_up_exps.weight", "blk.{}.ffn_up.{}.weight", "model.layers.{}.mlp.experts.{}.up_proj.weight"},
      .down = {"blk.{}.ffn_down_exps.weight", "blk.{}.ffn_down.{}.weight",
               "model.layers.{}.mlp.experts.{}.down_proj.weight"}};
  FusedExpertNames fused_experts{};  // in Hugging Face directories that have no tensors of single experts
  TensorName shared_gate_proj{"blk.{}.ffn_gate_shexp.weight", "model.layers.{}.mlp.shared_experts.gate_proj.weight"};
  TensorName shared_up_proj{"blk.{}.ffn_up_shexp.weight", "model.layers.{}.mlp.shared_experts.up_proj.weight"};
  TensorName shared_down_proj{"blk.{}.ffn_down_shexp.weight", "model.layers.{}.mlp.shared_experts.down_proj.weight"};
};

// What an architecture's configuration says of them.
struct FfnConfig {
  int32_t dense_dim = 0;                 // width of the dense layers
  std::vector<int32_t> moe_layers = {};  // ascending layer numbers; the others are dense
  int32_t expert_dim = 0;
  RouterSpec router = {};
  bool router_bias = false;     // of the logits
  bool selection_bias = false;  // added to scores for choosing only
  int32_t shared_dim = 0;       // width of the shared experts together; 0: none
  bool shared_gate = false;     // their output is multiplied by a sigmoid of its own
  bool expert_bias = false;     // of every expert's three products
  FfnActivation expert_activation = FfnActivation::kSwiglu;
  float expert_limit = 0.0f;  // of kClampedSwiglu
  FfnTensorNames names = {};
};

// The layers [first, num_layers), and none where there are no experts.
std::vector<int32_t> layers_from(int32_t first, int32_t num_layers);

// num_experts and top_k under their usual names, and the rest of `known`. Refuses what contradicts itself.
RouterSpec read_router(const ConfigReader& read, ConfigKey num_experts, RouterSpec known);

// Reads how scores are made ("expert_gating_func", "scoring_func"); `fallback` where the file does not say.
RouterScoring read_scoring(const ConfigReader& read, RouterScoring fallback);

// Reads the groups of group-limited routing into `router`. Refuses groups that do not divide the experts, more groups
// used than there are, and used groups that have fewer than top_k experts.
void read_expert_groups(const ConfigReader& read, RouterSpec& router);

class FeedForward {
 public:
  explicit FeedForward(FfnConfig config) : config_(std::move(config)) {}

  // Fills in the part of ModelInfo that the configuration fixes.
  void describe(ModelInfo& info) const;

  // Loads the next layer, from 0 on.
  void load_layer(WeightLoader& weights, int32_t layer, int32_t model_dim);

  // out [num_tokens, model_dim] of x [num_tokens, model_dim].
  void forward(ForwardContext& ctx, int32_t layer, const float* x, int64_t num_tokens, float* out) const;

 private:
  struct Layer {
    bool moe;
    size_t index;  // into dense_ or moe_
  };

  MoeWeights load_moe(WeightLoader& weights, int32_t layer, int32_t model_dim) const;

  FfnConfig config_;
  std::vector<Layer> layers_;
  std::vector<FfnWeights> dense_;
  std::vector<MoeWeights> moe_;
};

}  // namespace witan
