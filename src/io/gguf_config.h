#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.h"
#include "io/gguf_reader.h"

namespace witan {

// GGUF metadata as settings. Integers of any width are integers; a float is never one.
class GgufConfig final : public CheckpointConfig {
 public:
  // Both must outlive this object.
  GgufConfig(const GgufFile& gguf, const std::string& source) : gguf_(gguf), source_(source) {}

  bool has(std::string_view key) const override { return gguf_.find(key) != nullptr; }
  int64_t get_int(std::string_view key) const override;
  double get_double(std::string_view key) const override;
  bool get_bool(std::string_view key) const override;
  std::string get_string(std::string_view key) const override;
  std::vector<int64_t> get_ints(std::string_view key) const override;
  std::vector<std::string> get_strings(std::string_view key) const override;

  // Beyond CheckpointConfig: an array of float32, finite or not.
  std::vector<float> get_floats(std::string_view key) const;
  // The same strings as get_strings, in the file.
  std::span<const std::string_view> view_strings(std::string_view key) const;

 private:
  const GgufValue& get(std::string_view key, std::string_view expected) const;
  const GgufValue& get_scalar(std::string_view key, std::string_view expected) const;
  [[noreturn]] void wrong_type(std::string_view key, const GgufValue& value, std::string_view expected) const;
  int64_t to_int(std::string_view key, const GgufValue& value, uint64_t index, std::string_view expected) const;

  const GgufFile& gguf_;
  const std::string& source_;
};

}  // namespace witan
