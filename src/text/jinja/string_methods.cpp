#include <utf8proc.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"
#include "text/jinja/printing.h"
#include "text/jinja/strings.h"
#include "text/unicode.h"

namespace witan::jinja {
namespace {

// A call of a method of `text`.
struct Call {
  Interpreter& interpreter;
  const StringObject& self;
  const Arguments& arguments;

  const std::string& text() const { return self.text; }
  Value string(std::string result) const { return interpreter.string(std::move(result), self.escaped); }
  Value strings(std::vector<std::string> parts) const {
    std::vector<Value> values;
    for (std::string& part : parts) values.push_back(string(std::move(part)));
    return interpreter.sequence(std::move(values));
  }
};

template <std::string (*kChange)(std::string_view)>
Value changes(const Call& call) {
  take_none("method", call.arguments);
  return call.string(kChange(call.text()));
}

std::string swap_case(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = next_utf8(text, at);
    const std::string_view character = text.substr(at, c.size);
    out += is_cased(character, true) ? lower_case(character) : upper_case(character);
    at += c.size;
  }
  return out;
}

template <Side kSide>
Value strip(const Call& call) {
  const Bound args("strip", call.arguments, {"chars"});
  if (args.find(0) == nullptr || args.find(0)->is_none())
    return call.string(std::string(stripped(call.text(), nullptr, kSide)));
  const std::string_view set = args.string(0);
  return call.string(std::string(stripped(call.text(), &set, kSide)));
}

template <bool kFromEnd>
Value split_method(const Call& call) {
  const Bound args("split", call.arguments, {"sep", "maxsplit"});
  const int64_t max_splits = args.integer_or(1, -1);
  call.interpreter.budget().take_copied_bytes(call.text().size());
  if (args.find(0) == nullptr || args.find(0)->is_none()) {
    if (kFromEnd && max_splits >= 0) {
      fail(ErrorCode::kUnsupported, "rsplit() with maxsplit and without a separator");
    }
    return call.strings(split_at_space(call.text(), max_splits));
  }
  const std::string& separator = args.string(0);
  if (separator.empty()) fail(ErrorCode::kInvalidArgument, "empty separator");
  return call.strings(kFromEnd && max_splits >= 0 ? split_from_end(call.text(), separator, max_splits)
                                                  : split(call.text(), separator, max_splits));
}

Value split_lines_method(const Call& call) {
  const bool keep_ends = Bound("splitlines", call.arguments, {"keepends"}).truth_or(0, false);
  std::vector<std::string> lines;
  for (const std::string_view line : split_lines(call.text(), keep_ends)) lines.emplace_back(line);
  return call.strings(std::move(lines));
}

// The part of the text between the optional character places of parameters 1 and 2, and where it begins.
std::string_view part_of(const Call& call, const Bound& args, int64_t* first_character) {
  const std::string_view text = call.text();
  *first_character = 0;
  if (args.find(1) == nullptr) return text;
  const std::vector<size_t> starts = character_starts(text);
  const auto size = static_cast<int64_t>(starts.size()) - 1;
  const auto place = [&](size_t parameter, int64_t absent) {
    if (args.find(parameter) == nullptr || args.find(parameter)->is_none()) return absent;
    const int64_t index = args.integer(parameter);
    return std::clamp<int64_t>(index < 0 ? std::max<int64_t>(index, -size) + size : index, 0, size);
  };
  *first_character = place(1, 0);
  const int64_t end = std::max(place(2, size), *first_character);
  const size_t begin = starts[static_cast<size_t>(*first_character)];
  return text.substr(begin, starts[static_cast<size_t>(end)] - begin);
}

template <bool kAtEnd>
Value has_affix(const Call& call) {
  const Bound args(kAtEnd ? "endswith" : "startswith", call.arguments, {"affix", "start", "end"});
  int64_t first = 0;
  const std::string_view text = part_of(call, args, &first);
  const auto matches = [&](const std::string& affix) {
    return kAtEnd ? text.ends_with(affix) : text.starts_with(affix);
  };
  if (const SequenceObject* tuple = args.get(0).as_sequence()) {
    return std::ranges::any_of(tuple->items, [&](const Value& affix) {
      if (!affix.is_string()) fail_type("affix", affix);
      return matches(affix.as_string()->text);
    });
  }
  return matches(args.string(0));
}

enum class Absent : uint8_t { kMinusOne, kError };

template <bool kFromEnd, Absent kAbsent>
Value find(const Call& call) {
  const Bound args("find", call.arguments, {"sub", "start", "end"});
  int64_t first = 0;
  const std::string_view text = part_of(call, args, &first);
  call.interpreter.budget().take_copied_bytes(text.size());
  const size_t found = kFromEnd ? text.rfind(args.string(0)) : text.find(args.string(0));
  if (found != std::string_view::npos) return first + static_cast<int64_t>(num_characters(text.substr(0, found)));
  if (kAbsent == Absent::kError) fail(ErrorCode::kInvalidArgument, "substring not found");
  return -1;
}

Value count(const Call& call) {
  const Bound args("count", call.arguments, {"sub", "start", "end"});
  int64_t first = 0;
  const std::string_view text = part_of(call, args, &first);
  const std::string& part = args.string(0);
  call.interpreter.budget().take_copied_bytes(text.size());
  if (part.empty()) return static_cast<int64_t>(num_characters(text)) + 1;
  int64_t number = 0;
  for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + part.size())) ++number;
  return number;
}

