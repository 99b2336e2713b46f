#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "text/jinja/ast.h"
#include "text/jinja/lexer.h"

namespace witan::jinja {

// Deeper ones are no templates but attempts to overflow the stack of what walks the tree.
inline constexpr int kMaxExpressionDepth = 250;

// The part of the parser that reads expressions, in the order of Jinja's grammar.
class ExpressionParser {
 protected:
  ExpressionParser(std::vector<Token> tokens, const std::string& name) : tokens_(std::move(tokens)), name_(name) {}

  // --- tokens

  const Token& current() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  const Token& take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }

  bool is_operator(std::string_view text) const {
    return current().type == TokenType::kOperator && current().text == text;
  }
  bool is_name(std::string_view text) const { return current().type == TokenType::kName && current().text == text; }
  bool skip_operator(std::string_view text) { return is_operator(text) && (take(), true); }
  bool skip_name(std::string_view text) { return is_name(text) && (take(), true); }

  [[noreturn]] void error(const std::string& what) const {
    fail(ErrorCode::kBadFile, "{}: line {}: {}", name_, current().line, what);
  }
  [[noreturn]] void unsupported(const std::string& what) const {
    fail(ErrorCode::kUnsupported, "{}: line {}: {} is something that Witan's templates do not have", name_,
         current().line, what);
  }
  std::string described() const {
    switch (current().type) {
      case TokenType::kEnd:
        return "the end of the template";
      case TokenType::kVariableEnd:
        return "'}}'";
      case TokenType::kBlockEnd:
        return "'%}'";
      case TokenType::kString:
        return "a string";
      default:
        return fmt::format("'{}'", current().text);
    }
  }
  void expect_operator(std::string_view text) {
    if (!skip_operator(text)) error(fmt::format("expected '{}', found {}", text, described()));
  }
  std::string expect_name() {
    if (current().type != TokenType::kName) error(fmt::format("expected a name, found {}", described()));
    return take().text;
  }
  void expect_end(TokenType type) {
    if (current().type == type) return void(take());
    error(fmt::format("expected '{}', found {}", type == TokenType::kBlockEnd ? "%}" : "}}", described()));
  }

  // --- expressions

  // Parentheses nest by recursion, chains by loops; both end up as depth of the tree.
  struct Nested {
    explicit Nested(ExpressionParser& parser) : depth(parser.depth_) {
      if (++depth > kMaxExpressionDepth) parser.error("an expression is nested too deeply");
    }
    ~Nested() { --depth; }
    int& depth;
  };

  static int depth_of(const ExpressionPtr& expression) { return expression == nullptr ? 0 : expression->depth; }

  template <typename Node>
  ExpressionPtr make(Node node, int line, std::initializer_list<int> child_depths) const {
    const int depth = 1 + std::max(child_depths);
    if (depth > kMaxExpressionDepth) error("an expression is nested too deeply");
    return std::make_unique<Expression>(Expression{std::move(node), line, depth});
  }
  static int depth_of(const CallArguments& arguments) {
    int depth = std::max(depth_of(arguments.more_positional), depth_of(arguments.more_keywords));
    for (const ExpressionPtr& argument : arguments.positional) depth = std::max(depth, argument->depth);
    for (const auto& [name, argument] : arguments.keywords) depth = std::max(depth, argument->depth);
    return depth;
  }

  enum class Conditional : uint8_t { kNo, kYes };

  ExpressionPtr parse_expression(Conditional conditional = Conditional::kYes) {
    const Nested nested(*this);
    ExpressionPtr value = parse_or();
    while (conditional == Conditional::kYes && is_name("if")) {
      const int line = take().line;
      ExpressionPtr condition = parse_or();
      ExpressionPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
      const auto depths = {condition->depth, value->depth, depth_of(otherwise)};
      value = make(ConditionalExpr{std::move(condition), std::move(value), std::move(otherwise)}, line, depths);
    }
    return value;
  }

  // One expression, or a tuple without parentheses.
  ExpressionPtr parse_tuple(Conditional conditional = Conditional::kYes) {
    const int line = current().line;
    ExpressionPtr first = parse_expression(conditional);
    if (!is_operator(",")) return first;
    SequenceExpr tuple{SequenceKind::kTuple, {}};
    int depth = first->depth;
    tuple.items.push_back(std::move(first));
    while (skip_operator(",")) {
      if (is_tuple_end()) break;
      tuple.items.push_back(parse_expression(conditional));
      depth = std::max(depth, tuple.items.back()->depth);
    }
    return make(std::move(tuple), line, {depth});
  }
  bool is_tuple_end() const {
    return current().type == TokenType::kBlockEnd || current().type == TokenType::kVariableEnd || is_operator(")") ||
           is_name("recursive");
  }

