#include <algorithm>
#include <array>

#include "base/error.h"
#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"
#include "text/jinja/printing.h"
#include "text/jinja/strings.h"

namespace witan::jinja {
namespace {

Value length(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  take_none("length", arguments);
  if (const StringObject* text = input.as_string()) {
    interpreter.budget().take_copied_bytes(text->text.size());
    return static_cast<int64_t>(num_characters(text->text));
  }
  if (const DictObject* dict = input.as_dict()) return static_cast<int64_t>(dict->entries().size());
  const SequenceObject* sequence = input.as_sequence();
  if (sequence != nullptr && sequence->kind != SequenceKind::kGenerator) {
    return static_cast<int64_t>(sequence->items.size());
  }
  if (input.is_undefined()) return 0;
  fail(ErrorCode::kInvalidArgument, "object of type '{}' has no len()", input.type_name());
}

Value default_value(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("default", arguments, {"default_value", "boolean"});
  const bool replaces = input.is_undefined() || (args.truth_or(1, false) && !input.truth());
  return replaces ? args.value_or(0, interpreter.string("")) : input;
}

Value first(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  take_none("first", arguments);
  if (SequenceObject* sequence = input.as_sequence();
      sequence != nullptr && sequence->kind == SequenceKind::kGenerator) {
    if (sequence->num_taken < sequence->items.size()) return sequence->items[sequence->num_taken++];
  } else if (input.is_string()) {
    return interpreter.item(input, 0);
  } else if (const std::shared_ptr<SequenceObject> items = interpreter.items_of(input); !items->items.empty()) {
    return items->items.front();
  }
  return interpreter.undefined("No first item, sequence was empty.");
}

Value last(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  take_none("last", arguments);
  if (input.is_string()) return interpreter.item(input, -1);
  if (const SequenceObject* sequence = input.as_sequence();
      sequence != nullptr && sequence->kind == SequenceKind::kGenerator) {
    fail(ErrorCode::kInvalidArgument, "'generator' object is not reversible");
  }
  const std::shared_ptr<SequenceObject> items = interpreter.items_of(input);
  return items->items.empty() ? interpreter.undefined("No last item, sequence was empty.") : items->items.back();
}

Value join(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("join", arguments, {"d", "attribute"});
  const std::string separator = args.find(0) == nullptr ? "" : interpreter.text_of(*args.find(0));
  const Value attribute = args.value_or(1, None{});
  std::string text;
  bool is_first = true;
  for (const auto sequence = interpreter.items_of(input); const Value& item : sequence->items) {
    if (!std::exchange(is_first, false)) text += separator;
    text += interpreter.text_of(attribute.is_none() ? item : dotted_attribute(interpreter, item, attribute));
    interpreter.budget().take_copied_bytes(separator.size());
    interpreter.budget().check_room(text.size());
  }
  return interpreter.string(std::move(text));
}

Value to_list(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  take_none("list", arguments);
  return interpreter.sequence(interpreter.items_of(input)->items);
}

Value items(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  take_none("items", arguments);
  std::vector<Value> pairs;
  if (const DictObject* dict = input.as_dict()) {
    for (const auto& [key, value] : dict->entries()) {
      pairs.push_back(interpreter.sequence({key, value}, SequenceKind::kTuple));
    }
  } else if (!input.is_undefined()) {
    fail(ErrorCode::kInvalidArgument, "Can only get item pairs from a mapping.");
  }
  return interpreter.sequence(std::move(pairs), SequenceKind::kGenerator);
}

// What sorting compares: strings without regard to case unless asked to.
Value sort_key(Interpreter& interpreter, const Value& value, bool case_sensitive) {
  return value.is_string() && !case_sensitive ? interpreter.string(lower_case(value.as_string()->text)) : value;
}

// Stable, as Python's sort, also when reversed.
void sort_by_keys(Interpreter& interpreter, std::vector<std::pair<Value, Value>>& keyed, bool reverse) {
  std::ranges::stable_sort(keyed, [&](const auto& a, const auto& b) {
    const int order = compare(a.first, b.first, interpreter.budget());
    return reverse ? order > 0 : order < 0;
  });
}

std::vector<Value> without_keys(std::vector<std::pair<Value, Value>>& keyed) {
  std::vector<Value> values;
  for (auto& [key, value] : keyed) values.push_back(std::move(value));
  return values;
}

Value dict_sort(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  const DictObject* dict = input.as_dict();
  if (dict == nullptr) fail_type("dictsort", input);
  const std::string by = args.find(1) == nullptr ? "key" : args.string(1);
  if (by != "key" && by != "value") {
    fail(ErrorCode::kInvalidArgument, "You can only sort by either \"key\" or \"value\"");
  }
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : dict->entries()) {
    keyed.emplace_back(sort_key(interpreter, by == "key" ? key : value, args.truth_or(0, false)),
                       interpreter.sequence({key, value}, SequenceKind::kTuple));
  }
  sort_by_keys(interpreter, keyed, args.truth_or(2, false));
  return interpreter.sequence(without_keys(keyed));
}

Value sort(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("sort", arguments, {"reverse", "case_sensitive", "attribute"});
  const Value attribute = args.value_or(2, None{});
  const bool case_sensitive = args.truth_or(1, false);
  std::vector<std::string> paths;
  if (attribute.is_string()) paths = split(attribute.as_string()->text, ",", -1);
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto sequence = interpreter.items_of(input); const Value& item : sequence->items) {
    std::vector<Value> keys;
    for (const std::string& path : paths) {
      const Value part = dotted_attribute(interpreter, item, interpreter.string(path));
      keys.push_back(sort_key(interpreter, part, case_sensitive));
    }
    if (!attribute.is_string()) {
      keys.push_back(sort_key(interpreter, dotted_attribute(interpreter, item, attribute), case_sensitive));
    }
    keyed.emplace_back(keys.size() == 1 ? keys.front() : interpreter.sequence(std::move(keys)), item);
  }
  sort_by_keys(interpreter, keyed, args.truth_or(0, false));
  return interpreter.sequence(without_keys(keyed));
}

