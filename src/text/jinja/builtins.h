#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/interpreter.h"

namespace witan::jinja {

// The arguments of a call by the names of its parameters. Throws Error(kInvalidArgument) for too many and for keywords
// that the function does not have.
class Bound {
 public:
  Bound(std::string_view function, const Arguments& arguments, std::vector<std::string_view> parameters);

  // nullptr where the argument is not given.
  const Value* find(size_t parameter) const { return values_[parameter]; }
  // Throw where the argument is missing, or is of another type; with a default, only the latter.
  const Value& get(size_t parameter) const;
  const std::string& string(size_t parameter) const;
  int64_t integer(size_t parameter) const;
  Value value_or(size_t parameter, const Value& absent) const;
  int64_t integer_or(size_t parameter, int64_t absent) const;
  bool truth_or(size_t parameter, bool absent) const;

 private:
  [[noreturn]] void wrong_type(size_t parameter, std::string_view expected) const;

  std::string_view function_;
  std::vector<std::string_view> parameters_;
  std::vector<const Value*> values_;
};

// For functions without parameters.
inline void take_none(std::string_view function, const Arguments& arguments) {
  const Bound none(function, arguments, {});
}

struct Filter {
  std::string_view name;
  Value (*run)(Interpreter& interpreter, const Value& input, const Arguments& arguments);
};
// The tables of filters; a new one is a row.
std::span<const Filter> text_filters();
std::span<const Filter> sequence_filters();
const Filter* find_filter(std::string_view name);

struct Test {
  std::string_view name;
  bool (*run)(Interpreter& interpreter, const Value& input, const Arguments& arguments);
};
const Test* find_test(std::string_view name);

// A method of a string, list or dict, bound to it; undefined (not an error) where it has none of this name.
Value find_method(Interpreter& interpreter, const Value& object, const std::string& name);
Value find_string_method(Interpreter& interpreter, const Value& object, const std::string& name);
Value find_loop_attribute(Interpreter& interpreter, const std::shared_ptr<Loop>& loop, const std::string& name);

// range, dict, namespace, raise_exception, strftime_now, ...
void add_globals(Interpreter& interpreter, Scope& scope);

// value.a.b or value.0, as filters with an `attribute` parameter have it; integers index.
Value dotted_attribute(Interpreter& interpreter, const Value& value, const Value& path);
[[noreturn]] void fail_type(std::string_view what, const Value& value);

}  // namespace witan::jinja
