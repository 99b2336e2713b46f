#include "text/jinja/printing.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "text/jinja/operators.h"
#include "text/unicode.h"

namespace witan::jinja {
namespace {

// Text that grows under the budget. The number of items printed is bounded by the budget's steps, not by the value's
// size in memory: a list that holds one list twice, and so on, prints exponentially.
class Writer {
 public:
  explicit Writer(Interpreter& rendering) : interpreter(rendering) {}

  Writer& add(std::string_view text) {
    if (text_.size() + text.size() > interpreter.budget().limits().max_output_bytes) {
      fail(ErrorCode::kInvalidArgument, "a text of more than {} bytes", interpreter.budget().limits().max_output_bytes);
    }
    interpreter.budget().take_copied_bytes(text.size());
    interpreter.budget().check_room(text_.size() + text.size());
    text_ += text;
    return *this;
  }
  std::string done() { return std::move(text_); }

  Interpreter& interpreter;

 private:
  std::string text_;
};

bool is_printable(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == ' ';
    default:
      return true;
  }
}

std::string quoted(const std::string& text) {
  const bool has_single = text.find('\'') != std::string::npos;
  const char quote = has_single && text.find('"') == std::string::npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = next_utf8(text, at);
    const char32_t code = c.code_point;
    if (code == static_cast<char32_t>(quote) || code == '\\') {
      out.append("\\").append(1, static_cast<char>(code));
    } else if (code == '\n' || code == '\r' || code == '\t') {
      out += code == '\n' ? "\\n" : code == '\r' ? "\\r" : "\\t";
    } else if (is_printable(code)) {
      out.append(text, at, c.size);
    } else {
      const auto number = static_cast<uint32_t>(code);
      out += number < 0x100     ? fmt::format("\\x{:02x}", number)
             : number < 0x10000 ? fmt::format("\\u{:04x}", number)
                                : fmt::format("\\U{:08x}", number);
    }
    at += c.size;
  }
  return out += quote;
}

void write_repr(const Value& value, Writer& out, int depth);

void write_items(const std::vector<Value>& items, std::string_view open, std::string_view close, Writer& out,
                 int depth) {
  out.add(open);
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.add(", ");
    write_repr(items[i], out, depth);
  }
  out.add(close);
}

void write_sequence(const SequenceObject& sequence, Writer& out, int depth) {
  switch (sequence.kind) {
    case SequenceKind::kList:
      return write_items(sequence.items, "[", "]", out, depth);
    case SequenceKind::kTuple:
      return write_items(sequence.items, "(", sequence.items.size() == 1 ? ",)" : ")", out, depth);
    case SequenceKind::kKeys:
      return write_items(sequence.items, "dict_keys([", "])", out, depth);
    case SequenceKind::kValues:
      return write_items(sequence.items, "dict_values([", "])", out, depth);
    case SequenceKind::kItems:
      return write_items(sequence.items, "dict_items([", "])", out, depth);
    case SequenceKind::kRange: {
      const int64_t first = sequence.items.empty() ? 0 : sequence.items.front().integer();
      const int64_t step = sequence.items.size() < 2 ? 1 : sequence.items[1].integer() - first;
      const int64_t last = sequence.items.empty() ? 0 : sequence.items.back().integer() + step;
      out.add(step == 1 ? fmt::format("range({}, {})", first, last)
                        : fmt::format("range({}, {}, {})", first, last, step));
      return;
    }
    case SequenceKind::kGenerator:
      out.add("<generator object>");
  }
}

