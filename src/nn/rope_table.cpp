#include "nn/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace witan {
namespace {

// The dimension that makes `turns` turns over the original context.
double correction_dim(double turns, double dim, double theta, double original_context) {
  return dim * std::log(original_context / (turns * 2.0 * std::numbers::pi)) / (2.0 * std::log(theta));
}

void apply_yarn(const YarnScaling& yarn, const RopeConfig& config, std::vector<double>& frequencies) {
  const auto dim = static_cast<double>(config.dim);
  const auto original = static_cast<double>(yarn.original_context);
  double low = correction_dim(yarn.beta_fast, dim, config.theta, original);
  double high = correction_dim(yarn.beta_slow, dim, config.theta, original);
  if (yarn.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (high == low) high += 0.001;  // as in the original code: no division by zero
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    const double keep = 1.0 - ramp;  // 1: extrapolate (original frequency), 0: interpolate
    frequencies[i] = frequencies[i] * keep + frequencies[i] / yarn.factor * ramp;
  }
}

}  // namespace

RopeTable::RopeTable(const RopeConfig& config) : config_(config) {
  WITAN_CHECK(config.dim > 0 && config.dim % 2 == 0, "rotary dim {}", config.dim);
  frequencies_.resize(static_cast<size_t>(config.dim / 2));
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    frequencies_[i] = std::pow(config.theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.dim));
  }
  if (config.yarn) apply_yarn(*config.yarn, config, frequencies_);
}

void RopeTable::angles(int32_t position, float* cos, float* sin) const {
  const double factor = config_.yarn ? config_.yarn->attention_factor : 1.0;
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    const double angle = position * frequencies_[i];
    cos[i] = static_cast<float>(std::cos(angle) * factor);
    sin[i] = static_cast<float>(std::sin(angle) * factor);
  }
}

}  // namespace witan