  ExpressionPtr parse_or() {
    ExpressionPtr left = parse_and();
    while (is_name("or")) left = logical(false, std::move(left), [this] { return parse_and(); });
    return left;
  }
  ExpressionPtr parse_and() {
    ExpressionPtr left = parse_not();
    while (is_name("and")) left = logical(true, std::move(left), [this] { return parse_not(); });
    return left;
  }
  template <typename ParseRight>
  ExpressionPtr logical(bool is_and, ExpressionPtr left, ParseRight parse_right) {
    const int line = take().line;
    ExpressionPtr right = parse_right();
    const auto depths = {left->depth, right->depth};
    return make(LogicalExpr{is_and, std::move(left), std::move(right)}, line, depths);
  }
  ExpressionPtr parse_not() {
    if (!is_name("not")) return parse_compare();
    const Nested nested(*this);
    const int line = take().line;
    return unary(UnaryOperator::kNot, parse_not(), line);
  }
  ExpressionPtr unary(UnaryOperator op, ExpressionPtr operand, int line) const {
    const int depth = operand->depth;
    return make(UnaryExpr{op, std::move(operand)}, line, {depth});
  }

  std::optional<CompareOperator> take_compare_operator() {
    constexpr std::array<std::pair<std::string_view, CompareOperator>, 6> kCompare = {{
        {"==", CompareOperator::kEqual},
        {"!=", CompareOperator::kNotEqual},
        {"<", CompareOperator::kLess},
        {"<=", CompareOperator::kLessEqual},
        {">", CompareOperator::kGreater},
        {">=", CompareOperator::kGreaterEqual},
    }};
    for (const auto& [text, op] : kCompare) {
      if (skip_operator(text)) return op;
    }
    if (skip_name("in")) return CompareOperator::kIn;
    if (is_name("not") && ahead().type == TokenType::kName && ahead().text == "in") {
      take();
      take();
      return CompareOperator::kNotIn;
    }
    return std::nullopt;
  }

  ExpressionPtr parse_compare() {
    const int line = current().line;
    ExpressionPtr first = parse_sum();
    CompareExpr compare;
    int depth = first->depth;
    while (const std::optional<CompareOperator> op = take_compare_operator()) {
      compare.rest.emplace_back(*op, parse_sum());
      depth = std::max(depth, compare.rest.back().second->depth);
    }
    if (compare.rest.empty()) return first;
    compare.first = std::move(first);
    return make(std::move(compare), line, {depth});
  }

  template <typename ParseOperand>
  ExpressionPtr parse_binary(std::initializer_list<std::pair<std::string_view, BinaryOperator>> operators,
                             ParseOperand parse_operand) {
    ExpressionPtr left = parse_operand();
    for (;;) {
      const auto* const op = std::find_if(operators.begin(), operators.end(),
                                          [this](const auto& candidate) { return is_operator(candidate.first); });
      if (op == operators.end()) return left;
      const int line = take().line;
      ExpressionPtr right = parse_operand();
      const auto depths = {left->depth, right->depth};
      left = make(BinaryExpr{op->second, std::move(left), std::move(right)}, line, depths);
    }
  }
  ExpressionPtr parse_sum() {
    return parse_binary({{"+", BinaryOperator::kAdd}, {"-", BinaryOperator::kSubtract}},
                        [this] { return parse_concat(); });
  }
  ExpressionPtr parse_concat() {
    const int line = current().line;
    ExpressionPtr first = parse_product();
    if (!is_operator("~")) return first;
    ConcatExpr concat;
    int depth = first->depth;
    concat.parts.push_back(std::move(first));
    while (skip_operator("~")) {
      concat.parts.push_back(parse_product());
      depth = std::max(depth, concat.parts.back()->depth);
    }
    return make(std::move(concat), line, {depth});
  }
  ExpressionPtr parse_product() {
    return parse_binary({{"*", BinaryOperator::kMultiply},
                         {"/", BinaryOperator::kDivide},
                         {"//", BinaryOperator::kFloorDivide},
                         {"%", BinaryOperator::kModulo}},
                        [this] { return parse_power(); });
  }
  ExpressionPtr parse_power() {
    return parse_binary({{"**", BinaryOperator::kPower}}, [this] { return parse_unary(); });
  }

