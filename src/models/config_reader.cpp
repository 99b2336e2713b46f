#include "models/config_reader.h"

#include <cmath>

#include "base/error.h"

namespace witan {

std::string ConfigReader::full_key(ConfigKey key) const {
  if (!is_gguf()) return std::string(key.huggingface);
  return key.gguf.empty() ? std::string() : fmt::format("{}.{}", checkpoint_.architecture(), key.gguf);
}

bool ConfigReader::has(ConfigKey key) const {
  const std::string name = full_key(key);
  return !name.empty() && checkpoint_.config().has(name);
}

void ConfigReader::note_gguf(std::string_view key, ConversionLog::Setting value) const {
  ConversionLog* log = checkpoint_.conversion_log();
  if (log != nullptr && !key.empty()) log->settings.insert_or_assign(std::string(key), std::move(value));
}

void ConfigReader::note_layouts(bool gguf_permutes_rotated_rows) const {
  if (ConversionLog* log = checkpoint_.conversion_log()) log->permutes_rotated_rows = gguf_permutes_rotated_rows;
}

void ConfigReader::note_obstacle(std::string_view what) const {
  if (ConversionLog* log = checkpoint_.conversion_log()) log->obstacle = what;
}

int32_t ConfigReader::count(ConfigKey key, std::optional<int32_t> fallback, int32_t limit) const {
  if (!has(key) && fallback) {
    note_gguf(key.gguf, static_cast<uint32_t>(*fallback));
    return *fallback;
  }
  const std::string name = full_key(key);
  const int64_t value = checkpoint_.config().get_int(name);
  if (value < 1 || value > limit) {
    fail(ErrorCode::kBadFile, "{}: {} is {}, expected 1 to {}", checkpoint_.path(), name, value, limit);
  }
  note_gguf(key.gguf, static_cast<uint32_t>(value));
  return static_cast<int32_t>(value);
}

int32_t ConfigReader::count_or_zero(ConfigKey key, int32_t fallback, int32_t limit) const {
  if (!has(key)) {
    note_gguf(key.gguf, static_cast<uint32_t>(fallback));
    return fallback;
  }
  if (checkpoint_.config().get_int(full_key(key)) == 0) {
    note_gguf(key.gguf, uint32_t{0});
    return 0;
  }
  return count(key, fallback, limit);
}

double ConfigReader::positive(ConfigKey key, std::optional<double> fallback) const {
  if (!has(key) && fallback) {
    note_gguf(key.gguf, static_cast<float>(*fallback));
    return *fallback;
  }
  const std::string name = full_key(key);
  const double value = checkpoint_.config().get_double(name);
  if (!std::isfinite(value) || value <= 0.0) {
    fail(ErrorCode::kBadFile, "{}: {} is {}, expected a positive number", checkpoint_.path(), name, value);
  }
  note_gguf(key.gguf, static_cast<float>(value));
  return value;
}

double ConfigReader::non_negative(ConfigKey key, double fallback) const {
  if (!has(key)) return fallback;
  const std::string name = full_key(key);
  const double value = checkpoint_.config().get_double(name);
  if (!std::isfinite(value) || value < 0.0) {
    fail(ErrorCode::kBadFile, "{}: {} is {}, expected a number of at least 0", checkpoint_.path(), name, value);
  }
  note_gguf(key.gguf, static_cast<float>(value));
  return value;
}

bool ConfigReader::flag(ConfigKey key, bool fallback) const {
  const bool value = has(key) ? checkpoint_.config().get_bool(full_key(key)) : fallback;
  note_gguf(key.gguf, value);
  return value;
}

std::string ConfigReader::text(ConfigKey key, std::string_view fallback) const {
  return has(key) ? checkpoint_.config().get_string(full_key(key)) : std::string(fallback);
}

std::vector<int64_t> ConfigReader::ints(ConfigKey key) const { return checkpoint_.config().get_ints(full_key(key)); }

std::vector<std::string> ConfigReader::texts(ConfigKey key) const {
  return checkpoint_.config().get_strings(full_key(key));
}

int32_t ConfigReader::vocab_size() const {
  if (!is_gguf()) return count({.gguf = "vocab_size", .huggingface = "vocab_size"});
  const TensorEntry* embedding = checkpoint_.find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2 || embedding->shape[0] > (1 << 24)) {
    fail(ErrorCode::kBadFile, "{}: expected a tensor token_embd.weight [vocabulary, model_dim]", checkpoint_.path());
  }
  return static_cast<int32_t>(embedding->shape[0]);
}

void ConfigReader::require(bool supported, ConfigKey key, std::string_view what) const {
  if (!supported) fail(ErrorCode::kUnsupported, "{}: {}: {}", checkpoint_.path(), full_key(key), what);
}

void ConfigReader::expect(bool consistent, std::string_view what) const {
  if (!consistent) fail(ErrorCode::kBadFile, "{}: {}", checkpoint_.path(), what);
}

}  // namespace witan
