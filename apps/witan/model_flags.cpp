#include "model_flags.h"

#include <cctype>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>
#include <string_view>

#include "base/error.h"
#include "base/isa.h"
#include "help.h"
#include "kernels/attention/attention.h"
#include "version.h"

namespace witan {

namespace {

KvCodec default_kv_codec(Precision precision) {
  const Isa isa = select_isa();
  const AttentionArithmetic arithmetic = attention_arithmetic(isa, {.codec = KvCodec::kBF16}, precision);
  return isa != Isa::kReference && arithmetic == AttentionArithmetic::kBF16 ? KvCodec::kBF16 : KvCodec::kF16;
}

}  // namespace

ModelOptions ModelFlags::finished() const {
  ModelOptions result = options;
  result.precision = exact ? Precision::kExact : Precision::kFast;
  result.kv_codec = kv_codec.value_or(default_kv_codec(result.precision));
  return result;
}

ModelOptions ModelFlags::finished_for_throughput() const {
  ModelOptions finished_options = finished();
  finished_options.max_mixed_prompt_tokens = finished_options.max_step_tokens;
  finished_options.max_decode_slowdown = 0;
  return finished_options;
}

int64_t parse_size(const std::string& text) {
  constexpr std::string_view kPrefixes = "kmgtp";
  constexpr double kMax = 0x1p62;
  double value = 0.0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value, std::chars_format::fixed);
  std::string unit;
  for (const char* c = rest; c != end; ++c) {
    if (*c != ' ') unit += static_cast<char>(std::tolower(static_cast<unsigned char>(*c)));
  }
  if (!unit.empty() && unit.back() == 'b') unit.pop_back();
  const size_t prefix = unit.empty() ? std::string_view::npos : kPrefixes.find(unit.front());
  const bool known = unit.empty() || (prefix != std::string_view::npos && (unit.size() == 1 || unit.substr(1) == "i"));
  if (prefix != std::string_view::npos) value *= std::pow(1024.0, static_cast<double>(prefix + 1));
  if (error != std::errc{} || !known || !(value >= 0.0 && value <= kMax)) {
    fail(ErrorCode::kInvalidArgument, "'{}' is no size; expected one such as 8GB, 1.5GB or 512MB", text);
  }
  return static_cast<int64_t>(value);
}

CLI::Option* add_model_flag(CLI::App& app, std::string& path) {
  return app.add_option("-m,--model", path, "GGUF file (any part of a split one) or Hugging Face directory")
      ->type_name("PATH")
      ->required();
}

std::string shipped_model_path() {
  namespace fs = std::filesystem;
  std::error_code none;
  const fs::path program = fs::read_symlink("/proc/self/exe", none);
  const fs::path places[] = {program.parent_path().parent_path() / WITAN_INSTALLED_MODELS / "witan-tiny",
                             fs::path(WITAN_SOURCE_MODELS) / "witan-tiny"};
  for (const fs::path& place : places) {
    if (fs::exists(place / "config.json", none)) return place.string();
  }
  fail(ErrorCode::kIo, "witan-tiny is neither in {} nor in {}; --model names a model", places[0].string(),
       places[1].string());
}

void add_exact_flag(CLI::App& app, ModelFlags& flags) {
  app.add_flag(
      "--exact", flags.exact,
      "Compute with float32 activations whatever the types of weights and KV cache. Without it, quantised weights "
      "meet 8-bit activations and BF16 ones BF16 activations, and so do KV caches where the CPU multiplies these "
      "types; F32 and F16 ones are always exact");
}

void add_memory_flags(CLI::App& app, ModelFlags& flags, const std::string& default_context) {
  static const std::map<std::string, std::optional<KvCodec>> kCodecs = [] {
    std::map<std::string, std::optional<KvCodec>> codecs{{"auto", std::nullopt}};
    for (const KvCodec codec : kKvCodecs) codecs.emplace(kv_codec_name(codec), codec);
    return codecs;
  }();
  const auto set_codec = [&flags](const std::string& name) { flags.kv_codec = kCodecs.at(name); };
  app.add_option_function<std::string>(
         "--kv-type", set_codec,
         "Type of the KV cache: auto (bf16 where the CPU multiplies it and --exact is not given, else f16), f32, f16, "
         "bf16, q8_0 (lossy: 8 bits with a scale per 32 values), or, lossy too, keys and values turned by a Hadamard "
         "matrix: int8-hadamard, int4-hadamard, int2-hadamard, k8v4-hadamard (keys of 8 bits, values of 4) and the "
         "other pairs of 8, 4 and 2; for models that cache latents (MLA) instead of these int8-latent and int4-latent, "
         "which keep "
         "the part of RoPE as bf16")
      ->type_name("TYPE")
      ->check(CLI::IsMember(kCodecs).description(""))
      ->default_str("auto");
  app.add_option("-t,--threads", flags.options.num_threads, "Threads; 0: one per core")
      ->type_name("N")
      ->check(in_range(0, 1024))
      ->capture_default_str();
  const auto set_memory = [&flags](const std::string& text) {
    try {
      flags.options.memory_bytes = parse_size(text);
    } catch (const Error& error) {
      throw CLI::ValidationError("--memory", error.what());
    }
  };
  app.add_option_function<std::string>("--memory", set_memory,
                                       "Budget for all big allocations, such as 8GB or 512MB (powers of 1024); 0: 90 % "
                                       "of what is available")
      ->type_name("SIZE")
      ->default_str("0");
  app.add_option("-c,--context", flags.options.context_length, "Most tokens of one sequence; 0: " + default_context)
      ->type_name("N")
      ->check(in_range(0, 1 << 30))
      ->capture_default_str();
}

void add_kv_offload_flag(CLI::App& app, ModelFlags& flags) {
  app.add_option("--kv-offload-dir", flags.options.kv_offload_directory,
                 "Where KV policies with action=offload have their files, which have no names and are gone when the "
                 "request ends")
      ->type_name("DIR")
      ->check(CLI::ExistingDirectory.description(""))
      ->capture_default_str();
}

void add_step_flags(CLI::App& app, ModelFlags& flags) {
  app.add_option("--step-tokens", flags.options.max_step_tokens, "Most tokens computed in one step")
      ->type_name("N")
      ->check(in_range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--sequences", flags.options.max_sequences, "Most sequences running at once")
      ->type_name("N")
      ->check(in_range(1, 1 << 16))
      ->capture_default_str();
}

}  // namespace witan