Value replace(const Call& call) {
  const Bound args("replace", call.arguments, {"old", "new", "count"});
  const size_t bytes = replaced_bytes(call.text(), args.string(0), args.string(1));
  call.interpreter.budget().check_room(bytes);
  call.interpreter.budget().take_copied_bytes(bytes);
  return call.string(replaced(call.text(), args.string(0), args.string(1), args.integer_or(2, -1)));
}

Value join(const Call& call) {
  const Bound args("join", call.arguments, {"iterable"});
  std::string result;
  bool is_first = true;
  for (const auto sequence = call.interpreter.items_of(args.get(0)); const Value& item : sequence->items) {
    if (!item.is_string()) {
      fail(ErrorCode::kInvalidArgument, "join(): an item is {}, expected str", item.type_name());
    }
    if (!std::exchange(is_first, false)) result += call.text();
    result += item.as_string()->text;
    call.interpreter.budget().take_copied_bytes(call.text().size() + item.as_string()->text.size());
    call.interpreter.budget().check_room(result.size());
  }
  return call.string(std::move(result));
}

template <bool kAtEnd>
Value remove_affix(const Call& call) {
  const std::string& affix = Bound(kAtEnd ? "removesuffix" : "removeprefix", call.arguments, {"affix"}).string(0);
  std::string_view text = call.text();
  if (kAtEnd && text.ends_with(affix)) text.remove_suffix(affix.size());
  if (!kAtEnd && text.starts_with(affix)) text.remove_prefix(affix.size());
  return call.string(std::string(text));
}

template <bool kFromEnd>
Value partition(const Call& call) {
  const std::string& separator = Bound("partition", call.arguments, {"sep"}).string(0);
  if (separator.empty()) fail(ErrorCode::kInvalidArgument, "empty separator");
  const std::string& text = call.text();
  const size_t found = kFromEnd ? text.rfind(separator) : text.find(separator);
  std::vector<Value> parts;
  if (found == std::string::npos) {
    parts = {call.string(kFromEnd ? "" : text), call.string(""), call.string(kFromEnd ? text : "")};
  } else {
    parts = {call.string(text.substr(0, found)), call.string(separator),
             call.string(text.substr(found + separator.size()))};
  }
  return call.interpreter.sequence(std::move(parts), SequenceKind::kTuple);
}

enum class Align : uint8_t { kLeft, kRight, kCenter, kZeros };

template <Align kAlign>
Value justify(const Call& call) {
  const Bound args("justify", call.arguments, {"width", "fillchar"});
  const std::string fill = kAlign == Align::kZeros ? "0" : args.find(1) == nullptr ? " " : args.string(1);
  if (num_characters(fill) != 1) {
    fail(ErrorCode::kInvalidArgument, "The fill character must be exactly one character long");
  }
  const auto length = static_cast<int64_t>(num_characters(call.text()));
  const int64_t width = args.integer(0);
  if (width <= length) return call.string(call.text());
  const int64_t padding = width - length;
  call.interpreter.budget().check_room(static_cast<size_t>(std::min<int64_t>(width, int64_t{1} << 40)) * fill.size());
  const auto filled = [&](int64_t times) {
    return replaced(std::string(static_cast<size_t>(times), ' '), " ", fill, -1);
  };
  const int64_t left = kAlign == Align::kLeft     ? 0
                       : kAlign == Align::kCenter ? padding / 2 + (padding & width & 1)
                                                  : padding;
  const std::string& text = call.text();
  if (kAlign == Align::kZeros && (text.starts_with('-') || text.starts_with('+'))) {
    return call.string(text.substr(0, 1) + filled(left) + text.substr(1));
  }
  return call.string(filled(left) + text + filled(padding - left));
}

// True where there are characters and all of them are in the Unicode categories given.
template <utf8proc_category_t... kCategories>
Value all_in(const Call& call) {
  const std::string& text = call.text();
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = next_utf8(text, at);
    const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c.code_point));
    if (!((category == kCategories) || ...)) return false;
    at += c.size;
  }
  return !text.empty();
}

