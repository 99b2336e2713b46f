#pragma once

#include <string>

#include "text/jinja/interpreter.h"

namespace witan::jinja {

// str(value) and repr(value) as Python has them.
std::string to_text(const Value& value, Interpreter& interpreter);
std::string to_repr(const Value& value, Interpreter& interpreter);
// 0.1, 1e-05, 1e+16, 3.0, nan, inf.
std::string float_text(double value);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent;  // of one level; none: all on one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
// json.dumps(value).
std::string to_json(const Value& value, const JsonStyle& style, Interpreter& interpreter);

// format % values: a tuple, or a single value.
std::string percent_format(const std::string& format, const Value& values, Interpreter& interpreter);

}  // namespace witan::jinja