Value unique(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("unique", arguments, {"case_sensitive", "attribute"});
  const Value attribute = args.value_or(1, None{});
  std::vector<Value> seen;
  std::vector<Value> kept;
  for (const auto sequence = interpreter.items_of(input); const Value& item : sequence->items) {
    const Value key = sort_key(interpreter, dotted_attribute(interpreter, item, attribute), args.truth_or(0, false));
    if (std::ranges::any_of(seen, [&](const Value& other) { return equal(key, other, interpreter.budget()); }))
      continue;
    seen.push_back(key);
    kept.push_back(item);
  }
  return interpreter.sequence(std::move(kept), SequenceKind::kGenerator);
}

Value reverse(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  take_none("reverse", arguments);
  if (input.is_string()) return slice(input, None{}, None{}, -1, interpreter);
  std::vector<Value> items = interpreter.items_of(input)->items;
  std::ranges::reverse(items);
  return interpreter.sequence(std::move(items), SequenceKind::kGenerator);
}

template <bool kLargest>
Value extreme(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("min", arguments, {"case_sensitive", "attribute"});
  const std::shared_ptr<SequenceObject> items = interpreter.items_of(input);
  if (items->items.empty()) return interpreter.undefined("No aggregated item, sequence was empty.");
  const auto key_of = [&](const Value& item) {
    const Value key = args.find(1) == nullptr ? item : dotted_attribute(interpreter, item, *args.find(1));
    return sort_key(interpreter, key, args.truth_or(0, false));
  };
  Value best = items->items.front();
  Value best_key = key_of(best);
  for (const Value& item : items->items) {
    Value key = key_of(item);
    const int order = compare(key, best_key, interpreter.budget());
    if (kLargest ? order <= 0 : order >= 0) continue;
    best = item;
    best_key = std::move(key);
  }
  return best;
}

Value sum(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("sum", arguments, {"attribute", "start"});
  Value total = args.value_or(1, 0);
  for (const auto sequence = interpreter.items_of(input); const Value& item : sequence->items) {
    const Value part = args.find(0) == nullptr ? item : dotted_attribute(interpreter, item, *args.find(0));
    total = apply(BinaryOperator::kAdd, total, part, interpreter);
  }
  return total;
}

// The arguments behind the first `count`.
Arguments rest_of(const Arguments& arguments, size_t count) {
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin(), rest.positional.begin() + static_cast<std::ptrdiff_t>(count));
  return rest;
}

std::string name_of(std::string_view filter, const Arguments& arguments, size_t place) {
  if (place >= arguments.positional.size() || !arguments.positional[place].is_string()) {
    fail(ErrorCode::kInvalidArgument, "{}() needs a name as its argument {}", filter, place + 1);
  }
  return arguments.positional[place].as_string()->text;
}

Value map(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  std::vector<Value> results;
  if (arguments.positional.empty()) {
    const Bound args("map", arguments, {"attribute", "default"});
    for (const auto sequence = interpreter.items_of(input); const Value& item : sequence->items) {
      Value value = dotted_attribute(interpreter, item, args.get(0));
      if (value.is_undefined() && args.find(1) != nullptr) value = *args.find(1);
      results.push_back(std::move(value));
    }
  } else {
    const std::string name = name_of("map", arguments, 0);
    const Arguments rest = rest_of(arguments, 1);
    for (const auto sequence = interpreter.items_of(input); const Value& item : sequence->items) {
      results.push_back(interpreter.apply_filter(name, item, rest));
    }
  }
  return interpreter.sequence(std::move(results), SequenceKind::kGenerator);
}

enum class Keep : uint8_t { kMatches, kOthers };
enum class Look : uint8_t { kItem, kAttribute };

