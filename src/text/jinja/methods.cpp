#include <algorithm>
#include <array>

#include "base/error.h"
#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"
#include "text/jinja/printing.h"

namespace witan::jinja {
namespace {

struct Method {
  std::string_view name;
  Value (*run)(Interpreter& interpreter, const Value& self, const Arguments& arguments);
};

Value bind(Interpreter& interpreter, const Value& self, const Method& method) {
  return interpreter.function(std::string(method.name),
                              [self, run = method.run](Interpreter& i, const Arguments& a) { return run(i, self, a); });
}

// --- dict

Value dict_get(Interpreter& /*interpreter*/, const Value& self, const Arguments& arguments) {
  const Bound args("get", arguments, {"key", "default"});
  const Value* found = self.as_dict()->find(args.get(0));
  return found == nullptr ? args.value_or(1, None{}) : *found;
}
Value dict_items(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  take_none("items", arguments);
  std::vector<Value> pairs;
  for (const auto& [key, value] : self.as_dict()->entries()) {
    pairs.push_back(interpreter.sequence({key, value}, SequenceKind::kTuple));
  }
  return interpreter.sequence(std::move(pairs), SequenceKind::kItems);
}
Value dict_keys(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  take_none("keys", arguments);
  return interpreter.sequence(interpreter.items_of(self)->items, SequenceKind::kKeys);
}
Value dict_values(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  take_none("values", arguments);
  std::vector<Value> values;
  for (const auto& [key, value] : self.as_dict()->entries()) values.push_back(value);
  return interpreter.sequence(std::move(values), SequenceKind::kValues);
}
Value copy(Interpreter& /*interpreter*/, const Value& self, const Arguments& arguments) {
  take_none("copy", arguments);
  return self;
}

constexpr auto kDictMethods = std::to_array<Method>(
    {{"get", dict_get}, {"items", dict_items}, {"keys", dict_keys}, {"values", dict_values}, {"copy", copy}});

// --- list, tuple

Value list_index(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound args("index", arguments, {"value"});
  const std::vector<Value>& items = self.as_sequence()->items;
  for (size_t i = 0; i < items.size(); ++i) {
    if (equal(items[i], args.get(0), interpreter.budget())) return static_cast<int64_t>(i);
  }
  fail(ErrorCode::kInvalidArgument, "{} is not in list", to_repr(args.get(0), interpreter));
}
Value list_count(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound args("count", arguments, {"value"});
  return static_cast<int64_t>(std::ranges::count_if(
      self.as_sequence()->items, [&](const Value& item) { return equal(item, args.get(0), interpreter.budget()); }));
}

constexpr auto kListMethods = std::to_array<Method>({{"index", list_index}, {"count", list_count}, {"copy", copy}});

// Values do not change; Jinja's sandbox refuses these too.
constexpr auto kChanging = std::to_array<std::string_view>(
    {"append", "extend", "insert", "pop", "remove", "clear", "update", "setdefault", "popitem", "sort", "reverse"});

template <size_t kN>
Value find_in(const std::array<Method, kN>& methods, Interpreter& interpreter, const Value& self,
              const std::string& name) {
  const auto* const found = std::ranges::find(methods, name, &Method::name);
  if (found != methods.end()) return bind(interpreter, self, *found);
  if (std::ranges::find(kChanging, name) == kChanging.end()) return {};
  if (self.as_dict() != nullptr && self.as_dict()->find(name) != nullptr) return {};
  return interpreter.undefined(fmt::format("'{}' would change a {}, which templates may not", name, self.type_name()));
}

// --- loop

Value loop_cycle(const std::shared_ptr<Loop>& loop, const Arguments& arguments) {
  if (arguments.positional.empty()) fail(ErrorCode::kInvalidArgument, "no items for cycling given");
  return arguments.positional[loop->index % arguments.positional.size()];
}
Value loop_changed(Interpreter& interpreter, const std::shared_ptr<Loop>& loop, const Arguments& arguments) {
  // Kept as text: the loop may be among the values.
  std::string values;
  for (const Value& value : arguments.positional) values += to_repr(value, interpreter) + ",";
  const bool changed = loop->changed != values;
  loop->changed = std::move(values);
  return changed;
}

}  // namespace

Value find_loop_attribute(Interpreter& interpreter, const std::shared_ptr<Loop>& loop, const std::string& name) {
  const auto index = static_cast<int64_t>(loop->index);
  const auto size = static_cast<int64_t>(loop->items->items.size());
  if (name == "index") return index + 1;
  if (name == "index0") return index;
  if (name == "revindex") return size - index;
  if (name == "revindex0") return size - index - 1;
  if (name == "first") return index == 0;
  if (name == "last") return index + 1 == size;
  if (name == "length") return size;
  if (name == "depth") return 1;  // of recursive loops, which there are none
  if (name == "depth0") return 0;
  if (name == "previtem") {
    return index > 0 ? loop->items->items[loop->index - 1] : interpreter.undefined("there is no previous item");
  }
  if (name == "nextitem") {
    return index + 1 < size ? loop->items->items[loop->index + 1] : interpreter.undefined("there is no next item");
  }
  if (name == "cycle") {
    return interpreter.function(name, [loop](Interpreter&, const Arguments& a) { return loop_cycle(loop, a); });
  }
  if (name == "changed") {
    return interpreter.function(name, [loop](Interpreter& i, const Arguments& a) { return loop_changed(i, loop, a); });
  }
  return {};
}

Value find_method(Interpreter& interpreter, const Value& object, const std::string& name) {
  if (object.is_string()) return find_string_method(interpreter, object, name);
  if (object.as_dict() != nullptr) return find_in(kDictMethods, interpreter, object, name);
  if (const SequenceObject* sequence = object.as_sequence();
      sequence != nullptr && (sequence->kind == SequenceKind::kList || sequence->kind == SequenceKind::kTuple)) {
    return find_in(kListMethods, interpreter, object, name);
  }
  if (const auto* macro = object.get_if<std::shared_ptr<Macro>>(); macro != nullptr && name == "name") {
    return interpreter.string((*macro)->definition->name);
  }
  return {};
}

}  // namespace witan::jinja