void write_repr(const Value& value, Writer& out, int depth) {
  constexpr int kMaxDepth = 200;  // a namespace may hold itself; other values nest less
  if (depth > kMaxDepth) fail(ErrorCode::kInvalidArgument, "a value that holds itself cannot be printed");
  if (value.is_undefined()) {
    out.add("Undefined");
  } else if (value.is_none()) {
    out.add("None");
  } else if (const bool* flag = value.get_if<bool>()) {
    out.add(*flag ? "True" : "False");
  } else if (const int64_t* integer = value.get_if<int64_t>()) {
    out.add(std::to_string(*integer));
  } else if (const double* number = value.get_if<double>()) {
    out.add(float_text(*number));
  } else if (const StringObject* text = value.as_string()) {
    out.interpreter.budget().take_copied_bytes(text->text.size());
    out.add(text->escaped == Escaped::kYes ? fmt::format("Markup({})", quoted(text->text)) : quoted(text->text));
  } else if (const SequenceObject* sequence = value.as_sequence()) {
    write_sequence(*sequence, out, depth + 1);
  } else if (const DictObject* dict = value.as_dict()) {
    out.add("{");
    bool is_first = true;
    for (const auto& [key, item] : dict->entries()) {
      if (!std::exchange(is_first, false)) out.add(", ");
      write_repr(key, out, depth + 1);
      out.add(": ");
      write_repr(item, out, depth + 1);
    }
    out.add("}");
  } else if (Namespace* const* space = value.get_if<Namespace*>()) {
    out.add("<Namespace {");
    bool is_first = true;
    for (const auto& [key, item] : (*space)->attributes) {
      if (!std::exchange(is_first, false)) out.add(", ");
      out.add(quoted(key)).add(": ");
      write_repr(item, out, depth + 1);
    }
    out.add("}>");
  } else if (const auto* macro = value.get_if<std::shared_ptr<Macro>>()) {
    out.add(fmt::format("<Macro '{}'>", (*macro)->definition->name));
  } else {
    out.add(fmt::format("<{}>", value.type_name()));
  }
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, Interpreter& interpreter) : style_(style), out_(interpreter) {}

  std::string run(const Value& value) {
    write(value, 0);
    return out_.done();
  }

 private:
  void write(const Value& value, int depth) {
    if (value.is_none()) {
      out_.add("null");
    } else if (const bool* flag = value.get_if<bool>()) {
      out_.add(*flag ? "true" : "false");
    } else if (const int64_t* integer = value.get_if<int64_t>()) {
      out_.add(std::to_string(*integer));
    } else if (const double* number = value.get_if<double>()) {
      out_.add(number_text(*number));
    } else if (const StringObject* text = value.as_string()) {
      write_string(text->text);
    } else if (const DictObject* dict = value.as_dict()) {
      write_dict(*dict, depth);
    } else if (const SequenceObject* sequence = value.as_sequence();
               sequence != nullptr &&
               (sequence->kind == SequenceKind::kList || sequence->kind == SequenceKind::kTuple)) {
      write_list(*sequence, depth);
    } else {
      fail(ErrorCode::kInvalidArgument, "Object of type {} is not JSON serializable", value.type_name());
    }
  }

  static std::string number_text(double number) {
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
    return float_text(number);
  }

  void new_line(int depth) {
    if (!style_.indent) return;
    out_.add("\n");
    for (int i = 0; i < depth; ++i) out_.add(*style_.indent);
  }

  void write_list(const SequenceObject& list, int depth) {
    if (list.items.empty()) return void(out_.add("[]"));
    out_.add("[");
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out_.add(style_.item_separator);
      new_line(depth + 1);
      write(list.items[i], depth + 1);
    }
    new_line(depth);
    out_.add("]");
  }

  void write_dict(const DictObject& dict, int depth) {
    if (dict.entries().empty()) return void(out_.add("{}"));
    std::vector<const DictObject::Entry*> entries;
    for (const DictObject::Entry& entry : dict.entries()) entries.push_back(&entry);
    if (style_.sort_keys) {
      std::ranges::stable_sort(entries, [this](const auto* a, const auto* b) {
        return compare(a->first, b->first, out_.interpreter.budget()) < 0;
      });
    }
    out_.add("{");
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out_.add(style_.item_separator);
      new_line(depth + 1);
      const Value& key = entries[i]->first;
      if (const StringObject* text = key.as_string()) {
        write_string(text->text);
      } else {
        out_.add("\"");
        write(key, depth + 1);
        out_.add("\"");
      }
      out_.add(style_.key_separator);
      write(entries[i]->second, depth + 1);
    }
    new_line(depth);
    out_.add("}");
  }

  void write_string(const std::string& text) {
    out_.interpreter.budget().take_copied_bytes(text.size());
    std::string json = "\"";
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = next_utf8(text, at);
      constexpr std::string_view kSpecial = "\"\\\n\r\t\f\b";
      constexpr std::string_view kLetters = "\"\\nrtfb";
      const auto code = static_cast<uint32_t>(c.code_point);
      if (const size_t special = code < 0x80 ? kSpecial.find(static_cast<char>(code)) : std::string_view::npos;
          special != std::string_view::npos) {
        json.append("\\").append(1, kLetters[special]);
      } else if (code < 0x20 || (style_.ensure_ascii && code >= 0x7F && code < 0x10000 && code != 0x7F)) {
        json += fmt::format("\\u{:04x}", code);
      } else if (style_.ensure_ascii && code >= 0x10000) {
        json +=
            fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((code - 0x10000) >> 10), 0xDC00 + ((code - 0x10000) & 0x3FF));
      } else {
        json.append(text, at, c.size);
      }
      at += c.size;
    }
    out_.add(json += '"');
  }

  const JsonStyle& style_;
  Writer out_;
};

