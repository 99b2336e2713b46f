#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace witan::jinja {

enum class BinaryOperator : uint8_t { kAdd, kSubtract, kMultiply, kDivide, kFloorDivide, kModulo, kPower };
enum class CompareOperator : uint8_t { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kIn, kNotIn };

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct CallArguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> keywords;
  ExpressionPtr more_positional;  // *args; may be null
  ExpressionPtr more_keywords;    // **kwargs; may be null
};

struct ConstantExpr {
  Value value;
};
struct NameExpr {
  std::string name;
};
struct SequenceExpr {
  SequenceKind kind;
  std::vector<ExpressionPtr> items;
};
struct DictExpr {
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> entries;
};
struct AttributeExpr {
  ExpressionPtr object;
  std::string name;
};
struct ItemExpr {
  ExpressionPtr object;
  ExpressionPtr key;
};
struct SliceExpr {
  ExpressionPtr object;
  ExpressionPtr begin, end, step;  // each may be null
};
struct CallExpr {
  ExpressionPtr function;
  CallArguments arguments;
};
struct FilterExpr {
  ExpressionPtr input;  // null in a filter or set block: the block's text
  std::string name;
  CallArguments arguments;
};
struct TestExpr {
  ExpressionPtr input;
  std::string name;
  CallArguments arguments;
};
enum class UnaryOperator : uint8_t { kNot, kMinus, kPlus };
struct UnaryExpr {
  UnaryOperator op;
  ExpressionPtr operand;
};
struct BinaryExpr {
  BinaryOperator op;
  ExpressionPtr left, right;
};
struct LogicalExpr {
  bool is_and;
  ExpressionPtr left, right;
};
struct ConcatExpr {
  std::vector<ExpressionPtr> parts;
};
struct CompareExpr {
  ExpressionPtr first;
  std::vector<std::pair<CompareOperator, ExpressionPtr>> rest;
};
struct ConditionalExpr {
  ExpressionPtr condition, then, otherwise;  // otherwise may be null: undefined
};

struct Expression {
  using Node =
      std::variant<ConstantExpr, NameExpr, SequenceExpr, DictExpr, AttributeExpr, ItemExpr, SliceExpr, CallExpr,
                   FilterExpr, TestExpr, UnaryExpr, BinaryExpr, LogicalExpr, ConcatExpr, CompareExpr, ConditionalExpr>;
  Node node;
  int line;
  int depth = 1;  // of the tree: what walking it takes of the stack
};

// What `set` and `for` assign to: a name, an attribute of a namespace, or a tuple of targets.
struct Target {
  std::string name;
  std::string attribute;  // of the namespace `name`; empty for a plain name
  std::vector<Target> parts;
  bool is_tuple = false;
};

struct Statement;
using Body = std::vector<Statement>;

struct Parameter {
  std::string name;
  ExpressionPtr default_value;  // may be null
};

// A macro, or the block of a call statement, which its macro calls as caller().
struct MacroDefinition {
  std::string name;
  std::vector<Parameter> parameters;
  Body body;
  bool uses_varargs = false;
  bool uses_kwargs = false;
  bool uses_caller = false;
};

struct TextStmt {
  std::string text;
};
struct PrintStmt {
  ExpressionPtr value;
};
struct ForStmt {
  Target target;
  ExpressionPtr items;
  ExpressionPtr condition;  // may be null
  Body body;
  Body otherwise;
};
struct IfStmt {
  std::vector<std::pair<ExpressionPtr, Body>> branches;
  Body otherwise;
};
struct SetStmt {
  Target target;
  ExpressionPtr value;
};
struct SetBlockStmt {
  Target target;
  ExpressionPtr filter;  // may be null
  Body body;
};
struct MacroStmt {
  std::shared_ptr<MacroDefinition> definition;
};
struct CallStmt {
  ExpressionPtr call;  // a CallExpr
  std::shared_ptr<MacroDefinition> caller;
};
struct FilterStmt {
  ExpressionPtr filter;
  Body body;
};
struct WithStmt {
  std::vector<std::pair<Target, ExpressionPtr>> variables;
  Body body;
};
struct ScopeStmt {  // a generation block
  Body body;
};
enum class JumpKind : uint8_t { kBreak, kContinue };
struct JumpStmt {
  JumpKind kind;
};

struct Statement {
  using Node = std::variant<TextStmt, PrintStmt, ForStmt, IfStmt, SetStmt, SetBlockStmt, MacroStmt, CallStmt,
                            FilterStmt, WithStmt, ScopeStmt, JumpStmt>;
  Node node;
  int line;
};

}  // namespace witan::jinja
