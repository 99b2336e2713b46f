#pragma once

#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "base/isa.h"
#include "kernels/rope/rope.h"

namespace witan {

// Ways to stretch rotary positions over more context than a model was trained on.

// All frequencies divided by `factor` (arXiv 2306.15595).
struct LinearScaling {
  double factor = 1.0;
};

// "Dynamic NTK": a position beyond the original context is rotated with a base that grows with it. The base of position
// p is what Hugging Face uses for a text of p + 1 tokens, so the angles are those of its token-by-token decoding. They
// do not depend on how much of the text is there already, as they would in its prefill.
struct DynamicScaling {
  double factor = 1.0;
  int64_t original_context = 0;
};

// YaRN (arXiv 2309.00071): frequencies between the original ones and those divided by `factor`, by how many turns a
// dimension makes over the original context.
struct YarnScaling {
  double factor = 1.0;
  int64_t original_context = 0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double attention_factor = 1.0;  // cos and sin are multiplied by it
  bool truncate = true;           // round the correction range to whole dimensions
};

// Llama 3.1: low frequencies divided by `factor`, high ones kept, between them by wavelength.
struct Llama3Scaling {
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_context = 0;
};

using RopeScaling = std::variant<std::monostate, LinearScaling, DynamicScaling, YarnScaling, Llama3Scaling>;

struct RopeConfig {
  RopeLayout layout = RopeLayout::kHalves;
  int64_t dim = 0;  // components rotated, even
  double theta = 10000.0;
  RopeScaling scaling = {};
};

// Rotary position embedding (arXiv 2104.09864) with the angles computed per position in double.
class RopeTable {
 public:
  explicit RopeTable(const RopeConfig& config);

  int64_t dim() const { return config_.dim; }
  RopeLayout layout() const { return config_.layout; }

  // Divides each frequency by its own factor [dim / 2]: how GGUF files store Llama 3.1's scaling.
  void divide_frequencies(std::span<const float> factors);

  // cos and sin [dim / 2] of the angles at `position`.
  void angles(int32_t position, float* cos, float* sin) const;

  // Whether what is rotated at one position is, rotated by `distance` more, as if it were at the position that much
  // further on: not where the base depends on the position.
  bool can_shift() const { return !std::holds_alternative<DynamicScaling>(config_.scaling); }
  // cos and sin [dim / 2] of the angles between positions `distance` apart, not scaled as angles() scales them.
  void shift_angles(int32_t distance, float* cos, float* sin) const;

  // Radians per position of each rotated pair [dim / 2].
  const std::vector<double>& frequencies() const { return frequencies_; }

 private:
  RopeConfig config_;
  std::vector<double> frequencies_;
};

}  // namespace witan
