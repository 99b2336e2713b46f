#include <utility>

#include "base/error.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/operators.h"

// The half of the interpreter that evaluates expressions.

namespace witan::jinja {

Value Interpreter::evaluate(const Expression& expression) {
  const Deeper deeper(*this);
  budget_.take_steps(1);
  line_ = expression.line;
  return std::visit([&](const auto& node) { return evaluate(expression, node); }, expression.node);
}

Value Interpreter::evaluate(const Expression& /*expression*/, const ConstantExpr& node) { return node.value; }

Value Interpreter::evaluate(const Expression& /*expression*/, const NameExpr& node) {
  for (const Scope* scope = scope_.get(); scope != nullptr; scope = scope->parent.get()) {
    const auto found = scope->variables.find(node.name);
    if (found != scope->variables.end()) return found->second;
  }
  return undefined(fmt::format("'{}' is undefined", node.name));
}

Value Interpreter::evaluate(const Expression& /*expression*/, const SequenceExpr& node) {
  std::vector<Value> items;
  for (const ExpressionPtr& item : node.items) items.push_back(evaluate(*item));
  return sequence(std::move(items), node.kind);
}

Value Interpreter::evaluate(const Expression& /*expression*/, const DictExpr& node) {
  DictObject entries;
  for (const auto& [key, value] : node.entries) {
    const Value name = evaluate(*key);
    add_entry(entries, name, evaluate(*value));
  }
  return dict(std::move(entries));
}

Value Interpreter::evaluate(const Expression& expression, const AttributeExpr& node) {
  const Value object = evaluate(*node.object);
  line_ = expression.line;
  return attribute(object, node.name);
}

Value Interpreter::evaluate(const Expression& expression, const ItemExpr& node) {
  const Value object = evaluate(*node.object);
  const Value key = evaluate(*node.key);
  line_ = expression.line;
  return item(object, key);
}

Value Interpreter::evaluate(const Expression& expression, const SliceExpr& node) {
  const Value object = evaluate(*node.object);
  const auto part = [this](const ExpressionPtr& e) { return e == nullptr ? Value(None{}) : evaluate(*e); };
  const Value begin = part(node.begin);
  const Value end = part(node.end);
  const Value step = part(node.step);
  line_ = expression.line;
  return slice(object, begin, end, step, *this);
}

Arguments Interpreter::evaluate(const CallArguments& arguments) {
  Arguments result;
  for (const ExpressionPtr& argument : arguments.positional) result.positional.push_back(evaluate(*argument));
  for (const auto& [name, argument] : arguments.keywords) result.keywords.emplace_back(name, evaluate(*argument));
  if (arguments.more_positional != nullptr) {
    const std::shared_ptr<SequenceObject> items = items_of(evaluate(*arguments.more_positional));
    budget_.take_steps(items->items.size());
    result.positional.insert(result.positional.end(), items->items.begin(), items->items.end());
  }
  if (arguments.more_keywords != nullptr) {
    const Value keywords = evaluate(*arguments.more_keywords);
    const DictObject* dict = keywords.as_dict();
    if (dict == nullptr) fail(ErrorCode::kInvalidArgument, "the argument after ** must be a mapping");
    for (const auto& [key, value] : dict->entries()) {
      budget_.take_steps(1);
      if (!key.is_string()) fail(ErrorCode::kInvalidArgument, "keywords must be strings");
      result.keywords.emplace_back(key.as_string()->text, value);
    }
  }
  return result;
}

Value Interpreter::evaluate(const Expression& expression, const CallExpr& node) {
  const Value function = evaluate(*node.function);
  const Arguments arguments = evaluate(node.arguments);
  line_ = expression.line;
  return call(function, arguments);
}

Value Interpreter::evaluate(const Expression& expression, const FilterExpr& node) {
  const Value input = evaluate(*node.input);
  const Arguments arguments = evaluate(node.arguments);
  line_ = expression.line;
  return apply_filter(node.name, input, arguments);
}

Value Interpreter::evaluate(const Expression& expression, const TestExpr& node) {
  const Value input = evaluate(*node.input);
  const Arguments arguments = evaluate(node.arguments);
  line_ = expression.line;
  return apply_test(node.name, input, arguments);
}

Value Interpreter::evaluate(const Expression& expression, const UnaryExpr& node) {
  const Value operand = evaluate(*node.operand);
  line_ = expression.line;
  if (node.op == UnaryOperator::kNot) return !operand.truth();
  return node.op == UnaryOperator::kMinus ? negate(operand) : negate(negate(operand));
}

Value Interpreter::evaluate(const Expression& expression, const BinaryExpr& node) {
  const Value left = evaluate(*node.left);
  const Value right = evaluate(*node.right);
  line_ = expression.line;
  return apply(node.op, left, right, *this);
}

Value Interpreter::evaluate(const Expression& /*expression*/, const LogicalExpr& node) {
  Value left = evaluate(*node.left);
  return left.truth() == node.is_and ? evaluate(*node.right) : left;
}

Value Interpreter::evaluate(const Expression& expression, const ConcatExpr& node) {
  std::string text;
  for (const ExpressionPtr& part : node.parts) {
    const std::string more = text_of(evaluate(*part));
    line_ = expression.line;
    budget_.check_room(text.size() + more.size());
    text += more;
  }
  return string(std::move(text));
}

Value Interpreter::evaluate(const Expression& expression, const CompareExpr& node) {
  Value left = evaluate(*node.first);
  for (const auto& [op, operand] : node.rest) {
    Value right = evaluate(*operand);
    line_ = expression.line;
    if (!apply(op, left, right, *this)) return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::evaluate(const Expression& /*expression*/, const ConditionalExpr& node) {
  if (evaluate(*node.condition).truth()) return evaluate(*node.then);
  if (node.otherwise != nullptr) return evaluate(*node.otherwise);
  return undefined("the inline if-expression evaluated to false and no else section was defined");
}

}  // namespace witan::jinja
