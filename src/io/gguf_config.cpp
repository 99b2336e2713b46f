#include "io/gguf_config.h"

#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "base/error.h"
#include "base/printable.h"

namespace witan {
namespace {

template <typename T>
T element(const GgufValue& value, uint64_t index) {
  T number;
  std::memcpy(&number, value.bytes.data() + index * sizeof(T), sizeof(T));
  return number;
}

// Calls visit with the element as the C++ type that it has in the file, or with false if it is not a number.
template <typename Visit>
auto visit_number(const GgufValue& value, uint64_t index, Visit visit) {
  switch (value.type) {
    case GgufType::kUint8:
      return visit(element<uint8_t>(value, index));
    case GgufType::kInt8:
      return visit(element<int8_t>(value, index));
    case GgufType::kUint16:
      return visit(element<uint16_t>(value, index));
    case GgufType::kInt16:
      return visit(element<int16_t>(value, index));
    case GgufType::kUint32:
      return visit(element<uint32_t>(value, index));
    case GgufType::kInt32:
      return visit(element<int32_t>(value, index));
    case GgufType::kFloat32:
      return visit(element<float>(value, index));
    case GgufType::kUint64:
      return visit(element<uint64_t>(value, index));
    case GgufType::kInt64:
      return visit(element<int64_t>(value, index));
    case GgufType::kFloat64:
      return visit(element<double>(value, index));
    case GgufType::kBool:
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  return visit(false);
}

std::string describe(const GgufValue& value) {
  if (value.is_array) return fmt::format("an array of {} {}", value.count, gguf_type_name(value.type));
  if (value.type == GgufType::kString) return fmt::format("the string {}", printable(value.strings.front()));
  if (value.type == GgufType::kBool) return element<uint8_t>(value, 0) != 0 ? "the bool true" : "the bool false";
  return visit_number(value, 0,
                      [&](auto number) { return fmt::format("the {} {}", gguf_type_name(value.type), number); });
}

}  // namespace

void GgufConfig::wrong_type(std::string_view key, const GgufValue& value, std::string_view expected) const {
  fail(ErrorCode::kBadFile, "{}: {} is {}, expected {}", source_, key, describe(value), expected);
}

const GgufValue& GgufConfig::get(std::string_view key, std::string_view expected) const {
  const GgufValue* value = gguf_.find(key);
  if (value == nullptr) fail(ErrorCode::kBadFile, "{}: key {} is missing, expected {}", source_, key, expected);
  return *value;
}

const GgufValue& GgufConfig::get_scalar(std::string_view key, std::string_view expected) const {
  const GgufValue& value = get(key, expected);
  if (value.is_array) wrong_type(key, value, expected);
  return value;
}

int64_t GgufConfig::to_int(std::string_view key, const GgufValue& value, uint64_t index,
                           std::string_view expected) const {
  return visit_number(value, index, [&](auto number) -> int64_t {
    using T = decltype(number);
    if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
      if (!std::in_range<int64_t>(number)) {
        fail(ErrorCode::kBadFile, "{}: {} holds {}, expected at most 2^63 - 1", source_, key, number);
      }
      return static_cast<int64_t>(number);
    } else {
      wrong_type(key, value, expected);
    }
  });
}

int64_t GgufConfig::get_int(std::string_view key) const {
  return to_int(key, get_scalar(key, "an integer"), 0, "an integer");
}

std::vector<int64_t> GgufConfig::get_ints(std::string_view key) const {
  constexpr std::string_view kExpected = "integers";
  const GgufValue& value = get(key, kExpected);
  std::vector<int64_t> ints;
  ints.reserve(value.count);
  for (uint64_t i = 0; i < value.count; ++i) ints.push_back(to_int(key, value, i, kExpected));
  return ints;
}

double GgufConfig::get_double(std::string_view key) const {
  constexpr std::string_view kExpected = "a finite number";
  const GgufValue& value = get_scalar(key, kExpected);
  return visit_number(value, 0, [&](auto number) -> double {
    if constexpr (std::is_same_v<decltype(number), bool>) {
      wrong_type(key, value, kExpected);
    } else {
      const auto result = static_cast<double>(number);
      if (!std::isfinite(result)) wrong_type(key, value, kExpected);
      return result;
    }
  });
}

bool GgufConfig::get_bool(std::string_view key) const {
  const GgufValue& value = get_scalar(key, "a bool");
  if (value.type != GgufType::kBool) wrong_type(key, value, "a bool");
  return element<uint8_t>(value, 0) != 0;
}

std::string GgufConfig::get_string(std::string_view key) const {
  const GgufValue& value = get_scalar(key, "a string");
  if (value.type != GgufType::kString) wrong_type(key, value, "a string");
  return std::string(value.strings.front());
}

std::span<const std::string_view> GgufConfig::view_strings(std::string_view key) const {
  const GgufValue& value = get(key, "strings");
  // A writer with an empty list has no type to give it; files hold such arrays with any element type.
  if (value.type != GgufType::kString && !(value.is_array && value.count == 0)) wrong_type(key, value, "strings");
  return value.strings;
}

std::vector<std::string> GgufConfig::get_strings(std::string_view key) const {
  const std::span<const std::string_view> views = view_strings(key);
  return {views.begin(), views.end()};
}

std::vector<float> GgufConfig::get_floats(std::string_view key) const {
  constexpr std::string_view kExpected = "an array of float32";
  const GgufValue& value = get(key, kExpected);
  if (!value.is_array || (value.type != GgufType::kFloat32 && value.count != 0)) wrong_type(key, value, kExpected);
  std::vector<float> floats;
  floats.reserve(value.count);
  for (uint64_t i = 0; i < value.count; ++i) floats.push_back(element<float>(value, i));
  return floats;
}

}  // namespace witan
