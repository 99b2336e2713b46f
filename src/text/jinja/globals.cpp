#include <algorithm>
#include <array>
#include <ctime>

#include "base/error.h"
#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"
#include "text/jinja/printing.h"

namespace witan::jinja {
namespace {

Value range(Interpreter& interpreter, const Arguments& arguments) {
  const Bound args("range", arguments, {"start", "stop", "step"});
  const bool has_stop = args.find(1) != nullptr;
  const int64_t start = has_stop ? args.integer(0) : 0;
  const int64_t stop = args.integer(has_stop ? 1 : 0);
  const int64_t step = args.integer_or(2, 1);
  if (step == 0) fail(ErrorCode::kInvalidArgument, "range() arg 3 must not be zero");
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    items.emplace_back(i);
    interpreter.budget().take_steps(1);
    interpreter.budget().check_room(items.size() * sizeof(Value));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return interpreter.sequence(std::move(items), SequenceKind::kRange);
}

Value dict(Interpreter& interpreter, const Arguments& arguments) {
  DictObject result;
  if (arguments.positional.size() > 1) fail(ErrorCode::kInvalidArgument, "dict() takes one positional argument");
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional.front();
    if (const DictObject* other = source.as_dict()) {
      for (const auto& [key, value] : other->entries()) interpreter.add_entry(result, key, value);
    } else {
      for (const auto sequence = interpreter.items_of(source); const Value& pair : sequence->items) {
        const std::shared_ptr<SequenceObject> parts = interpreter.items_of(pair);
        if (parts->items.size() != 2) fail(ErrorCode::kInvalidArgument, "dict() needs pairs of key and value");
        interpreter.add_entry(result, parts->items[0], parts->items[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.keywords) interpreter.add_entry(result, interpreter.string(name), value);
  return interpreter.dict(std::move(result));
}

Value make_namespace(Interpreter& interpreter, const Arguments& arguments) {
  const Value attributes = dict(interpreter, arguments);
  Value space = interpreter.make_namespace();
  for (const auto& [key, value] : attributes.as_dict()->entries()) {
    if (!key.is_string()) fail(ErrorCode::kInvalidArgument, "namespace() needs names that are strings");
    interpreter.budget().hold(key.as_string()->text.size() + sizeof(Value));
    (*space.get_if<Namespace*>())->attributes.emplace_back(key.as_string()->text, value);
  }
  return space;
}

Value raise_exception(Interpreter& interpreter, const Arguments& arguments) {
  const Bound args("raise_exception", arguments, {"message"});
  fail(ErrorCode::kInvalidArgument, "{}", interpreter.text_of(args.get(0)));
}

Value strftime_now(Interpreter& interpreter, const Arguments& arguments) {
  const std::string& format = Bound("strftime_now", arguments, {"format"}).string(0);
  std::array<char, 4096> buffer;
  if (format.empty()) return interpreter.string("");
  const std::string marked = format + ".";  // so that an empty result can be told from one that does not fit
  const size_t size = std::strftime(buffer.data(), buffer.size(), marked.c_str(), &interpreter.now());
  if (size == 0) {
    fail(ErrorCode::kInvalidArgument, "strftime_now(): the result has more than {} bytes", buffer.size());
  }
  return interpreter.string(std::string(buffer.data(), size - 1));
}

Value joiner(Interpreter& interpreter, const Arguments& arguments) {
  const Bound args("joiner", arguments, {"sep"});
  const Value separator = args.value_or(0, interpreter.string(", "));
  const auto used = std::make_shared<bool>(false);
  return interpreter.function("joiner", [separator, used](Interpreter& i, const Arguments&) {
    return std::exchange(*used, true) ? separator : i.string("");
  });
}

// A namespace with the methods that templates call: next() and reset().
Value cycler(Interpreter& interpreter, const Arguments& arguments) {
  if (arguments.positional.empty()) fail(ErrorCode::kInvalidArgument, "at least one item has to be provided");
  const auto items = std::make_shared<std::vector<Value>>(arguments.positional);
  const auto place = std::make_shared<size_t>(0);
  Value space = interpreter.make_namespace();
  Namespace* attributes = *space.get_if<Namespace*>();
  attributes->attributes.emplace_back("current", items->front());
  const auto move_to = [attributes, items, place](size_t next) {
    *place = next % items->size();
    attributes->attributes.front().second = (*items)[*place];
  };
  attributes->attributes.emplace_back("next", interpreter.function("next", [=](Interpreter&, const Arguments&) {
    Value current = (*items)[*place];
    move_to(*place + 1);
    return current;
  }));
  attributes->attributes.emplace_back("reset", interpreter.function("reset", [=](Interpreter&, const Arguments&) {
    move_to(0);
    return Value(None{});
  }));
  return space;
}

}  // namespace

void add_globals(Interpreter& interpreter, Scope& scope) {
  constexpr auto kGlobals = std::to_array<std::pair<std::string_view, Value (*)(Interpreter&, const Arguments&)>>({
      {"range", range},
      {"dict", dict},
      {"namespace", make_namespace},
      {"raise_exception", raise_exception},
      {"strftime_now", strftime_now},
      {"joiner", joiner},
      {"cycler", cycler},
  });
  for (const auto& [name, function] : kGlobals) {
    scope.variables[std::string(name)] = interpreter.function(std::string(name), function);
  }
}

}  // namespace witan::jinja
