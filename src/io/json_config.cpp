#include "io/json_config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "text/json_text.h"

namespace witan {

using nlohmann::json;

void JsonConfig::wrong_type(std::string_view key, const json& value, std::string_view expected) const {
  fail(ErrorCode::kBadFile, "{}: {} is {}, expected {}", source_, key, describe_json(value), expected);
}

const json* JsonConfig::find(std::string_view key) const {
  const json* node = &root_;
  for (size_t begin = 0; begin <= key.size();) {
    if (!node->is_object()) wrong_type(key.substr(0, begin - 1), *node, "an object");
    const size_t end = std::min(key.find('.', begin), key.size());
    const auto found = node->find(std::string(key.substr(begin, end - begin)));
    if (found == node->end() || found->is_null()) return nullptr;
    node = &*found;
    begin = end + 1;
  }
  return node;
}

const json& JsonConfig::get(std::string_view key, std::string_view expected) const {
  const json* value = find(key);
  if (value == nullptr) fail(ErrorCode::kBadFile, "{}: key {} is missing, expected {}", source_, key, expected);
  return *value;
}

int64_t JsonConfig::to_int(std::string_view key, const json& value) const {
  constexpr double kExactLimit = 0x1p53;  // up to here a double says which integer was meant
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (std::in_range<int64_t>(number)) return static_cast<int64_t>(number);
  } else if (value.is_number_integer()) {
    return value.get<int64_t>();
  } else if (value.is_number_float()) {
    const auto number = value.get<double>();
    if (std::abs(number) <= kExactLimit && std::trunc(number) == number) return static_cast<int64_t>(number);
  }
  wrong_type(key, value, "an integer below 2^63");
}

std::string JsonConfig::to_string(std::string_view key, const json& value) const {
  if (!value.is_string()) wrong_type(key, value, "a string");
  return value.get<std::string>();
}

int64_t JsonConfig::get_int(std::string_view key) const { return to_int(key, get(key, "an integer")); }

double JsonConfig::get_double(std::string_view key) const {
  const json& value = get(key, "a number");
  if (!value.is_number()) wrong_type(key, value, "a number");
  return value.get<double>();
}

bool JsonConfig::get_bool(std::string_view key) const {
  const json& value = get(key, "a bool");
  if (!value.is_boolean()) wrong_type(key, value, "a bool");
  return value.get<bool>();
}

std::string JsonConfig::get_string(std::string_view key) const { return to_string(key, get(key, "a string")); }

std::vector<int64_t> JsonConfig::get_ints(std::string_view key) const {
  const json& value = get(key, "integers");
  if (!value.is_array()) return {to_int(key, value)};
  std::vector<int64_t> ints;
  for (const json& element : value) ints.push_back(to_int(key, element));
  return ints;
}

std::vector<std::string> JsonConfig::get_strings(std::string_view key) const {
  const json& value = get(key, "strings");
  if (!value.is_array()) return {to_string(key, value)};
  std::vector<std::string> strings;
  for (const json& element : value) strings.push_back(to_string(key, element));
  return strings;
}

}  // namespace witan
