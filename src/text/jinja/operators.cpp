#include "text/jinja/operators.h"

#include <algorithm>
#include <cmath>
#include <compare>

#include "base/error.h"
#include "text/jinja/printing.h"
#include "text/jinja/strings.h"

namespace witan::jinja {
namespace {

std::string_view symbol(BinaryOperator op) {
  constexpr std::string_view kSymbols[] = {"+", "-", "*", "/", "//", "%", "** or pow()"};
  return kSymbols[static_cast<size_t>(op)];
}

[[noreturn]] void unsupported(std::string_view what, const Value& a, const Value& b) {
  if (a.is_undefined()) Interpreter::fail_undefined(a);
  if (b.is_undefined()) Interpreter::fail_undefined(b);
  fail(ErrorCode::kInvalidArgument, "unsupported operand type(s) for {}: '{}' and '{}'", what, a.type_name(),
       b.type_name());
}

[[noreturn]] void overflow() { fail(ErrorCode::kInvalidArgument, "a number too large for 64 bits"); }

bool is_list_like(const SequenceObject* sequence) {
  return sequence != nullptr && (sequence->kind == SequenceKind::kList || sequence->kind == SequenceKind::kTuple);
}

int64_t integer_power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) overflow();
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) overflow();
  }
  return result;
}

Value integer_arithmetic(BinaryOperator op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case BinaryOperator::kAdd:
      if (__builtin_add_overflow(a, b, &result)) overflow();
      return result;
    case BinaryOperator::kSubtract:
      if (__builtin_sub_overflow(a, b, &result)) overflow();
      return result;
    case BinaryOperator::kMultiply:
      if (__builtin_mul_overflow(a, b, &result)) overflow();
      return result;
    case BinaryOperator::kDivide:
      if (b == 0) fail(ErrorCode::kInvalidArgument, "division by zero");
      return static_cast<double>(a) / static_cast<double>(b);
    case BinaryOperator::kFloorDivide:
    case BinaryOperator::kModulo: {
      if (b == 0) fail(ErrorCode::kInvalidArgument, "integer division or modulo by zero");
      if (b == -1) return op == BinaryOperator::kModulo ? Value(0) : negate(a);
      const int64_t rest = a % b;
      const bool floors = rest != 0 && (rest < 0) != (b < 0);
      return op == BinaryOperator::kModulo ? rest + (floors ? b : 0) : a / b - (floors ? 1 : 0);
    }
    case BinaryOperator::kPower:
      if (b < 0) return std::pow(static_cast<double>(a), static_cast<double>(b));
      if (a == 0 || a == 1) return b == 0 ? int64_t{1} : a;
      if (a == -1) return b % 2 == 0 ? int64_t{1} : int64_t{-1};
      if (b > 63) overflow();
      return integer_power(a, b);
  }
  return {};
}

Value float_arithmetic(BinaryOperator op, double a, double b) {
  const bool divides =
      op == BinaryOperator::kDivide || op == BinaryOperator::kFloorDivide || op == BinaryOperator::kModulo;
  if (divides && b == 0.0) fail(ErrorCode::kInvalidArgument, "float division by zero");
  switch (op) {
    case BinaryOperator::kAdd:
      return a + b;
    case BinaryOperator::kSubtract:
      return a - b;
    case BinaryOperator::kMultiply:
      return a * b;
    case BinaryOperator::kDivide:
      return a / b;
    case BinaryOperator::kFloorDivide:
      return std::floor(a / b);
    case BinaryOperator::kModulo: {
      const double rest = std::fmod(a, b);
      return rest != 0.0 && (rest < 0.0) != (b < 0.0) ? rest + b : rest;
    }
    case BinaryOperator::kPower:
      return std::pow(a, b);
  }
  return {};
}

Value add_strings(const StringObject& a, const StringObject& b, Interpreter& interpreter) {
  interpreter.budget().check_room(a.text.size() + b.text.size());
  if (a.escaped == b.escaped) return interpreter.string(a.text + b.text, a.escaped);
  const auto escaped = [](const StringObject& s) { return s.escaped == Escaped::kYes ? s.text : html_escaped(s.text); };
  return interpreter.string(escaped(a) + escaped(b), Escaped::kYes);
}

