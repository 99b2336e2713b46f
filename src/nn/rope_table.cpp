#include "nn/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace witan {
namespace {

double frequency(double theta, int64_t pair, int64_t dim) {
  return std::pow(theta, -2.0 * static_cast<double>(pair) / static_cast<double>(dim));
}

// The dimension that makes `turns` turns over the original context.
double correction_dim(double turns, double dim, double theta, double original_context) {
  return dim * std::log(original_context / (turns * 2.0 * std::numbers::pi)) / (2.0 * std::log(theta));
}

// One overload per scaling changes the frequencies as far as they are the same at every position.
void scale(std::monostate, const RopeConfig&, std::vector<double>&) {}
void scale(const DynamicScaling&, const RopeConfig&, std::vector<double>&) {}

void scale(const LinearScaling& linear, const RopeConfig&, std::vector<double>& frequencies) {
  for (double& f : frequencies) f /= linear.factor;
}

void scale(const YarnScaling& yarn, const RopeConfig& config, std::vector<double>& frequencies) {
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

void scale(const Llama3Scaling& llama3, const RopeConfig&, std::vector<double>& frequencies) {
  for (double& f : frequencies) {
    const double turns = static_cast<double>(llama3.original_context) * f / (2.0 * std::numbers::pi);
    const double keep =
        std::clamp((turns - llama3.low_freq_factor) / (llama3.high_freq_factor - llama3.low_freq_factor), 0.0, 1.0);
    f = f * keep + f / llama3.factor * (1.0 - keep);
  }
}

// The base for a text of num_tokens tokens.
double dynamic_theta(const DynamicScaling& dynamic, const RopeConfig& config, double num_tokens) {
  const auto original = static_cast<double>(dynamic.original_context);
  if (num_tokens <= original || config.dim <= 2) return config.theta;
  const auto dim = static_cast<double>(config.dim);
  const double stretch = dynamic.factor * num_tokens / original - (dynamic.factor - 1.0);
  return config.theta * std::pow(stretch, dim / (dim - 2.0));
}

}  // namespace

RopeTable::RopeTable(const RopeConfig& config) : config_(config) {
  WITAN_CHECK(config.dim > 0 && config.dim % 2 == 0, "rotary dim {}", config.dim);
  for (int64_t i = 0; i < config.dim / 2; ++i) frequencies_.push_back(frequency(config.theta, i, config.dim));
  std::visit([&](const auto& scaling) { scale(scaling, config_, frequencies_); }, config.scaling);
}

void RopeTable::divide_frequencies(std::span<const float> factors) {
  WITAN_CHECK(factors.size() == frequencies_.size(), "{} factors for {} frequencies", factors.size(),
              frequencies_.size());
  for (size_t i = 0; i < factors.size(); ++i) frequencies_[i] /= static_cast<double>(factors[i]);
}

void RopeTable::angles(int32_t position, float* cos, float* sin) const {
  const auto* yarn = std::get_if<YarnScaling>(&config_.scaling);
  const auto* dynamic = std::get_if<DynamicScaling>(&config_.scaling);
  const double factor = yarn != nullptr ? yarn->attention_factor : 1.0;
  const bool beyond = dynamic != nullptr && position >= dynamic->original_context;
  const double theta = beyond ? dynamic_theta(*dynamic, config_, position + 1.0) : config_.theta;
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    const double f = beyond ? frequency(theta, static_cast<int64_t>(i), config_.dim) : frequencies_[i];
    const double angle = position * f;
    cos[i] = static_cast<float>(std::cos(angle) * factor);
    sin[i] = static_cast<float>(std::sin(angle) * factor);
  }
}

void RopeTable::shift_angles(int32_t distance, float* cos, float* sin) const {
  WITAN_CHECK(can_shift(), "the angles depend on the position");
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    const double angle = distance * frequencies_[i];
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
  }
}

}  // namespace witan