template <Keep kEep, Look kLook>
Value select(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  constexpr size_t kSkipped = kLook == Look::kAttribute ? 1 : 0;
  if (kLook == Look::kAttribute && arguments.positional.empty()) {
    fail(ErrorCode::kInvalidArgument, "selectattr() needs the name of an attribute");
  }
  const bool has_test = arguments.positional.size() > kSkipped;
  const std::string test = has_test ? name_of("select", arguments, kSkipped) : "";
  const Arguments rest = has_test ? rest_of(arguments, kSkipped + 1) : Arguments{};
  std::vector<Value> kept;
  for (const auto sequence = interpreter.items_of(input); const Value& item : sequence->items) {
    const Value value = kLook == Look::kAttribute ? dotted_attribute(interpreter, item, arguments.positional[0]) : item;
    const bool matches = has_test ? interpreter.apply_test(test, value, rest) : value.truth();
    if (matches == (kEep == Keep::kMatches)) kept.push_back(item);
  }
  return interpreter.sequence(std::move(kept), SequenceKind::kGenerator);
}

Value batch(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("batch", arguments, {"linecount", "fill_with"});
  const int64_t size = args.integer(0);
  if (size < 1) fail(ErrorCode::kInvalidArgument, "batch(): 'linecount' is {}, expected 1 or more", size);
  std::vector<Value> batches;
  std::vector<Value> current;
  for (const auto sequence = interpreter.items_of(input); const Value& item : sequence->items) {
    if (std::ssize(current) == size) batches.push_back(interpreter.sequence(std::exchange(current, {})));
    current.push_back(item);
  }
  if (!current.empty()) {
    if (const Value* fill = args.find(1); fill != nullptr && !fill->is_none() && std::ssize(current) < size) {
      interpreter.budget().check_room(static_cast<size_t>(std::min<int64_t>(size, int64_t{1} << 40)) * sizeof(Value));
      current.resize(static_cast<size_t>(size), *fill);
    }
    batches.push_back(interpreter.sequence(std::move(current)));
  }
  return interpreter.sequence(std::move(batches), SequenceKind::kGenerator);
}

Value slice_filter(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("slice", arguments, {"slices", "fill_with"});
  const int64_t count = args.integer(0);
  if (count < 1) fail(ErrorCode::kInvalidArgument, "slice(): 'slices' is {}, expected 1 or more", count);
  const std::shared_ptr<SequenceObject> items = interpreter.items_of(input);
  const auto size = static_cast<int64_t>(items->items.size());
  std::vector<Value> slices;
  int64_t begin = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t end = begin + size / count + (i < size % count ? 1 : 0);
    std::vector<Value> part(items->items.begin() + begin, items->items.begin() + end);
    if (const Value* fill = args.find(1); fill != nullptr && !fill->is_none() && i >= size % count)
      part.push_back(*fill);
    slices.push_back(interpreter.sequence(std::move(part)));
    begin = end;
  }
  return interpreter.sequence(std::move(slices), SequenceKind::kGenerator);
}

Value group_by(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("groupby", arguments, {"attribute", "default", "case_sensitive"});
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto sequence = interpreter.items_of(input); const Value& item : sequence->items) {
    Value key = dotted_attribute(interpreter, item, args.get(0));
    if (key.is_undefined() && args.find(1) != nullptr) key = *args.find(1);
    keyed.emplace_back(sort_key(interpreter, key, args.truth_or(2, false)),
                       interpreter.sequence({key, item}, SequenceKind::kTuple));
  }
  sort_by_keys(interpreter, keyed, false);
  std::vector<Value> groups;
  for (size_t begin = 0; begin < keyed.size();) {
    size_t end = begin;
    std::vector<Value> members;
    for (; end < keyed.size() && equal(keyed[begin].first, keyed[end].first, interpreter.budget()); ++end) {
      members.push_back(keyed[end].second.as_sequence()->items[1]);
    }
    const Value key = keyed[begin].second.as_sequence()->items[0];
    groups.push_back(interpreter.sequence({key, interpreter.sequence(std::move(members))}, SequenceKind::kTuple));
    begin = end;
  }
  return interpreter.sequence(std::move(groups));
}

Value attr(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound args("attr", arguments, {"name"});
  if (input.as_dict() != nullptr) return find_method(interpreter, input, args.string(0));
  return interpreter.attribute(input, args.string(0));
}

constexpr auto kFilters = std::to_array<Filter>({
    {"length", length},
    {"count", length},
    {"default", default_value},
    {"d", default_value},
    {"first", first},
    {"last", last},
    {"join", join},
    {"list", to_list},
    {"items", items},
    {"dictsort", dict_sort},
    {"sort", sort},
    {"unique", unique},
    {"reverse", reverse},
    {"min", extreme<false>},
    {"max", extreme<true>},
    {"sum", sum},
    {"map", map},
    {"select", select<Keep::kMatches, Look::kItem>},
    {"reject", select<Keep::kOthers, Look::kItem>},
    {"selectattr", select<Keep::kMatches, Look::kAttribute>},
    {"rejectattr", select<Keep::kOthers, Look::kAttribute>},
    {"batch", batch},
    {"slice", slice_filter},
    {"groupby", group_by},
    {"attr", attr},
});

}  // namespace

std::span<const Filter> sequence_filters() { return kFilters; }

}  // namespace witan::jinja