Value repeated(const Value& value, int64_t times, Interpreter& interpreter) {
  const auto count = static_cast<size_t>(std::max<int64_t>(times, 0));
  if (const StringObject* text = value.as_string()) {
    size_t bytes = 0;
    if (__builtin_mul_overflow(text->text.size(), count, &bytes)) bytes = SIZE_MAX;
    interpreter.budget().check_room(bytes);
    interpreter.budget().take_copied_bytes(bytes);
    std::string result;
    result.reserve(bytes);
    if (bytes > 0) {
      for (size_t i = 0; i < count; ++i) result += text->text;
    }
    return interpreter.string(std::move(result), text->escaped);
  }
  const SequenceObject* sequence = value.as_sequence();
  size_t items = 0;
  if (__builtin_mul_overflow(sequence->items.size(), count, &items)) items = SIZE_MAX / sizeof(Value);
  size_t bytes = 0;
  if (__builtin_mul_overflow(items, sizeof(Value), &bytes)) bytes = SIZE_MAX;
  interpreter.budget().check_room(bytes);
  interpreter.budget().take_steps(items);
  std::vector<Value> result;
  result.reserve(items);
  if (items > 0) {
    for (size_t i = 0; i < count; ++i) result.insert(result.end(), sequence->items.begin(), sequence->items.end());
  }
  return interpreter.sequence(std::move(result), sequence->kind);
}

int sign(auto order) {
  if (std::is_lt(order)) return -1;
  return std::is_gt(order) ? 1 : 0;
}

}  // namespace

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.take_steps(1);
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.integer() == b.integer();
    return a.number() == b.number();
  }
  if (a.data().index() != b.data().index()) return false;
  if (a.is_undefined() || a.is_none()) return true;
  if (const StringObject* text = a.as_string()) {
    budget.take_copied_bytes(text->text.size());
    return text->text == b.as_string()->text;
  }
  if (const SequenceObject* left = a.as_sequence()) {
    const SequenceObject* right = b.as_sequence();
    if (left == right) return true;
    if (left->kind != right->kind || left->kind == SequenceKind::kGenerator) return false;
    return std::ranges::equal(left->items, right->items,
                              [&](const Value& x, const Value& y) { return equal(x, y, budget); });
  }
  if (const DictObject* left = a.as_dict()) {
    const DictObject* right = b.as_dict();
    if (left == right) return true;
    if (left->entries().size() != right->entries().size()) return false;
    return std::ranges::all_of(left->entries(), [&](const DictObject::Entry& entry) {
      const Value* other = right->find(entry.first);
      return other != nullptr && equal(entry.second, *other, budget);
    });
  }
  return a.data() == b.data();
}

int compare(const Value& a, const Value& b, Budget& budget) {
  budget.take_steps(1);
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return sign(a.integer() <=> b.integer());
    return sign(a.number() <=> b.number());
  }
  if (a.is_string() && b.is_string()) {
    budget.take_copied_bytes(std::min(a.as_string()->text.size(), b.as_string()->text.size()));
    return sign(a.as_string()->text <=> b.as_string()->text);
  }
  const SequenceObject* left = a.as_sequence();
  const SequenceObject* right = b.as_sequence();
  if (is_list_like(left) && is_list_like(right) && left->kind == right->kind) {
    for (size_t i = 0; i < std::min(left->items.size(), right->items.size()); ++i) {
      if (equal(left->items[i], right->items[i], budget)) continue;
      return compare(left->items[i], right->items[i], budget);
    }
    return sign(left->items.size() <=> right->items.size());
  }
  if (a.is_undefined()) Interpreter::fail_undefined(a);
  if (b.is_undefined()) Interpreter::fail_undefined(b);
  fail(ErrorCode::kInvalidArgument, "'{}' and '{}' cannot be ordered", a.type_name(), b.type_name());
}

bool contains(const Value& container, const Value& item, Interpreter& interpreter) {
  if (const StringObject* text = container.as_string()) {
    const StringObject* part = item.as_string();
    if (part == nullptr) {
      if (item.is_undefined()) Interpreter::fail_undefined(item);
      fail(ErrorCode::kInvalidArgument, "'in <string>' requires string as left operand, not {}", item.type_name());
    }
    interpreter.budget().take_copied_bytes(text->text.size() + part->text.size());
    return text->text.find(part->text) != std::string::npos;
  }
  if (const DictObject* dict = container.as_dict()) return dict->find(item) != nullptr;
  const std::shared_ptr<SequenceObject> items = interpreter.items_of(container);
  return std::ranges::any_of(items->items,
                             [&](const Value& other) { return equal(item, other, interpreter.budget()); });
}

bool apply(CompareOperator op, const Value& a, const Value& b, Interpreter& interpreter) {
  Budget& budget = interpreter.budget();
  switch (op) {
    case CompareOperator::kEqual:
      return equal(a, b, budget);
    case CompareOperator::kNotEqual:
      return !equal(a, b, budget);
    case CompareOperator::kIn:
      return contains(b, a, interpreter);
    case CompareOperator::kNotIn:
      return !contains(b, a, interpreter);
    default:
      break;
  }
  const double* left = a.get_if<double>();
  const double* right = b.get_if<double>();
  if ((left != nullptr && std::isnan(*left)) || (right != nullptr && std::isnan(*right))) return false;
  const int order = compare(a, b, budget);
  if (op == CompareOperator::kLess) return order < 0;
  if (op == CompareOperator::kLessEqual) return order <= 0;
  return op == CompareOperator::kGreater ? order > 0 : order >= 0;
}

