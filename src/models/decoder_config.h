#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/config_reader.h"
#include "models/model.h"
#include "models/rope_config.h"

namespace witan {

// Settings that decoders with grouped-query attention share, read from either format.
struct DecoderConfig {
  int32_t vocab_size = 0;
  int32_t context_length = 0;
  int32_t model_dim = 0;
  int32_t num_layers = 0;
  int32_t num_unused_layers = 0;  // see ModelInfo
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  std::vector<int32_t> windows;  // [num_layers] sliding window of each layer; 0: none
  float norm_epsilon = 0.0f;
  RopeConfig rope;

  // The part of ModelInfo that these settings fix.
  ModelInfo info(std::string_view architecture) const;
};

// The number of layers that generation uses, and of those behind them that predict further tokens: GGUF files count the
// latter in, config.json does not.
struct LayerCounts {
  int32_t used;
  int32_t unused;
};
LayerCounts read_layer_counts(const ConfigReader& read);

// Refuses a hidden_act other than the SiLU that all these decoders gate with.
void check_activation(const ConfigReader& read);

// What an architecture fixes of these settings and no file states.
struct DecoderTraits {
  RopeTraits rope = {};
  // Layers with a sliding window where the file names a window but not its layers: every window_period-th from 0 on.
  int32_t window_period = 1;
  // Whether config.json means a window that it names where it does not say use_sliding_window.
  bool window_by_default = true;
};

DecoderConfig read_decoder_config(const ConfigReader& read, const DecoderTraits& traits);

}  // namespace witan
