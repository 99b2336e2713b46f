#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/isa.h"
#include "kernels/rope/rope.h"

namespace witan {

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

struct RopeConfig {
  RopeLayout layout = RopeLayout::kHalves;
  int64_t dim = 0;  // components rotated, even
  double theta = 10000.0;
  std::optional<YarnScaling> yarn;
};

// Rotary position embedding (arXiv 2104.09864) with the angles computed per position in double.
class RopeTable {
 public:
  explicit RopeTable(const RopeConfig& config);

  int64_t dim() const { return config_.dim; }
  RopeLayout layout() const { return config_.layout; }

  // cos and sin [dim / 2] of the angles at `position`.
  void angles(int32_t position, float* cos, float* sin) const;

  // Radians per position of each rotated pair [dim / 2].
  const std::vector<double>& frequencies() const { return frequencies_; }

 private:
  RopeConfig config_;
  std::vector<double> frequencies_;
};

}  // namespace witan