Value is_space(const Call& call) { return !call.text().empty() && stripped(call.text(), nullptr, Side::kLeft).empty(); }
Value is_lower(const Call& call) { return is_cased(call.text(), false); }
Value is_upper(const Call& call) { return is_cased(call.text(), true); }

// str.format with plain fields: {}, {0}, {name}.
Value format(const Call& call) {
  const std::string& text = call.text();
  std::string out;
  size_t next = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if ((c == '{' || c == '}') && at + 1 < text.size() && text[at + 1] == c) {
      out += c;
      ++at;
    } else if (c == '{') {
      const size_t end = text.find('}', at);
      if (end == std::string::npos) fail(ErrorCode::kInvalidArgument, "expected '}}' before end of string");
      const std::string field = text.substr(at + 1, end - at - 1);
      if (field.find_first_of(":!.[") != std::string::npos) {
        fail(ErrorCode::kUnsupported, "format() with the field '{{{}}}'", field);
      }
      const bool is_number = !field.empty() && std::ranges::all_of(field, [](char d) { return d >= '0' && d <= '9'; });
      const Value* value = nullptr;
      if (field.empty() || is_number) {
        const size_t place = field.empty() ? next++ : field.size() > 6 ? SIZE_MAX : std::stoul(field);
        if (place < call.arguments.positional.size()) value = &call.arguments.positional[place];
      } else {
        for (const auto& [name, argument] : call.arguments.keywords) {
          if (name == field) value = &argument;
        }
      }
      if (value == nullptr) fail(ErrorCode::kInvalidArgument, "format(): no argument for '{{{}}}'", field);
      out += call.interpreter.text_of(*value);
      call.interpreter.budget().check_room(out.size());
      at = end;
    } else if (c == '}') {
      fail(ErrorCode::kInvalidArgument, "Single '}}' encountered in format string");
    } else {
      out += c;
    }
  }
  return call.string(std::move(out));
}

struct StringMethod {
  std::string_view name;
  Value (*run)(const Call& call);
};

constexpr auto kMethods = std::to_array<StringMethod>({
    {"upper", changes<upper_case>},
    {"lower", changes<lower_case>},
    {"casefold", changes<lower_case>},
    {"title", changes<title_case>},
    {"capitalize", changes<capitalized>},
    {"swapcase", changes<swap_case>},
    {"strip", strip<Side::kBoth>},
    {"lstrip", strip<Side::kLeft>},
    {"rstrip", strip<Side::kRight>},
    {"split", split_method<false>},
    {"rsplit", split_method<true>},
    {"splitlines", split_lines_method},
    {"startswith", has_affix<false>},
    {"endswith", has_affix<true>},
    {"find", find<false, Absent::kMinusOne>},
    {"rfind", find<true, Absent::kMinusOne>},
    {"index", find<false, Absent::kError>},
    {"rindex", find<true, Absent::kError>},
    {"count", count},
    {"replace", replace},
    {"join", join},
    {"removeprefix", remove_affix<false>},
    {"removesuffix", remove_affix<true>},
    {"partition", partition<false>},
    {"rpartition", partition<true>},
    {"ljust", justify<Align::kLeft>},
    {"rjust", justify<Align::kRight>},
    {"center", justify<Align::kCenter>},
    {"zfill", justify<Align::kZeros>},
    {"isspace", is_space},
    {"islower", is_lower},
    {"isupper", is_upper},
    {"isdigit", all_in<UTF8PROC_CATEGORY_ND>},
    {"isdecimal", all_in<UTF8PROC_CATEGORY_ND>},
    {"isnumeric", all_in<UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NL, UTF8PROC_CATEGORY_NO>},
    {"isalpha", all_in<UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LL, UTF8PROC_CATEGORY_LT, UTF8PROC_CATEGORY_LM,
                       UTF8PROC_CATEGORY_LO>},
    {"isalnum", all_in<UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LL, UTF8PROC_CATEGORY_LT, UTF8PROC_CATEGORY_LM,
                       UTF8PROC_CATEGORY_LO, UTF8PROC_CATEGORY_ND>},
    {"format", format},
});

}  // namespace

Value find_string_method(Interpreter& interpreter, const Value& object, const std::string& name) {
  const auto* const found = std::ranges::find(kMethods, name, &StringMethod::name);
  if (found == kMethods.end()) return {};
  return interpreter.function(name, [object, run = found->run](Interpreter& i, const Arguments& arguments) {
    i.budget().take_copied_bytes(object.as_string()->text.size());
    return run({i, *object.as_string(), arguments});
  });
}

}  // namespace witan::jinja
