#include "text/jinja/builtins.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "text/jinja/operators.h"
#include "text/jinja/printing.h"
#include "text/jinja/strings.h"

namespace witan::jinja {

Bound::Bound(std::string_view function, const Arguments& arguments, std::vector<std::string_view> parameters)
    : function_(function), parameters_(std::move(parameters)), values_(parameters_.size(), nullptr) {
  if (arguments.positional.size() > parameters_.size()) {
    fail(ErrorCode::kInvalidArgument, "{}() takes {} argument(s), {} are given", function, parameters_.size(),
         arguments.positional.size());
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.keywords) {
    const auto place = std::ranges::find(parameters_, name);
    if (place == parameters_.end()) {
      fail(ErrorCode::kInvalidArgument, "{}() got an unexpected keyword argument '{}'", function, name);
    }
    const Value*& slot = values_[static_cast<size_t>(place - parameters_.begin())];
    if (slot != nullptr) fail(ErrorCode::kInvalidArgument, "{}() got two values for '{}'", function, name);
    slot = &value;
  }
}

void Bound::wrong_type(size_t parameter, std::string_view expected) const {
  if (values_[parameter]->is_undefined()) Interpreter::fail_undefined(*values_[parameter]);
  fail(ErrorCode::kInvalidArgument, "{}(): '{}' is {}, expected {}", function_, parameters_[parameter],
       values_[parameter]->type_name(), expected);
}

const Value& Bound::get(size_t parameter) const {
  if (values_[parameter] == nullptr) {
    fail(ErrorCode::kInvalidArgument, "{}() misses its argument '{}'", function_, parameters_[parameter]);
  }
  return *values_[parameter];
}
const std::string& Bound::string(size_t parameter) const {
  const StringObject* text = get(parameter).as_string();
  if (text == nullptr) wrong_type(parameter, "str");
  return text->text;
}
int64_t Bound::integer(size_t parameter) const {
  if (!get(parameter).is_integer()) wrong_type(parameter, "int");
  return get(parameter).integer();
}
Value Bound::value_or(size_t parameter, const Value& absent) const {
  return values_[parameter] == nullptr ? absent : *values_[parameter];
}
int64_t Bound::integer_or(size_t parameter, int64_t absent) const {
  return values_[parameter] == nullptr ? absent : integer(parameter);
}
bool Bound::truth_or(size_t parameter, bool absent) const {
  return values_[parameter] == nullptr ? absent : values_[parameter]->truth();
}

void fail_type(std::string_view what, const Value& value) {
  if (value.is_undefined()) Interpreter::fail_undefined(value);
  fail(ErrorCode::kInvalidArgument, "{} of '{}' object", what, value.type_name());
}

const Filter* find_filter(std::string_view name) {
  for (const std::span<const Filter> table : {text_filters(), sequence_filters()}) {
    const auto found = std::ranges::find(table, name, &Filter::name);
    if (found != table.end()) return &*found;
  }
  return nullptr;
}

Value dotted_attribute(Interpreter& interpreter, const Value& value, const Value& path) {
  if (path.is_integer()) return interpreter.item(value, path);
  if (!path.is_string()) return value;
  Value result = value;
  for (const std::string& part : split(path.as_string()->text, ".", -1)) {
    int64_t index = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index = error == std::errc{} && end == part.data() + part.size() && index >= 0;
    result = interpreter.item(result, is_index ? Value(index) : interpreter.string(part));
  }
  return result;
}

namespace {

bool is_callable(const Value& value) {
  return value.get_if<std::shared_ptr<Callable>>() != nullptr || value.get_if<std::shared_ptr<Macro>>() != nullptr;
}
bool is_iterable(const Value& value) {
  return value.is_string() || value.as_sequence() != nullptr || value.as_dict() != nullptr || value.is_undefined() ||
         value.get_if<std::shared_ptr<Loop>>() != nullptr;
}
// What has a length and takes an index.
bool is_sequence(const Value& value) {
  const SequenceObject* sequence = value.as_sequence();
  if (sequence != nullptr) return sequence->kind != SequenceKind::kGenerator;
  return value.is_string() || value.as_dict() != nullptr || value.is_undefined();
}

int64_t remainder(const Value& value, const Value& divisor, Interpreter& interpreter) {
  const Value rest = apply(BinaryOperator::kModulo, value, divisor, interpreter);
  return rest.is_integer() ? rest.integer() : rest.number() == 0.0 ? 0 : rest.number() == 1.0 ? 1 : 2;
}

template <CompareOperator kOp>
bool compares(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  return apply(kOp, input, Bound("test", arguments, {"other"}).get(0), interpreter);
}

template <bool (*kCheck)(const Value&)>
bool checks(Interpreter& /*interpreter*/, const Value& input, const Arguments& arguments) {
  take_none("test", arguments);
  return kCheck(input);
}

bool test_same(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Value& other = Bound("sameas", arguments, {"other"}).get(0);
  if (input.data().index() != other.data().index()) return false;
  if (input.is_string() || input.is_number()) return equal(input, other, interpreter.budget());
  return input.data() == other.data();
}

constexpr auto kTests = std::to_array<Test>({
    {"defined", checks<[](const Value& v) { return !v.is_undefined(); }>},
    {"undefined", checks<[](const Value& v) { return v.is_undefined(); }>},
    {"none", checks<[](const Value& v) { return v.is_none(); }>},
    {"boolean", checks<[](const Value& v) { return v.is_bool(); }>},
    {"true", checks<[](const Value& v) { return v.is_bool() && v.truth(); }>},
    {"false", checks<[](const Value& v) { return v.is_bool() && !v.truth(); }>},
    {"integer", checks<[](const Value& v) { return v.is_integer() && !v.is_bool(); }>},
    {"float", checks<[](const Value& v) { return v.get_if<double>() != nullptr; }>},
    {"number", checks<[](const Value& v) { return v.is_number(); }>},
    {"string", checks<[](const Value& v) { return v.is_string(); }>},
    {"mapping", checks<[](const Value& v) { return v.as_dict() != nullptr; }>},
    {"sequence", checks<is_sequence>},
    {"iterable", checks<is_iterable>},
    {"callable", checks<is_callable>},
    {"escaped", checks<[](const Value& v) { return v.is_string() && v.as_string()->escaped == Escaped::kYes; }>},
    {"odd", [](Interpreter& i, const Value& v, const Arguments&) { return remainder(v, 2, i) == 1; }},
    {"even", [](Interpreter& i, const Value& v, const Arguments&) { return remainder(v, 2, i) == 0; }},
    {"divisibleby", [](Interpreter& i, const Value& v,
                       const Arguments& a) { return remainder(v, Bound("divisibleby", a, {"num"}).get(0), i) == 0; }},
    {"lower", [](Interpreter& i, const Value& v, const Arguments&) { return is_cased(i.text_of(v), false); }},
    {"upper", [](Interpreter& i, const Value& v, const Arguments&) { return is_cased(i.text_of(v), true); }},
    {"filter", [](Interpreter& i, const Value& v, const Arguments&) { return find_filter(i.text_of(v)) != nullptr; }},
    {"test", [](Interpreter& i, const Value& v, const Arguments&) { return find_test(i.text_of(v)) != nullptr; }},
    {"in",
     [](Interpreter& i, const Value& v, const Arguments& a) { return contains(Bound("in", a, {"seq"}).get(0), v, i); }},
    {"sameas", test_same},
    {"==", compares<CompareOperator::kEqual>},
    {"eq", compares<CompareOperator::kEqual>},
    {"equalto", compares<CompareOperator::kEqual>},
    {"!=", compares<CompareOperator::kNotEqual>},
    {"ne", compares<CompareOperator::kNotEqual>},
    {">", compares<CompareOperator::kGreater>},
    {"gt", compares<CompareOperator::kGreater>},
    {"greaterthan", compares<CompareOperator::kGreater>},
    {">=", compares<CompareOperator::kGreaterEqual>},
    {"ge", compares<CompareOperator::kGreaterEqual>},
    {"<", compares<CompareOperator::kLess>},
    {"lt", compares<CompareOperator::kLess>},
    {"lessthan", compares<CompareOperator::kLess>},
    {"<=", compares<CompareOperator::kLessEqual>},
    {"le", compares<CompareOperator::kLessEqual>},
});

}  // namespace

const Test* find_test(std::string_view name) {
  const auto* const found = std::ranges::find(kTests, name, &Test::name);
  return found == kTests.end() ? nullptr : found;
}

}  // namespace witan::jinja
