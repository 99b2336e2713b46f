#include "models/decoder_config.h"

#include <fmt/format.h>

#include <algorithm>

namespace witan {
namespace {

constexpr ConfigKey kWindow{"attention.sliding_window", "sliding_window"};
constexpr ConfigKey kLayerTypes{"", "layer_types"};

// Hugging Face directories may name each layer's kind.
std::vector<int32_t> windows_of_layer_types(const ConfigReader& read, int32_t num_layers) {
  const std::vector<std::string> types = read.texts(kLayerTypes);
  read.expect(
      std::ssize(types) == num_layers,
      fmt::format("layer_types has {} entries, expected {} as num_hidden_layers says", types.size(), num_layers));
  std::vector<int32_t> windows;
  for (const std::string& type : types) {
    const bool sliding = type == "sliding_attention";
    read.require(sliding || type == "full_attention", kLayerTypes,
                 fmt::format("\"{}\"; expected full_attention or sliding_attention", type));
    windows.push_back(sliding ? read.count(kWindow) : 0);
  }
  return windows;
}

std::vector<int32_t> read_windows(const ConfigReader& read, int32_t num_layers, const DecoderTraits& traits) {
  if (!read.is_gguf() && read.has(kLayerTypes)) return windows_of_layer_types(read, num_layers);
  std::vector<int32_t> windows(static_cast<size_t>(num_layers), 0);
  if (!read.has(kWindow) || !read.flag({"", "use_sliding_window"}, traits.window_by_default)) return windows;
  // Qwen's files say from which layer on the window is used.
  const int32_t first = read.count_or_zero({"", "max_window_layers"}, 0);
  const int32_t window = read.count(kWindow);
  for (int32_t layer = first; layer < num_layers; layer += traits.window_period)
    windows[static_cast<size_t>(layer)] = window;
  return windows;
}

}  // namespace

LayerCounts read_layer_counts(const ConfigReader& read) {
  const int32_t num_layers = read.count({"block_count", "num_hidden_layers"}, std::nullopt, 4096);
  const int32_t unused = read.count_or_zero({"nextn_predict_layers", "num_nextn_predict_layers"}, 0, 4096);
  if (!read.is_gguf()) return {.used = num_layers, .unused = unused};
  read.expect(unused < num_layers, fmt::format("nextn_predict_layers {} leaves none of {} layers", unused, num_layers));
  return {.used = num_layers - unused, .unused = unused};
}

void check_activation(const ConfigReader& read) {
  constexpr ConfigKey kActivation{"", "hidden_act"};
  const std::string name = read.text(kActivation, "silu");
  read.require(name == "silu" || name == "swish", kActivation, fmt::format("\"{}\"; expected silu", name));
}

ModelInfo DecoderConfig::info(std::string_view architecture) const {
  ModelInfo info;
  info.architecture = architecture;
  info.vocab_size = vocab_size;
  info.context_length = context_length;
  info.model_dim = model_dim;
  info.num_layers = num_layers;
  info.num_unused_layers = num_unused_layers;
  info.num_heads = num_heads;
  info.prompt_key_dim = head_dim;
  info.prompt_value_dim = head_dim;
  for (const int32_t window : windows) {
    info.kv_layers.push_back({.num_kv_heads = num_kv_heads,
                              .key_dim = head_dim,
                              .value_dim = head_dim,
                              .value_in_key = false,
                              .window = window});
  }
  // Residual stream, norm, delta; queries and attention out; keys and values; and what products store of their input.
  const int64_t floats =
      int64_t{6} * model_dim + int64_t{num_heads} * head_dim * 3 + int64_t{num_kv_heads} * head_dim * 2 + head_dim;
  info.activation_bytes_per_token = floats * static_cast<int64_t>(sizeof(float));
  return info;
}

DecoderConfig read_decoder_config(const ConfigReader& read, const DecoderTraits& traits) {
  DecoderConfig config;
  check_activation(read);
  config.vocab_size = read.vocab_size();
  config.context_length = read.count({"context_length", "max_position_embeddings"});
  config.model_dim = read.count({"embedding_length", "hidden_size"}, std::nullopt, 1 << 17);
  const LayerCounts layers = read_layer_counts(read);
  config.num_layers = layers.used;
  config.num_unused_layers = layers.unused;
  config.num_heads = read.count({"attention.head_count", "num_attention_heads"}, std::nullopt, 4096);
  config.num_kv_heads = read.count({"attention.head_count_kv", "num_key_value_heads"}, config.num_heads, 4096);
  read.expect(config.num_heads % config.num_kv_heads == 0,
              fmt::format("{} attention heads cannot share {} kv heads evenly", config.num_heads, config.num_kv_heads));
  config.head_dim =
      read.count({"attention.key_length", "head_dim"}, std::max(1, config.model_dim / config.num_heads), 4096);
  read.expect(read.count({"attention.value_length", "head_dim"}, config.head_dim) == config.head_dim,
              "keys and values have different lengths");
  read.expect(int64_t{config.num_kv_heads} * config.head_dim <= 1 << 17,
              fmt::format("{} kv heads of length {} are too many", config.num_kv_heads, config.head_dim));
  config.norm_epsilon = static_cast<float>(read.positive({"attention.layer_norm_rms_epsilon", "rms_norm_eps"}));
  config.windows = read_windows(read, config.num_layers, traits);
  const double rotary_share = read.positive({"", "partial_rotary_factor"}, 1.0);
  const int32_t rotary_dim =
      read.count({"rope.dimension_count", ""}, static_cast<int32_t>(rotary_share * config.head_dim));
  read.expect(rotary_dim <= config.head_dim,
              fmt::format("rotary dimension {} exceeds the head dimension {}", rotary_dim, config.head_dim));
  config.rope = read_rope_config(read, traits.rope, rotary_dim);
  return config;
}

}  // namespace witan