// One conversion of a % format: "%-8.3f".
struct Conversion {
  std::string flags;
  int width = 0;
  int precision = -1;
  char type = '\0';
};

constexpr int kMaxFieldWidth = 4096;

int take_number(const std::string& format, size_t& at) {
  int number = 0;
  for (; at < format.size() && format[at] >= '0' && format[at] <= '9'; ++at) {
    number = number * 10 + (format[at] - '0');
    if (number > kMaxFieldWidth)
      fail(ErrorCode::kInvalidArgument, "a field of more than {} characters", kMaxFieldWidth);
  }
  return number;
}

Conversion take_conversion(const std::string& format, size_t& at) {
  Conversion result;
  while (at < format.size() && std::string_view("-+ 0#").find(format[at]) != std::string_view::npos) {
    result.flags += format[at++];
  }
  result.width = take_number(format, at);
  if (at < format.size() && format[at] == '.') {
    ++at;
    result.precision = take_number(format, at);
  }
  if (at == format.size()) fail(ErrorCode::kInvalidArgument, "incomplete format");
  result.type = format[at++];
  return result;
}

std::string converted(const Conversion& conversion, const Value& value, Interpreter& interpreter) {
  const auto has = [&](char flag) { return conversion.flags.find(flag) != std::string::npos; };
  std::string text;
  if (conversion.type == 's' || conversion.type == 'r') {
    text = conversion.type == 's' ? to_text(value, interpreter) : to_repr(value, interpreter);
    if (conversion.precision >= 0) {
      size_t end = 0;
      for (int i = 0; i < conversion.precision && end < text.size(); ++i) end += next_utf8(text, end).size;
      text.resize(end);
    }
  } else if (std::string_view("dixXofFeEgG").find(conversion.type) != std::string_view::npos) {
    if (!value.is_number()) {
      fail(ErrorCode::kInvalidArgument, "%{} format: a real number is required, not {}", conversion.type,
           value.type_name());
    }
    const bool is_integer = std::string_view("dixXo").find(conversion.type) != std::string_view::npos;
    const char sign = has('+') ? '+' : has(' ') ? ' ' : '-';
    const char type = conversion.type == 'i' ? 'd' : conversion.type;
    if (is_integer) {
      const double number = value.number();
      if (!(std::abs(number) < 0x1p63)) fail(ErrorCode::kInvalidArgument, "a number too large to format");
      const int64_t integer = value.is_integer() ? value.integer() : static_cast<int64_t>(number);
      text = fmt::format(fmt::runtime(fmt::format("{{:{}{}}}", sign, type)), integer);
    } else {
      const int precision = conversion.precision < 0 ? 6 : conversion.precision;
      text = fmt::format(fmt::runtime(fmt::format("{{:{}.{}{}}}", sign, precision, type)), value.number());
    }
    if (has('0') && !has('-')) {
      const size_t digits = text.starts_with('-') || text.starts_with('+') || text.starts_with(' ') ? 1 : 0;
      while (std::ssize(text) < conversion.width) text.insert(digits, 1, '0');
    }
  } else {
    fail(ErrorCode::kInvalidArgument, "unsupported format character '{}'", conversion.type);
  }
  size_t length = 0;
  for (const char c : text) length += (static_cast<uint8_t>(c) & 0xC0) != 0x80 ? 1 : 0;
  const size_t padding = static_cast<size_t>(conversion.width) > length ? conversion.width - length : 0;
  return has('-') ? text + std::string(padding, ' ') : std::string(padding, ' ') + text;
}

}  // namespace

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[40];
  const char* end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  std::string text(std::string_view(buffer, end));
  const size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return text;  // both have at least two digits in the exponent
  end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed).ptr;
  text = std::string_view(buffer, end);
  return text.find('.') == std::string::npos ? text + ".0" : text;
}

