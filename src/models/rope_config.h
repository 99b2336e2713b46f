#pragma once

#include <cstdint>

#include "models/config_reader.h"
#include "nn/rope_table.h"

namespace witan {

// What an architecture fixes of its rotary positions and no file states.
struct RopeTraits {
  RopeLayout gguf_layout = RopeLayout::kHalves;  // how its GGUF files order rotated components
  RopeLayout huggingface_layout = RopeLayout::kHalves;
  bool yarn_truncate = true;  // where the file does not say
};

// The rotary positions of a model whose heads rotate `dim` components, scaling of every kind included: none, linear,
// dynamic, yarn, llama3 (in GGUF files the latter is a tensor: see load_rope_factors). Error(kUnsupported) naming any
// other; Error(kBadFile) for numbers that make no sense.
RopeConfig read_rope_config(const ConfigReader& read, const RopeTraits& traits, int32_t dim);

// get_mscale of YaRN's original code: how much larger attention gets with a longer context.
double yarn_mscale(double factor, double mscale);

class WeightLoader;

// Applies rope_freqs.weight, where a GGUF file has it.
void load_rope_factors(WeightLoader& weights, RopeTable& rope);

}  // namespace witan
