#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"
#include "text/jinja/printing.h"
#include "text/jinja/strings.h"

namespace witan::jinja {
namespace {

// The result has the input's mark where the input is a string.
Value like(Interpreter& interpreter, const Value& input, std::string text) {
  return interpreter.string(std::move(text), input.is_string() ? input.as_string()->escaped : Escaped::kNo);
}

template <std::string (*kChange)(std::string_view)>
Value changes(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  take_none("filter", arguments);
  return like(interpreter, input, kChange(interpreter.text_of(input)));
}

Value trim(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("trim", arguments, {"chars"});
  const Value chars = args.value_or(0, None{});
  const std::string text = interpreter.text_of(input);
  if (chars.is_none()) return like(interpreter, input, std::string(stripped(text, nullptr, Side::kBoth)));
  const std::string_view set = args.string(0);
  return like(interpreter, input, std::string(stripped(text, &set, Side::kBoth)));
}

Value replace(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("replace", arguments, {"old", "new", "count"});
  const std::string text = interpreter.text_of(input);
  const std::string from = interpreter.text_of(args.get(0));
  const std::string to = interpreter.text_of(args.get(1));
  const int64_t count = args.find(2) == nullptr || args.find(2)->is_none() ? -1 : args.integer(2);
  const size_t bytes = replaced_bytes(text, from, to);
  interpreter.budget().check_room(bytes);
  interpreter.budget().take_copied_bytes(bytes);
  return interpreter.string(replaced(text, from, to, count));
}

Value indent(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("indent", arguments, {"width", "first", "blank"});
  constexpr int64_t kMaxWidth = 1024;
  std::string margin(4, ' ');
  if (args.find(0) != nullptr && args.find(0)->is_string()) {
    margin = args.string(0);
  } else if (args.find(0) != nullptr) {
    if (args.integer(0) > kMaxWidth)
      fail(ErrorCode::kInvalidArgument, "indent() by more than {} characters", kMaxWidth);
    margin.assign(static_cast<size_t>(std::max<int64_t>(args.integer(0), 0)), ' ');
  }
  const bool first = args.truth_or(1, false);
  const bool blank = args.truth_or(2, false);
  // A newline at the end begins one more, empty line, as in Jinja.
  const std::string text = interpreter.text_of(input) + "\n";
  std::string out;
  size_t number = 0;
  for (const std::string_view line : split_lines(text, false)) {
    interpreter.budget().take_copied_bytes(line.size() + margin.size());
    interpreter.budget().check_room(out.size() + line.size() + margin.size());
    if (number > 0) out += "\n";
    if (number == 0 ? first : blank || !line.empty()) out += margin;
    out += line;
    ++number;
  }
  return like(interpreter, input, std::move(out));
}

Value to_json_filter(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  // The parameters of transformers' filter, not Jinja's own.
  const Bound args("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  constexpr int64_t kMaxIndent = 64;
  JsonStyle style{.ensure_ascii = args.truth_or(0, false), .sort_keys = args.truth_or(3, false), .indent = {}};
  if (const Value* width = args.find(1); width != nullptr && !width->is_none()) {
    if (width->is_string()) {
      style.indent = args.string(1);
    } else {
      style.indent = std::string(static_cast<size_t>(std::clamp<int64_t>(args.integer(1), 0, kMaxIndent)), ' ');
    }
    style.item_separator.assign(1, ',');
  }
  if (const Value* separators = args.find(2); separators != nullptr && !separators->is_none()) {
    const std::shared_ptr<SequenceObject> pair = interpreter.items_of(*separators);
    if (pair->items.size() != 2 || !pair->items[0].is_string() || !pair->items[1].is_string()) {
      fail(ErrorCode::kInvalidArgument, "tojson(): 'separators' is not a pair of strings");
    }
    style.item_separator = pair->items[0].as_string()->text;
    style.key_separator = pair->items[1].as_string()->text;
  }
  return interpreter.string(to_json(input, style, interpreter));
}

Value escape(Interpreter& interpreter, const Value& input, const Arguments& /*arguments*/) {
  if (input.is_string() && input.as_string()->escaped == Escaped::kYes) return input;
  return interpreter.string(html_escaped(interpreter.text_of(input)), Escaped::kYes);
}
Value force_escape(Interpreter& interpreter, const Value& input, const Arguments& /*arguments*/) {
  return interpreter.string(html_escaped(interpreter.text_of(input)), Escaped::kYes);
}
Value safe(Interpreter& interpreter, const Value& input, const Arguments& /*arguments*/) {
  return interpreter.string(interpreter.text_of(input), Escaped::kYes);
}
Value to_string(Interpreter& interpreter, const Value& input, const Arguments& /*arguments*/) {
  return input.is_string() ? input : interpreter.string(interpreter.text_of(input));
}

Value format(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  if (!arguments.keywords.empty() && !arguments.positional.empty()) {
    fail(ErrorCode::kInvalidArgument, "can't handle positional and keyword arguments at the same time");
  }
  Value values;
  if (arguments.keywords.empty()) {
    values = interpreter.sequence(arguments.positional, SequenceKind::kTuple);
  } else {
    DictObject dict;
    for (const auto& [name, value] : arguments.keywords) {
      interpreter.add_entry(dict, interpreter.string(name), value);
    }
    values = interpreter.dict(std::move(dict));
  }
  return like(interpreter, input, percent_format(interpreter.text_of(input), values, interpreter));
}

// What int() and float() accept of a string: white space around it, underscores between digits.
std::string number_text(const std::string& text) {
  std::string digits(stripped(text, nullptr, Side::kBoth));
  std::erase(digits, '_');
  if (digits.starts_with('+')) digits.erase(0, 1);
  return digits;
}

std::optional<double> parse_float(const std::string& text) {
  const std::string digits = number_text(text);
  double value = 0.0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (end != digits.data() + digits.size() || digits.empty()) return std::nullopt;
  if (error == std::errc::result_out_of_range) return digits.starts_with('-') ? -HUGE_VAL : HUGE_VAL;
  return value;
}

Value truncated(double number, const Value& absent) {
  if (!(std::abs(number) < 0x1p63)) return absent;
  return static_cast<int64_t>(number);
}

Value to_int(Interpreter& /*interpreter*/, const Value& input, const Arguments& arguments) {
  const Bound args("int", arguments, {"default", "base"});
  Value absent = args.value_or(0, 0);
  if (input.is_undefined()) Interpreter::fail_undefined(input);
  if (input.is_integer()) return input.integer();
  if (const double* number = input.get_if<double>()) return truncated(*number, absent);
  if (!input.is_string()) return absent;
  std::string digits = number_text(input.as_string()->text);
  const int64_t base = args.integer_or(1, 10);
  if (base < 2 || base > 36) fail(ErrorCode::kInvalidArgument, "int(): 'base' is {}, expected 2 to 36", base);
  const std::string_view prefix = base == 16 ? "0x" : base == 8 ? "0o" : base == 2 ? "0b" : "";
  if (!prefix.empty() && lower_case(digits).starts_with(prefix)) digits.erase(0, 2);
  int64_t value = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, static_cast<int>(base));
  if (error == std::errc{} && end == digits.data() + digits.size()) return value;
  const std::optional<double> number = parse_float(input.as_string()->text);
  return number ? truncated(*number, absent) : absent;
}

Value to_float(Interpreter& /*interpreter*/, const Value& input, const Arguments& arguments) {
  Value absent = Bound("float", arguments, {"default"}).value_or(0, 0.0);
  if (input.is_undefined()) Interpreter::fail_undefined(input);
  if (input.is_number()) return input.number();
  if (!input.is_string()) return absent;
  const std::optional<double> number = parse_float(input.as_string()->text);
  return number ? Value(*number) : absent;
}

Value absolute(Interpreter& /*interpreter*/, const Value& input, const Arguments& /*arguments*/) {
  if (!input.is_number()) fail_type("the absolute value", input);
  if (input.is_integer()) return input.integer() < 0 ? negate(input) : Value(input.integer());
  return std::abs(input.number());
}

Value round_filter(Interpreter& /*interpreter*/, const Value& input, const Arguments& arguments) {
  const Bound args("round", arguments, {"precision", "method"});
  const int64_t precision = std::clamp<int64_t>(args.integer_or(0, 0), -300, 300);
  const std::string method = args.find(1) == nullptr ? "common" : args.string(1);
  if (!input.is_number()) fail_type("rounding", input);
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double number = input.number();
  if (method == "ceil") return std::ceil(number * scale) / scale;
  if (method == "floor") return std::floor(number * scale) / scale;
  if (method != "common") fail(ErrorCode::kInvalidArgument, "method must be common, ceil or floor");
  if (precision < 0 || input.is_integer()) {
    const double rounded = precision < 0 ? std::nearbyint(number * scale) / scale : number;
    return input.is_integer() ? Value(static_cast<int64_t>(rounded)) : Value(rounded);
  }
  // The decimal digits of the exact value, rounded half to even, as Python's round() does.
  double rounded = 0.0;
  const std::string text = fmt::format("{:.{}f}", number, precision);
  std::from_chars(text.data(), text.data() + text.size(), rounded);
  return rounded;
}

Value center(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const int64_t width = Bound("center", arguments, {"width"}).integer_or(0, 80);
  std::string text = interpreter.text_of(input);
  const auto length = static_cast<int64_t>(num_characters(text));
  if (width <= length) return like(interpreter, input, std::move(text));
  interpreter.budget().check_room(static_cast<size_t>(width));
  const int64_t padding = width - length;
  const int64_t left = padding / 2 + (padding & width & 1);
  return like(
      interpreter, input,
      std::string(static_cast<size_t>(left), ' ') + text + std::string(static_cast<size_t>(padding - left), ' '));
}

Value truncate(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("truncate", arguments, {"length", "killwords", "end", "leeway"});
  const int64_t length = args.integer_or(0, 255);
  const std::string end = args.find(2) == nullptr ? "..." : args.string(2);
  const std::string text = interpreter.text_of(input);
  const std::vector<size_t> starts = character_starts(text);
  const auto size = static_cast<int64_t>(starts.size()) - 1;
  const auto end_size = static_cast<int64_t>(num_characters(end));
  if (length < end_size)
    fail(ErrorCode::kInvalidArgument, "truncate(): expected length >= {}, got {}", end_size, length);
  if (size <= length + args.integer_or(3, 5)) return like(interpreter, input, text);
  std::string result = text.substr(0, starts[static_cast<size_t>(length - end_size)]);
  if (!args.truth_or(1, false)) result = result.substr(0, result.rfind(' '));
  return like(interpreter, input, result + end);
}

Value word_count(Interpreter& interpreter, const Value& input, const Arguments& /*arguments*/) {
  const std::string text = interpreter.text_of(input);
  int64_t count = 0;
  bool in_word = false;
  for (const char c : text) {
    const bool is_word = c == '_' || (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ||
                         static_cast<uint8_t>(c) >= 0x80;
    if (is_word && !in_word) ++count;
    in_word = is_word;
  }
  return count;
}

Value url_encode(Interpreter& interpreter, const Value& input, const Arguments& /*arguments*/) {
  std::string out;
  for (const char c : interpreter.text_of(input)) {
    const bool plain = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ||
                       std::string_view("_.-~/").find(c) != std::string_view::npos;
    out += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<uint8_t>(c));
  }
  return interpreter.string(std::move(out));
}

constexpr auto kFilters = std::to_array<Filter>({
    {"upper", changes<upper_case>},
    {"lower", changes<lower_case>},
    {"title", changes<filter_title>},
    {"capitalize", changes<capitalized>},
    {"trim", trim},
    {"replace", replace},
    {"indent", indent},
    {"tojson", to_json_filter},
    {"escape", escape},
    {"e", escape},
    {"forceescape", force_escape},
    {"safe", safe},
    {"string", to_string},
    {"format", format},
    {"int", to_int},
    {"float", to_float},
    {"abs", absolute},
    {"round", round_filter},
    {"center", center},
    {"truncate", truncate},
    {"wordcount", word_count},
    {"urlencode", url_encode},
});

}  // namespace

std::span<const Filter> text_filters() { return kFilters; }

}  // namespace witan::jinja
