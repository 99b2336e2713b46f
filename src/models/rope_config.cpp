#include "models/rope_config.h"

#include <fmt/format.h>

#include <cmath>
#include <string>

#include "models/weight_loader.h"

namespace witan {
namespace {

// The settings of one scaling: in GGUF files under rope.scaling, in config.json in the object `rope_scaling`, which
// newer versions of transformers call `rope_parameters`.
class ScalingReader {
 public:
  explicit ScalingReader(const ConfigReader& read)
      : read_(read), object_(read.has({"", "rope_parameters"}) ? "rope_parameters" : "rope_scaling") {}

  std::string type() const {
    if (read_.is_gguf()) {
      if (read_.has(kGgufType)) return read_.text(kGgufType, "none");
      return read_.has({"rope.scale_linear", ""}) || read_.has({"rope.scaling.factor", ""}) ? "linear" : "none";
    }
    if (!read_.has({"", object_})) return "default";
    return read_.text({"", type_key()}, "default");
  }

  void fail_unsupported(const std::string& type) const {
    read_.require(false, read_.is_gguf() ? kGgufType : ConfigKey{"", type_key()},
                  fmt::format("rotary scaling \"{}\"; expected none, linear, dynamic, yarn or llama3", type));
  }

  double positive(std::string_view gguf, std::string_view name, std::optional<double> fallback = std::nullopt) const {
    const std::string key = in_object(name);
    return read_.positive({gguf, key}, fallback);
  }
  double non_negative(std::string_view name, double fallback) const {
    const std::string key = in_object(name);
    return read_.non_negative({"", key}, fallback);
  }
  bool has(std::string_view name) const { return !read_.is_gguf() && read_.has({"", in_object(name)}); }
  bool flag(std::string_view name, bool fallback) const {
    const std::string key = in_object(name);
    return read_.flag({"", key}, fallback);
  }

  int64_t original_context() const {
    const std::string key = in_object("original_max_position_embeddings");
    const ConfigKey original{"rope.scaling.original_context_length", key};
    if (read_.has(original)) return read_.count(original, std::nullopt, 1 << 30);
    return read_.count({"context_length", "max_position_embeddings"}, std::nullopt, 1 << 30);
  }

 private:
  static constexpr ConfigKey kGgufType{"rope.scaling.type", ""};

  std::string in_object(std::string_view name) const { return object_ + "." + std::string(name); }
  std::string type_key() const { return in_object(read_.has({"", in_object("rope_type")}) ? "rope_type" : "type"); }

  const ConfigReader& read_;
  std::string object_;
};

double linear_factor(const ConfigReader& read, const ScalingReader& scaling) {
  const bool old = read.has({"rope.scale_linear", ""}) && !read.has({"rope.scaling.factor", ""});
  return scaling.positive(old ? "rope.scale_linear" : "rope.scaling.factor", "factor");
}

YarnScaling read_yarn(const ConfigReader& read, const ScalingReader& scaling, const RopeTraits& traits) {
  YarnScaling yarn;
  yarn.factor = scaling.positive("rope.scaling.factor", "factor");
  yarn.original_context = scaling.original_context();
  yarn.beta_fast = scaling.positive("rope.scaling.yarn_beta_fast", "beta_fast", 32.0);
  yarn.beta_slow = scaling.positive("rope.scaling.yarn_beta_slow", "beta_slow", 1.0);
  yarn.truncate = scaling.flag("truncate", traits.yarn_truncate);
  if (read.is_gguf()) {
    // A log multiplier says that the scores are scaled instead (DeepSeek); GGUF files know no mscale apart from it.
    const bool scores_scaled = read.has({"rope.scaling.yarn_log_multiplier", ""});
    yarn.attention_factor =
        (scores_scaled ? 1.0 : yarn_mscale(yarn.factor, 1.0)) * scaling.positive("rope.scaling.attn_factor", "", 1.0);
  } else if (scaling.has("attention_factor")) {
    yarn.attention_factor = scaling.positive("", "attention_factor");
  } else {
    yarn.attention_factor = yarn_mscale(yarn.factor, scaling.non_negative("mscale", 1.0)) /
                            yarn_mscale(yarn.factor, scaling.non_negative("mscale_all_dim", 0.0));
  }
  return yarn;
}

Llama3Scaling read_llama3(const ConfigReader& read, const ScalingReader& scaling) {
  const Llama3Scaling llama3{.factor = scaling.positive("", "factor"),
                             .low_freq_factor = scaling.positive("", "low_freq_factor"),
                             .high_freq_factor = scaling.positive("", "high_freq_factor"),
                             .original_context = scaling.original_context()};
  read.expect(llama3.high_freq_factor > llama3.low_freq_factor,
              fmt::format("high_freq_factor {} of rope_scaling is not above low_freq_factor {}",
                          llama3.high_freq_factor, llama3.low_freq_factor));
  return llama3;
}

}  // namespace

double yarn_mscale(double factor, double mscale) { return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

RopeConfig read_rope_config(const ConfigReader& read, const RopeTraits& traits, int32_t dim) {
  read.expect(dim > 0 && dim % 2 == 0, fmt::format("rotary dimension {} is not an even number", dim));
  const bool theta_in_object = read.has({"", "rope_parameters.rope_theta"});
  RopeConfig config{.layout = read.is_gguf() ? traits.gguf_layout : traits.huggingface_layout,
                    .dim = dim,
                    .theta = read.positive(
                        {"rope.freq_base", theta_in_object ? "rope_parameters.rope_theta" : "rope_theta"}, 10000.0),
                    .scaling = {}};
  const ScalingReader scaling(read);
  const std::string type = scaling.type();
  read.note_layouts(traits.gguf_layout == RopeLayout::kPairs && traits.huggingface_layout == RopeLayout::kHalves);
  if (type == "none" || type == "default") return config;
  read.note_gguf("rope.scaling.type", type);
  if (type != "linear" && type != "yarn")
    read.note_obstacle(fmt::format("GGUF files have no rotary scaling \"{}\"", type));
  if (type == "linear") {
    config.scaling = LinearScaling{.factor = linear_factor(read, scaling)};
  } else if (type == "dynamic" && !read.is_gguf()) {
    config.scaling =
        DynamicScaling{.factor = scaling.positive("", "factor"), .original_context = scaling.original_context()};
  } else if (type == "yarn") {
    config.scaling = read_yarn(read, scaling, traits);
  } else if (type == "llama3" && !read.is_gguf()) {
    config.scaling = read_llama3(read, scaling);
  } else {
    scaling.fail_unsupported(type);
  }
  return config;
}

void load_rope_factors(WeightLoader& weights, RopeTable& rope) {
  constexpr TensorName kFactors{"rope_freqs.weight", "rope_freqs.weight"};
  if (!weights.is_gguf() || !weights.has(kFactors)) return;
  const int64_t num_factors = rope.dim() / 2;
  const float* factors = weights.vector(kFactors, 0, num_factors);
  rope.divide_frequencies({factors, static_cast<size_t>(num_factors)});
}

}  // namespace witan
