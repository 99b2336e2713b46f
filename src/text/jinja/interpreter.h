#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/budget.h"
#include "text/jinja/value.h"

namespace witan::jinja {

// The variables of a block; names not in it are looked up in the one around it.
struct Scope : std::enable_shared_from_this<Scope> {
  std::shared_ptr<Scope> parent;
  std::unordered_map<std::string, Value> variables;
};

// A macro as a value: its definition, and the scope it was made in, which the rendering keeps alive.
struct Macro {
  std::shared_ptr<const MacroDefinition> definition;
  Scope* scope;
};

// One rendering: runs statements, evaluates expressions. Filters, tests, methods and global functions do their work
// through it, so that everything they make is counted. Errors: Error(kInvalidArgument) with the cause; render() adds
// the place.
class Interpreter {
 public:
  Interpreter(const std::string& name, const Limits& limits, const std::tm& now);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  std::string render(const Body& body, const DictObject& variables);

  Budget& budget() { return budget_; }
  const std::tm& now() const { return now_; }

  // Values made by the rendering. Throw when there is no room for them.
  Value string(std::string text, Escaped escaped = Escaped::kNo);
  Value sequence(std::vector<Value> items, SequenceKind kind = SequenceKind::kList);
  Value dict(DictObject&& entries);
  Value make_namespace();
  Value function(std::string name, std::function<Value(Interpreter&, const Arguments&)> call);
  // Adds to a dict that is being made.
  void add_entry(DictObject& dict, const Value& key, Value value);

  // value.name and value[key], as Jinja looks them up; undefined where there is none.
  Value attribute(const Value& object, const std::string& name);
  Value item(const Value& object, const Value& key);
  Value call(const Value& function, const Arguments& arguments);
  Value apply_filter(const std::string& name, const Value& input, const Arguments& arguments);
  bool apply_test(const std::string& name, const Value& input, const Arguments& arguments);

  // What iterating over a value gives: its items, keys, characters. Takes what is left of a generator.
  std::shared_ptr<SequenceObject> items_of(const Value& value);
  // The text that printing a value gives.
  std::string text_of(const Value& value);
  Value undefined(std::string hint) const;
  // Fails with the hint of an undefined value.
  [[noreturn]] static void fail_undefined(const Value& value);

 private:
  enum class Flow : uint8_t { kNormal, kBreak, kContinue };
  class Output;
  // Counts how far the interpreter is within itself.
  struct Deeper {
    explicit Deeper(Interpreter& running) : depth(running.depth_) {
      if (++depth <= running.budget_.limits().max_depth) return;
      --depth;
      fail(ErrorCode::kInvalidArgument, "statements, expressions and macro calls within each other go too deep");
    }
    ~Deeper() { --depth; }
    int& depth;
  };

  Flow run(const Body& body);
  Flow run(const Statement& statement);
  Flow run_for(const ForStmt& loop);
  Flow run_if(const IfStmt& branches);
  void run_set_block(const SetBlockStmt& block);
  void run_call_block(const CallStmt& block);
  void run_with(const WithStmt& with);
  std::string captured(const Body& body);
  Value filtered(const Expression& filter, Value input);
  Value macro_value(const std::shared_ptr<MacroDefinition>& definition);
  Value call_macro(const Macro& macro, const Arguments& arguments);
  void bind_arguments(const Macro& macro, const Arguments& arguments);
  void assign(const Target& target, const Value& value);
  void write(std::string_view text);

  Value evaluate(const Expression& expression);
  Value evaluate(const Expression& expression, const ConstantExpr& node);
  Value evaluate(const Expression& expression, const NameExpr& node);
  Value evaluate(const Expression& expression, const SequenceExpr& node);
  Value evaluate(const Expression& expression, const DictExpr& node);
  Value evaluate(const Expression& expression, const AttributeExpr& node);
  Value evaluate(const Expression& expression, const ItemExpr& node);
  Value evaluate(const Expression& expression, const SliceExpr& node);
  Value evaluate(const Expression& expression, const CallExpr& node);
  Value evaluate(const Expression& expression, const FilterExpr& node);
  Value evaluate(const Expression& expression, const TestExpr& node);
  Value evaluate(const Expression& expression, const UnaryExpr& node);
  Value evaluate(const Expression& expression, const BinaryExpr& node);
  Value evaluate(const Expression& expression, const LogicalExpr& node);
  Value evaluate(const Expression& expression, const ConcatExpr& node);
  Value evaluate(const Expression& expression, const CompareExpr& node);
  Value evaluate(const Expression& expression, const ConditionalExpr& node);
  Arguments evaluate(const CallArguments& arguments);

  const std::string& name_;
  Budget budget_;
  std::tm now_;
  int depth_ = 0;
  int line_ = 1;  // of what runs
  // What macros refer to lives as long as the rendering: they may be kept in namespaces.
  std::vector<std::shared_ptr<Scope>> macro_scopes_;
  std::vector<std::unique_ptr<Namespace>> namespaces_;
  std::shared_ptr<Scope> scope_;
  Output* output_ = nullptr;
};

}  // namespace witan::jinja