std::string to_repr(const Value& value, Interpreter& interpreter) {
  Writer out(interpreter);
  write_repr(value, out, 0);
  return out.done();
}

std::string to_text(const Value& value, Interpreter& interpreter) {
  if (value.is_undefined()) return {};
  if (const StringObject* text = value.as_string()) {
    interpreter.budget().take_copied_bytes(text->text.size());
    return text->text;
  }
  return to_repr(value, interpreter);
}

std::string to_json(const Value& value, const JsonStyle& style, Interpreter& interpreter) {
  return JsonWriter(style, interpreter).run(value);
}

std::string percent_format(const std::string& format, const Value& values, Interpreter& interpreter) {
  const SequenceObject* tuple = values.as_sequence();
  if (tuple != nullptr && tuple->kind != SequenceKind::kTuple) tuple = nullptr;
  const size_t count = tuple == nullptr ? 1 : tuple->items.size();
  const auto value_at = [&](size_t i) { return tuple == nullptr ? values : tuple->items[i]; };
  Writer out(interpreter);
  size_t next = 0;
  for (size_t at = 0; at < format.size();) {
    const size_t percent = std::min(format.find('%', at), format.size());
    out.add(std::string_view(format).substr(at, percent - at));
    if (percent == format.size()) break;
    at = percent + 1;
    if (at < format.size() && format[at] == '(') {
      const size_t close = format.find(')', at);
      if (close == std::string::npos) fail(ErrorCode::kInvalidArgument, "incomplete format key");
      const DictObject* dict = values.as_dict();
      if (dict == nullptr) fail(ErrorCode::kInvalidArgument, "format requires a mapping");
      const std::string key = format.substr(at + 1, close - at - 1);
      const Value* value = dict->find(key);
      if (value == nullptr) fail(ErrorCode::kInvalidArgument, "the format's key '{}' is missing", key);
      at = close + 1;
      out.add(converted(take_conversion(format, at), *value, interpreter));
      next = count;
      continue;
    }
    const Conversion conversion = take_conversion(format, at);
    if (conversion.type == '%') {
      out.add("%");
      continue;
    }
    if (next >= count) fail(ErrorCode::kInvalidArgument, "not enough arguments for format string");
    out.add(converted(conversion, value_at(next++), interpreter));
  }
  const bool is_single_mapping = tuple == nullptr && (values.as_dict() != nullptr || values.as_sequence() != nullptr);
  if (next < count && !is_single_mapping) {
    fail(ErrorCode::kInvalidArgument, "not all arguments converted during string formatting");
  }
  return out.done();
}

}  // namespace witan::jinja