  ExpressionPtr parse_unary() { return parse_filters(parse_signed()); }
  ExpressionPtr parse_signed() {
    if (is_operator("-") || is_operator("+")) {
      const Nested nested(*this);
      const UnaryOperator op = is_operator("-") ? UnaryOperator::kMinus : UnaryOperator::kPlus;
      const int line = take().line;
      return parse_postfix(unary(op, parse_signed(), line));
    }
    return parse_postfix(parse_primary());
  }

  ExpressionPtr constant(Value value, int line) const { return make(ConstantExpr{std::move(value)}, line, {0}); }

  ExpressionPtr parse_primary() {
    const int line = current().line;
    switch (current().type) {
      case TokenType::kName: {
        const std::string& name = take().text;
        if (name == "true" || name == "True") return constant(true, line);
        if (name == "false" || name == "False") return constant(false, line);
        if (name == "none" || name == "None") return constant(None{}, line);
        return make(NameExpr{name}, line, {0});
      }
      case TokenType::kString: {
        std::string text;
        while (current().type == TokenType::kString) text += take().text;
        return constant(Value::string(std::move(text)), line);
      }
      case TokenType::kInteger:
        return constant(integer(take().text), line);
      case TokenType::kFloat: {
        const std::string& text = take().text;
        double value = 0.0;
        std::from_chars(text.data(), text.data() + text.size(), value);
        return constant(value, line);
      }
      case TokenType::kOperator:
        if (is_operator("(")) return parse_parentheses();
        if (is_operator("[")) return parse_list();
        if (is_operator("{")) return parse_dict();
        break;
      default:
        break;
    }
    error(fmt::format("expected an expression, found {}", described()));
  }

  int64_t integer(std::string_view text) const {
    int base = 10;
    if (text.size() > 2 && text[0] == '0' && text[1] > '9') {
      base = text[1] == 'x' ? 16 : text[1] == 'o' ? 8 : 2;
      text.remove_prefix(2);
    }
    int64_t value = 0;
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (code != std::errc{}) error(fmt::format("the number {} does not fit 64 bits", text));
    return value;
  }

  ExpressionPtr parse_parentheses() {
    const int line = take().line;
    if (skip_operator(")")) return make(SequenceExpr{SequenceKind::kTuple, {}}, line, {0});
    ExpressionPtr value = parse_tuple();
    expect_operator(")");
    return value;
  }
  ExpressionPtr parse_list() {
    const int line = take().line;
    SequenceExpr list{SequenceKind::kList, {}};
    int depth = 0;
    while (!is_operator("]")) {
      if (!list.items.empty()) expect_operator(",");
      if (is_operator("]")) break;
      list.items.push_back(parse_expression());
      depth = std::max(depth, list.items.back()->depth);
    }
    take();
    return make(std::move(list), line, {depth});
  }
  ExpressionPtr parse_dict() {
    const int line = take().line;
    DictExpr dict;
    int depth = 0;
    while (!is_operator("}")) {
      if (!dict.entries.empty()) expect_operator(",");
      if (is_operator("}")) break;
      ExpressionPtr key = parse_expression();
      expect_operator(":");
      ExpressionPtr value = parse_expression();
      depth = std::max({depth, key->depth, value->depth});
      dict.entries.emplace_back(std::move(key), std::move(value));
    }
    take();
    return make(std::move(dict), line, {depth});
  }

