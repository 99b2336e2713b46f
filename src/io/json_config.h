#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.h"

namespace witan {

// A JSON object as settings. A dot in a key walks into an object; null counts as absent. A number written as 4096.0 or
// 1e6 is an integer too, when it is exactly one.
class JsonConfig final : public CheckpointConfig {
 public:
  // Both must outlive this object; `root` is an object.
  JsonConfig(const nlohmann::json& root, const std::string& source) : root_(root), source_(source) {}

  // Throws Error(kBadFile) when a part of the key before its last dot names something other than an object.
  bool has(std::string_view key) const override { return find(key) != nullptr; }
  int64_t get_int(std::string_view key) const override;
  double get_double(std::string_view key) const override;
  bool get_bool(std::string_view key) const override;
  std::string get_string(std::string_view key) const override;
  std::vector<int64_t> get_ints(std::string_view key) const override;
  std::vector<std::string> get_strings(std::string_view key) const override;

 private:
  const nlohmann::json* find(std::string_view key) const;
  const nlohmann::json& get(std::string_view key, std::string_view expected) const;
  [[noreturn]] void wrong_type(std::string_view key, const nlohmann::json& value, std::string_view expected) const;
  int64_t to_int(std::string_view key, const nlohmann::json& value) const;
  std::string to_string(std::string_view key, const nlohmann::json& value) const;

  const nlohmann::json& root_;
  const std::string& source_;
};

}  // namespace witan
