#pragma once

#include <compare>

#include "text/jinja/ast.h"
#include "text/jinja/interpreter.h"

namespace witan::jinja {

// Python's operators. Those that do not fit their operands throw Error(kInvalidArgument) as Python words it.

// 1 == 1.0 == true, and values of different types are unequal.
bool equal(const Value& a, const Value& b, Budget& budget);
// -1, 0, 1; numbers, strings and sequences only.
int compare(const Value& a, const Value& b, Budget& budget);
bool apply(CompareOperator op, const Value& a, const Value& b, Interpreter& interpreter);
bool contains(const Value& container, const Value& item, Interpreter& interpreter);
Value apply(BinaryOperator op, const Value& a, const Value& b, Interpreter& interpreter);
Value negate(const Value& value);
Value slice(const Value& object, const Value& begin, const Value& end, const Value& step, Interpreter& interpreter);

}  // namespace witan::jinja
