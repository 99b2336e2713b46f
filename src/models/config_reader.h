#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.h"
#include "models/conversion_log.h"

namespace witan {

// The two spellings of one setting: "attention.head_count" (the architecture's prefix is added) and
// "num_attention_heads". An empty one does not exist in that format.
struct ConfigKey {
  std::string_view gguf;
  std::string_view huggingface;
};

// Reads a model's settings from either format and refuses, by name, values that no model can have.
class ConfigReader {
 public:
  explicit ConfigReader(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  bool is_gguf() const { return checkpoint_.format() == CheckpointFormat::kGguf; }
  bool has(ConfigKey key) const;

  // A whole number in [1, limit]. Absent: the fallback if there is one, else Error(kBadFile).
  int32_t count(ConfigKey key, std::optional<int32_t> fallback = std::nullopt, int32_t limit = 1 << 24) const;
  // A whole number in [0, limit].
  int32_t count_or_zero(ConfigKey key, int32_t fallback, int32_t limit = 1 << 24) const;
  // A finite positive number.
  double positive(ConfigKey key, std::optional<double> fallback = std::nullopt) const;
  // A finite number, 0 or more.
  double non_negative(ConfigKey key, double fallback) const;
  bool flag(ConfigKey key, bool fallback) const;
  std::string text(ConfigKey key, std::string_view fallback) const;
  std::vector<int64_t> ints(ConfigKey key) const;
  std::vector<std::string> texts(ConfigKey key) const;

  // For a converter: notes what GGUF files state where a Hugging Face directory says it in another way.
  void note_gguf(std::string_view key, ConversionLog::Setting value) const;
  void note_layouts(bool gguf_permutes_rotated_rows) const;
  void note_obstacle(std::string_view what) const;

  // Rows of the tensor that embeds tokens: the vocabulary's size in GGUF files, which need not state it.
  int32_t vocab_size() const;

  // Error(kUnsupported) naming file and key unless `supported`.
  void require(bool supported, ConfigKey key, std::string_view what) const;
  // Error(kBadFile) naming the file unless `consistent`.
  void expect(bool consistent, std::string_view what) const;

 private:
  std::string full_key(ConfigKey key) const;

  const Checkpoint& checkpoint_;
};

inline constexpr int32_t kMaxExperts = 4096;

}  // namespace witan
