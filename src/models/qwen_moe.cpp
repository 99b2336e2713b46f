#include "models/qwen_moe.h"

#include <fmt/format.h>

#include <algorithm>

namespace witan {

std::vector<int32_t> read_qwen_moe_layers(const ConfigReader& read, int32_t num_layers) {
  constexpr ConfigKey kDenseLayers{"", "mlp_only_layers"};
  const int32_t step = read.count({"", "decoder_sparse_step"}, 1);
  std::vector<int64_t> dense_layers;
  if (read.has(kDenseLayers)) dense_layers = read.ints(kDenseLayers);
  for (const int64_t layer : dense_layers) {
    read.expect(layer >= 0 && layer < num_layers,
                fmt::format("mlp_only_layers names layer {}, expected 0 to {}", layer, num_layers - 1));
  }
  std::vector<int32_t> moe_layers;
  for (int32_t layer = step - 1; layer < num_layers; layer += step) {
    if (std::ranges::find(dense_layers, layer) == dense_layers.end()) moe_layers.push_back(layer);
  }
  if (std::ssize(moe_layers) != num_layers) read.note_obstacle("GGUF files do not say which layers are dense");
  read.expect(!moe_layers.empty(), "decoder_sparse_step and mlp_only_layers leave no layer with experts");
  return moe_layers;
}

int32_t read_qwen_dense_dim(const ConfigReader& read, const std::vector<int32_t>& moe_layers, int32_t num_layers) {
  return std::ssize(moe_layers) == num_layers ? 0 : read.count({"feed_forward_length", "intermediate_size"});
}

}  // namespace witan