  ExpressionPtr parse_postfix(ExpressionPtr value) {
    for (;;) {
      if (is_operator(".")) {
        value = parse_attribute(std::move(value));
      } else if (is_operator("[")) {
        value = parse_item(std::move(value));
      } else if (is_operator("(")) {
        value = parse_call(std::move(value));
      } else {
        return value;
      }
    }
  }
  ExpressionPtr parse_attribute(ExpressionPtr object) {
    const int line = take().line;
    const int depth = object->depth;
    if (current().type == TokenType::kInteger) {
      ExpressionPtr key = constant(integer(take().text), line);
      return make(ItemExpr{std::move(object), std::move(key)}, line, {depth, 1});
    }
    return make(AttributeExpr{std::move(object), expect_name()}, line, {depth});
  }
  ExpressionPtr parse_item(ExpressionPtr object) {
    const int line = take().line;
    std::array<ExpressionPtr, 3> parts;
    size_t index = 0;
    bool is_slice = false;
    while (!is_operator("]")) {
      if (is_operator(":")) {
        take();
        is_slice = true;
        if (++index > 2) error("a slice has more than three parts");
      } else if (is_operator(",")) {
        unsupported("a subscript with a comma");
      } else {
        if (parts[index] != nullptr) error(fmt::format("expected ']', found {}", described()));
        parts[index] = parse_expression();
      }
    }
    take();
    if (!is_slice && parts[0] == nullptr) error("a subscript is empty");
    const auto depths = {object->depth, depth_of(parts[0]), depth_of(parts[1]), depth_of(parts[2])};
    if (!is_slice) return make(ItemExpr{std::move(object), std::move(parts[0])}, line, depths);
    return make(SliceExpr{std::move(object), std::move(parts[0]), std::move(parts[1]), std::move(parts[2])}, line,
                depths);
  }
  ExpressionPtr parse_call(ExpressionPtr function) {
    const int line = current().line;
    CallArguments arguments = parse_arguments();
    const auto depths = {function->depth, depth_of(arguments)};
    return make(CallExpr{std::move(function), std::move(arguments)}, line, depths);
  }

  CallArguments parse_arguments() {
    CallArguments arguments;
    expect_operator("(");
    bool is_first = true;
    while (!is_operator(")")) {
      if (!is_first) {
        expect_operator(",");
        if (is_operator(")")) break;
      }
      is_first = false;
      const bool after_more = arguments.more_positional != nullptr || arguments.more_keywords != nullptr;
      if (is_operator("*")) {
        if (after_more) error("a call has a second *");
        take();
        arguments.more_positional = parse_expression();
      } else if (is_operator("**")) {
        if (arguments.more_keywords != nullptr) error("a call has a second **");
        take();
        arguments.more_keywords = parse_expression();
      } else if (current().type == TokenType::kName && ahead().type == TokenType::kOperator && ahead().text == "=") {
        if (arguments.more_keywords != nullptr) error("a call has a keyword argument behind **");
        const std::string& name = take().text;
        take();
        arguments.keywords.emplace_back(name, parse_expression());
      } else {
        if (after_more || !arguments.keywords.empty()) error("a call has a positional argument behind a keyword");
        arguments.positional.push_back(parse_expression());
      }
    }
    take();
    return arguments;
  }

  ExpressionPtr parse_filters(ExpressionPtr value) {
    for (;;) {
      if (is_operator("|")) {
        take();
        value = parse_filter(std::move(value));
      } else if (is_name("is")) {
        value = parse_test(std::move(value));
      } else if (is_operator("(")) {
        value = parse_call(std::move(value));
      } else {
        return value;
      }
    }
  }
  std::string dotted_name() {
    std::string name = expect_name();
    while (skip_operator(".")) name += "." + expect_name();
    return name;
  }
  ExpressionPtr parse_filter(ExpressionPtr input) {
    const int line = current().line;
    std::string name = dotted_name();
    CallArguments arguments;
    if (is_operator("(")) arguments = parse_arguments();
    const auto depths = {depth_of(input), depth_of(arguments)};
    return make(FilterExpr{std::move(input), std::move(name), std::move(arguments)}, line, depths);
  }
  ExpressionPtr parse_test(ExpressionPtr input) {
    const int line = take().line;
    const bool negated = skip_name("not");
    std::string name = dotted_name();
    CallArguments arguments;
    if (is_operator("(")) {
      arguments = parse_arguments();
    } else if (is_name("is")) {
      error("tests with 'is' cannot follow each other");
    } else if (begins_operand()) {
      arguments.positional.push_back(parse_postfix(parse_primary()));
    }
    const auto depths = {input->depth, depth_of(arguments)};
    ExpressionPtr test = make(TestExpr{std::move(input), std::move(name), std::move(arguments)}, line, depths);
    return negated ? unary(UnaryOperator::kNot, std::move(test), line) : std::move(test);
  }
  bool begins_operand() const {
    switch (current().type) {
      case TokenType::kName:
        // "in" and "not" end the test in expressions such as "x is defined and y" or "x is none if y".
        return !is_name("else") && !is_name("or") && !is_name("and");
      case TokenType::kString:
      case TokenType::kInteger:
      case TokenType::kFloat:
        return true;
      default:
        return is_operator("[") || is_operator("{");
    }
  }

  std::vector<Token> tokens_;
  const std::string& name_;
  size_t at_ = 0;

 private:
  int depth_ = 0;
};

}  // namespace witan::jinja
