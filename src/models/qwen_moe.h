#pragma once

#include "models/feed_forward.h"

namespace witan {

// The layers with experts as config.json of Qwen's models states them: every decoder_sparse_step-th, but for
// mlp_only_layers. All layers in GGUF files, which cannot say otherwise. Error(kBadFile) for a layer that is not there.
std::vector<int32_t> read_qwen_moe_layers(const ConfigReader& read, int32_t num_layers);

// The width of the dense layers, read where there are any.
int32_t read_qwen_dense_dim(const ConfigReader& read, const std::vector<int32_t>& moe_layers, int32_t num_layers);

}  // namespace witan
