#include "text/jinja/interpreter.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"
#include "text/jinja/printing.h"
#include "text/unicode.h"

namespace witan::jinja {

// Text being written: the template's, or that of a block whose text is a value.
class Interpreter::Output {
 public:
  explicit Output(Budget& budget) : budget_(budget) {}
  ~Output() { budget_.release(held_); }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  void write(std::string_view text) {
    const size_t limit = budget_.limits().max_output_bytes;
    if (text_.size() + text.size() > limit) {
      fail(ErrorCode::kInvalidArgument, "it writes too much: more than {} bytes", limit);
    }
    budget_.take_copied_bytes(text.size());
    budget_.hold(text.size());
    held_ += text.size();
    text_ += text;
  }
  std::string take() { return std::move(text_); }

 private:
  Budget& budget_;
  std::string text_;
  size_t held_ = 0;
};

Interpreter::Interpreter(const std::string& name, const Limits& limits, const std::tm& now)
    : name_(name), budget_(limits), now_(now), scope_(std::make_shared<Scope>()) {
  add_globals(*this, *scope_);
}

Interpreter::~Interpreter() {
  // Macros refer to scopes, scopes hold macros, and namespaces hold anything: they go before what they were counted in.
  scope_.reset();
  for (const std::shared_ptr<Scope>& scope : macro_scopes_) scope->variables.clear();
  for (const std::unique_ptr<Namespace>& space : namespaces_) space->attributes.clear();
}

std::string Interpreter::render(const Body& body, const DictObject& variables) {
  auto scope = std::make_shared<Scope>();
  scope->parent = scope_;
  for (const auto& [key, value] : variables.entries()) scope->variables[key.as_string()->text] = value;
  scope_ = std::move(scope);
  Output output(budget_);
  output_ = &output;
  try {
    run(body);
  } catch (const Error& error) {
    fail(error.code(), "{}: line {}: {}", name_, line_, error.what());
  }
  return output.take();
}

// --- values

Value Interpreter::string(std::string text, Escaped escaped) {
  if (text.size() > budget_.limits().max_output_bytes) {
    fail(ErrorCode::kInvalidArgument, "a text of more than {} bytes", budget_.limits().max_output_bytes);
  }
  budget_.take_copied_bytes(text.size());
  auto object = std::make_shared<StringObject>();
  object->text = std::move(text);
  object->escaped = escaped;
  budget_.hold(held_bytes(*object));
  object->budget = &budget_;
  return Value(Value::Data(std::move(object)));
}

Value Interpreter::sequence(std::vector<Value> items, SequenceKind kind) {
  budget_.take_steps(1 + items.size() / 4);
  auto object = std::make_shared<SequenceObject>();
  for (const Value& item : items) object->depth = std::max(object->depth, 1 + item.depth());
  if (object->depth > budget_.limits().max_nesting) {
    fail(ErrorCode::kInvalidArgument, "lists within lists go deeper than {}", budget_.limits().max_nesting);
  }
  object->items = std::move(items);
  object->kind = kind;
  budget_.hold(held_bytes(*object));
  object->budget = &budget_;
  return Value(Value::Data(std::move(object)));
}

void Interpreter::add_entry(DictObject& dict, const Value& key, Value value) {
  budget_.take_steps(1);
  budget_.check_room(held_bytes(dict));
  if (key.is_undefined() || !dict.set(key, std::move(value))) {
    fail(ErrorCode::kInvalidArgument, "a value of type '{}' as the key of a dict", key.type_name());
  }
}

Value Interpreter::dict(DictObject&& entries) {
  auto object = std::make_shared<DictObject>(std::move(entries));
  if (object->depth > budget_.limits().max_nesting) {
    fail(ErrorCode::kInvalidArgument, "dicts within dicts go deeper than {}", budget_.limits().max_nesting);
  }
  budget_.hold(held_bytes(*object));
  object->budget = &budget_;
  return Value(Value::Data(std::move(object)));
}

Value Interpreter::make_namespace() {
  // They live as long as the rendering.
  budget_.hold(sizeof(Namespace) + sizeof(void*));
  namespaces_.push_back(std::make_unique<Namespace>());
  return Value(Value::Data(namespaces_.back().get()));
}

Value Interpreter::function(std::string name, std::function<Value(Interpreter&, const Arguments&)> call) {
  budget_.take_steps(1);
  return Value(Value::Data(std::make_shared<Callable>(Callable{std::move(name), std::move(call)})));
}

Value Interpreter::undefined(std::string hint) const {
  return Value(Value::Data(Undefined{std::make_shared<const std::string>(std::move(hint))}));
}

void Interpreter::fail_undefined(const Value& value) {
  const Undefined* undefined = value.get_if<Undefined>();
  fail(ErrorCode::kInvalidArgument, "{}",
       undefined == nullptr || undefined->hint == nullptr ? "a value is undefined" : *undefined->hint);
}

std::shared_ptr<SequenceObject> Interpreter::items_of(const Value& value) {
  if (const auto* sequence = value.get_if<std::shared_ptr<SequenceObject>>()) {
    SequenceObject& generator = **sequence;
    if (generator.kind != SequenceKind::kGenerator) return *sequence;
    std::vector<Value> rest(generator.items.begin() + static_cast<std::ptrdiff_t>(generator.num_taken),
                            generator.items.end());
    generator.num_taken = generator.items.size();
    return *this->sequence(std::move(rest)).get_if<std::shared_ptr<SequenceObject>>();
  }
  std::vector<Value> items;
  if (const DictObject* dict = value.as_dict()) {
    budget_.check_room(dict->entries().size() * sizeof(Value));
    for (const auto& [key, item] : dict->entries()) items.push_back(key);
  } else if (const StringObject* text = value.as_string()) {
    for (size_t at = 0; at < text->text.size();) {
      const size_t size = next_utf8(text->text, at).size;
      items.push_back(string(text->text.substr(at, size)));
      at += size;
    }
  } else if (const auto* loop = value.get_if<std::shared_ptr<Loop>>()) {
    return (*loop)->items;
  } else if (!value.is_undefined()) {
    fail(ErrorCode::kInvalidArgument, "'{}' object is not iterable", value.type_name());
  }
  return *sequence(std::move(items)).get_if<std::shared_ptr<SequenceObject>>();
}

std::string Interpreter::text_of(const Value& value) { return to_text(value, *this); }

Value Interpreter::attribute(const Value& object, const std::string& name) {
  if (object.is_undefined()) fail_undefined(object);
  if (name.starts_with("__")) return undefined(fmt::format("access to attribute '{}' is unsafe", name));
  if (Namespace* const* space = object.get_if<Namespace*>()) {
    for (const auto& [key, value] : (*space)->attributes) {
      if (key == name) return value;
    }
    return undefined(fmt::format("a namespace has no attribute '{}'", name));
  }
  Value found;
  if (const auto* loop = object.get_if<std::shared_ptr<Loop>>()) {
    found = find_loop_attribute(*this, *loop, name);
  } else {
    found = find_method(*this, object, name);
  }
  if (!found.is_undefined() || found.get_if<Undefined>()->hint != nullptr) return found;
  if (const DictObject* dict = object.as_dict()) {
    if (const Value* value = dict->find(name)) return *value;
  }
  return undefined(fmt::format("'{}' object has no attribute '{}'", object.type_name(), name));
}

Value Interpreter::item(const Value& object, const Value& key) {
  if (object.is_undefined()) fail_undefined(object);
  if (const DictObject* dict = object.as_dict()) {
    if (const Value* value = dict->find(key)) return *value;
  } else if (key.is_integer()) {
    const int64_t place = key.integer();
    const SequenceObject* sequence = object.as_sequence();
    const bool indexed =
        sequence != nullptr && (sequence->kind == SequenceKind::kList || sequence->kind == SequenceKind::kTuple ||
                                sequence->kind == SequenceKind::kRange);
    if (indexed) {
      const auto size = static_cast<int64_t>(sequence->items.size());
      if (place >= -size && place < size) return sequence->items[static_cast<size_t>(place < 0 ? place + size : place)];
    } else if (const StringObject* text = object.as_string();
               text != nullptr && place > INT64_MIN && place < INT64_MAX) {
      const Value end = place == -1 ? Value(None{}) : Value(place + 1);
      Value character = slice(object, place, end, None{}, *this);
      if (!character.as_string()->text.empty()) return character;
    }
  }
  if (const StringObject* name = key.as_string()) return attribute(object, name->text);
  return undefined(fmt::format("'{}' object has no element {}", object.type_name(), to_repr(key, *this)));
}

Value Interpreter::call(const Value& function, const Arguments& arguments) {
  const Deeper deeper(*this);
  if (const auto* callable = function.get_if<std::shared_ptr<Callable>>()) return (*callable)->call(*this, arguments);
  if (const auto* macro = function.get_if<std::shared_ptr<Macro>>()) return call_macro(**macro, arguments);
  if (function.is_undefined()) fail_undefined(function);
  fail(ErrorCode::kInvalidArgument, "'{}' object is not callable", function.type_name());
}

Value Interpreter::apply_filter(const std::string& name, const Value& input, const Arguments& arguments) {
  const Filter* filter = find_filter(name);
  if (filter == nullptr) fail(ErrorCode::kUnsupported, "no filter named '{}'", name);
  const Deeper deeper(*this);
  return filter->run(*this, input, arguments);
}

bool Interpreter::apply_test(const std::string& name, const Value& input, const Arguments& arguments) {
  const Test* test = find_test(name);
  if (test == nullptr) fail(ErrorCode::kUnsupported, "no test named '{}'", name);
  return test->run(*this, input, arguments);
}

// --- statements

void Interpreter::write(std::string_view text) { output_->write(text); }

Interpreter::Flow Interpreter::run(const Body& body) {
  const Deeper deeper(*this);
  for (const Statement& statement : body) {
    budget_.take_steps(1);
    line_ = statement.line;
    const Flow flow = run(statement);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::run(const Statement& statement) {
  if (const auto* text = std::get_if<TextStmt>(&statement.node)) {
    write(text->text);
  } else if (const auto* print = std::get_if<PrintStmt>(&statement.node)) {
    const Value value = evaluate(*print->value);
    if (const StringObject* string = value.as_string()) {
      write(string->text);
    } else {
      write(text_of(value));
    }
  } else if (const auto* branches = std::get_if<IfStmt>(&statement.node)) {
    return run_if(*branches);
  } else if (const auto* loop = std::get_if<ForStmt>(&statement.node)) {
    return run_for(*loop);
  } else if (const auto* set = std::get_if<SetStmt>(&statement.node)) {
    assign(set->target, evaluate(*set->value));
  } else if (const auto* block = std::get_if<SetBlockStmt>(&statement.node)) {
    run_set_block(*block);
  } else if (const auto* macro = std::get_if<MacroStmt>(&statement.node)) {
    scope_->variables[macro->definition->name] = macro_value(macro->definition);
  } else if (const auto* call_block = std::get_if<CallStmt>(&statement.node)) {
    run_call_block(*call_block);
  } else if (const auto* filter = std::get_if<FilterStmt>(&statement.node)) {
    write(text_of(filtered(*filter->filter, string(captured(filter->body)))));
  } else if (const auto* with = std::get_if<WithStmt>(&statement.node)) {
    run_with(*with);
  } else if (const auto* inner = std::get_if<ScopeStmt>(&statement.node)) {
    write(captured(inner->body));
  } else if (const auto* jump = std::get_if<JumpStmt>(&statement.node)) {
    return jump->kind == JumpKind::kBreak ? Flow::kBreak : Flow::kContinue;
  }
  return Flow::kNormal;
}

namespace {

// A scope within the current one, while this lives.
class InnerScope {
 public:
  InnerScope(std::shared_ptr<Scope>& current, std::shared_ptr<Scope> parent) : current_(current), outer_(current) {
    current = std::make_shared<Scope>();
    current->parent = std::move(parent);
  }
  ~InnerScope() { current_ = std::move(outer_); }
  InnerScope(const InnerScope&) = delete;
  InnerScope& operator=(const InnerScope&) = delete;

 private:
  std::shared_ptr<Scope>& current_;
  std::shared_ptr<Scope> outer_;
};

}  // namespace

Interpreter::Flow Interpreter::run_if(const IfStmt& branches) {
  for (const auto& [condition, body] : branches.branches) {
    if (evaluate(*condition).truth()) return run(body);
  }
  return run(branches.otherwise);
}

Interpreter::Flow Interpreter::run_for(const ForStmt& loop) {
  std::shared_ptr<SequenceObject> items = items_of(evaluate(*loop.items));
  if (loop.condition != nullptr) {
    std::vector<Value> kept;
    for (const Value& item : items->items) {
      budget_.take_steps(1);
      const InnerScope inner(scope_, scope_);
      assign(loop.target, item);
      if (evaluate(*loop.condition).truth()) kept.push_back(item);
    }
    items = *sequence(std::move(kept)).get_if<std::shared_ptr<SequenceObject>>();
  }
  const auto state = std::make_shared<Loop>();
  state->items = items;
  for (size_t i = 0; i < items->items.size(); ++i) {
    budget_.take_steps(1);
    state->index = i;
    const InnerScope inner(scope_, scope_);
    scope_->variables["loop"] = Value(Value::Data(state));
    assign(loop.target, items->items[i]);
    if (run(loop.body) == Flow::kBreak) break;
  }
  if (items->items.empty()) {
    const InnerScope inner(scope_, scope_);
    return run(loop.otherwise);
  }
  return Flow::kNormal;
}

std::string Interpreter::captured(const Body& body) {
  Output inner(budget_);
  Output* const outer = std::exchange(output_, &inner);
  const InnerScope scope(scope_, scope_);
  try {
    run(body);
  } catch (...) {
    output_ = outer;
    throw;
  }
  output_ = outer;
  return inner.take();
}

void Interpreter::run_set_block(const SetBlockStmt& block) {
  Value text = string(captured(block.body));
  assign(block.target, block.filter == nullptr ? text : filtered(*block.filter, std::move(text)));
}

// The filters of a block, applied to its text.
Value Interpreter::filtered(const Expression& expression, Value input) {
  const auto& filter = std::get<FilterExpr>(expression.node);
  if (filter.input != nullptr) input = filtered(*filter.input, std::move(input));
  const Arguments arguments = evaluate(filter.arguments);
  line_ = expression.line;
  return apply_filter(filter.name, input, arguments);
}

void Interpreter::run_call_block(const CallStmt& block) {
  const auto& node = std::get<CallExpr>(block.call->node);
  const Value function = evaluate(*node.function);
  Arguments arguments = evaluate(node.arguments);
  arguments.keywords.emplace_back("caller", macro_value(block.caller));
  line_ = block.call->line;
  write(text_of(call(function, arguments)));
}

void Interpreter::run_with(const WithStmt& with) {
  std::vector<Value> values;
  for (const auto& [target, value] : with.variables) values.push_back(evaluate(*value));
  Output* const output = output_;
  const InnerScope inner(scope_, scope_);
  for (size_t i = 0; i < values.size(); ++i) assign(with.variables[i].first, values[i]);
  output_ = output;
  run(with.body);
}

Value Interpreter::macro_value(const std::shared_ptr<MacroDefinition>& definition) {
  constexpr size_t kScopeBytes = 512;         // with its variables
  budget_.hold(sizeof(Macro) + kScopeBytes);  // for as long as the rendering
  if (macro_scopes_.empty() || macro_scopes_.back() != scope_) macro_scopes_.push_back(scope_);
  return Value(Value::Data(std::make_shared<Macro>(Macro{definition, scope_.get()})));
}

void Interpreter::bind_arguments(const Macro& macro, const Arguments& arguments) {
  const MacroDefinition& definition = *macro.definition;
  auto& variables = scope_->variables;
  const size_t num_parameters = definition.parameters.size();
  std::vector<bool> given(num_parameters, false);
  for (size_t i = 0; i < std::min(num_parameters, arguments.positional.size()); ++i) {
    variables[definition.parameters[i].name] = arguments.positional[i];
    given[i] = true;
  }
  DictObject rest;
  if (definition.uses_caller) variables["caller"] = undefined("No caller defined");
  for (const auto& [name, value] : arguments.keywords) {
    size_t i = 0;
    while (i < num_parameters && definition.parameters[i].name != name) ++i;
    if (i < num_parameters) {
      if (given[i]) {
        fail(ErrorCode::kInvalidArgument, "macro '{}' got two values for its parameter '{}'", definition.name, name);
      }
      variables[name] = value;
      given[i] = true;
    } else if (name == "caller" && definition.uses_caller) {
      variables["caller"] = value;
    } else if (definition.uses_kwargs) {
      add_entry(rest, string(name), value);
    } else {
      fail(ErrorCode::kInvalidArgument, "macro '{}' takes no keyword argument '{}'", definition.name, name);
    }
  }
  if (definition.uses_kwargs) variables["kwargs"] = dict(std::move(rest));
  std::vector<Value> more(
      arguments.positional.begin() + static_cast<std::ptrdiff_t>(std::min(num_parameters, arguments.positional.size())),
      arguments.positional.end());
  if (definition.uses_varargs) {
    variables["varargs"] = sequence(std::move(more), SequenceKind::kTuple);
  } else if (!more.empty()) {
    fail(ErrorCode::kInvalidArgument, "macro '{}' takes not more than {} argument(s)", definition.name, num_parameters);
  }
  for (size_t i = 0; i < num_parameters; ++i) {
    if (given[i]) continue;
    const Parameter& parameter = definition.parameters[i];
    variables[parameter.name] = parameter.default_value != nullptr
                                    ? evaluate(*parameter.default_value)
                                    : undefined(fmt::format("parameter '{}' was not provided", parameter.name));
  }
}

Value Interpreter::call_macro(const Macro& macro, const Arguments& arguments) {
  const int line = line_;
  const InnerScope inner(scope_, macro.scope->shared_from_this());
  bind_arguments(macro, arguments);
  Value text = string(captured(macro.definition->body));
  line_ = line;
  return text;
}

void Interpreter::assign(const Target& target, const Value& value) {
  if (target.is_tuple) {
    const std::shared_ptr<SequenceObject> items = items_of(value);
    if (items->items.size() != target.parts.size()) {
      fail(ErrorCode::kInvalidArgument, "{} values to unpack, expected {}", items->items.size(), target.parts.size());
    }
    for (size_t i = 0; i < target.parts.size(); ++i) assign(target.parts[i], items->items[i]);
    return;
  }
  if (target.attribute.empty()) {
    scope_->variables[target.name] = value;
    return;
  }
  const Value object = evaluate(Expression{NameExpr{target.name}, line_, 1});
  Namespace* const* space = object.get_if<Namespace*>();
  if (space == nullptr) fail(ErrorCode::kInvalidArgument, "cannot assign attribute on non-namespace object");
  for (auto& [key, there] : (*space)->attributes) {
    if (key != target.attribute) continue;
    there = value;
    return;
  }
  budget_.hold(target.attribute.size() + sizeof(Value));
  (*space)->attributes.emplace_back(target.attribute, value);
}

}  // namespace witan::jinja