Value apply(BinaryOperator op, const Value& a, const Value& b, Interpreter& interpreter) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return integer_arithmetic(op, a.integer(), b.integer());
    return float_arithmetic(op, a.number(), b.number());
  }
  if (op == BinaryOperator::kModulo && a.is_string()) {
    return interpreter.string(percent_format(a.as_string()->text, b, interpreter), a.as_string()->escaped);
  }
  if (op == BinaryOperator::kAdd && a.is_string() && b.is_string()) {
    return add_strings(*a.as_string(), *b.as_string(), interpreter);
  }
  const SequenceObject* left = a.as_sequence();
  const SequenceObject* right = b.as_sequence();
  if (op == BinaryOperator::kAdd && is_list_like(left) && is_list_like(right) && left->kind == right->kind) {
    interpreter.budget().check_room((left->items.size() + right->items.size()) * sizeof(Value));
    std::vector<Value> items = left->items;
    items.insert(items.end(), right->items.begin(), right->items.end());
    return interpreter.sequence(std::move(items), left->kind);
  }
  if (op == BinaryOperator::kMultiply) {
    if ((a.is_string() || is_list_like(left)) && b.is_integer()) return repeated(a, b.integer(), interpreter);
    if (a.is_integer() && (b.is_string() || is_list_like(right))) return repeated(b, a.integer(), interpreter);
  }
  if (op == BinaryOperator::kAdd && a.is_string() && !b.is_undefined()) {
    fail(ErrorCode::kInvalidArgument, "can only concatenate str (not \"{}\") to str", b.type_name());
  }
  unsupported(symbol(op), a, b);
}

Value negate(const Value& value) {
  if (const double* number = value.get_if<double>()) return -*number;
  if (!value.is_integer()) {
    if (value.is_undefined()) Interpreter::fail_undefined(value);
    fail(ErrorCode::kInvalidArgument, "bad operand type for unary -: '{}'", value.type_name());
  }
  if (value.integer() == INT64_MIN) overflow();
  return -value.integer();
}

Value slice(const Value& object, const Value& begin, const Value& end, const Value& step, Interpreter& interpreter) {
  const auto index = [](const Value& value, int64_t absent) {
    if (value.is_none()) return absent;
    if (!value.is_integer()) fail(ErrorCode::kInvalidArgument, "slice indices must be integers or None");
    return value.integer();
  };
  const StringObject* text = object.as_string();
  const SequenceObject* sequence = object.as_sequence();
  if (sequence != nullptr && sequence->kind != SequenceKind::kList && sequence->kind != SequenceKind::kTuple &&
      sequence->kind != SequenceKind::kRange) {
    sequence = nullptr;
  }
  if (text == nullptr && sequence == nullptr) {
    if (object.is_undefined()) Interpreter::fail_undefined(object);
    return interpreter.undefined(fmt::format("'{}' object cannot be sliced", object.type_name()));
  }
  const std::vector<size_t> starts = text != nullptr ? character_starts(text->text) : std::vector<size_t>();
  const auto size = static_cast<int64_t>(text != nullptr ? starts.size() - 1 : sequence->items.size());
  const int64_t stride = index(step, 1);
  if (stride == 0) fail(ErrorCode::kInvalidArgument, "slice step cannot be zero");
  const auto clamped = [&](int64_t place) {
    if (place < 0) place = place < -size ? -1 : place + size;
    return stride > 0 ? std::clamp<int64_t>(place, 0, size) : std::clamp<int64_t>(place, -1, size - 1);
  };
  const int64_t first = begin.is_none() ? (stride > 0 ? 0 : size - 1) : clamped(index(begin, 0));
  const int64_t last = end.is_none() ? (stride > 0 ? size : -1) : clamped(index(end, 0));
  interpreter.budget().take_steps(1 + static_cast<size_t>(size) / 4);
  std::string characters;
  std::vector<Value> items;
  for (int64_t i = first; stride > 0 ? i < last : i > last;) {
    const auto at = static_cast<size_t>(i);
    if (text != nullptr) {
      characters.append(text->text, starts[at], starts[at + 1] - starts[at]);
    } else {
      items.push_back(sequence->items[at]);
    }
    if (__builtin_add_overflow(i, stride, &i)) break;
  }
  if (text != nullptr) return interpreter.string(std::move(characters), text->escaped);
  return interpreter.sequence(std::move(items), sequence->kind);
}

}  // namespace witan::jinja
