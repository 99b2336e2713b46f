#include "text/jinja/parser.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "base/error.h"
#include "text/jinja/expression_parser.h"

namespace witan::jinja {
namespace {

constexpr int kMaxBodyDepth = 60;                    // as kMaxExpressionDepth
constexpr size_t kMaxSourceBytes = size_t{1} << 20;  // the longest in use have 30 KB

class Parser : ExpressionParser {
 public:
  Parser(std::vector<Token> tokens, const std::string& name) : ExpressionParser(std::move(tokens), name) {}

  Body run() { return parse_body({}); }

 private:
  // Up to a block tag with one of these names, whose name is then current.
  Body parse_body(std::initializer_list<std::string_view> ends) {
    const int begin_line = current().line;
    if (++body_depth_ > kMaxBodyDepth) error("statements are nested too deeply");
    Body body;
    for (;;) {
      const Token& token = current();
      if (token.type == TokenType::kText) {
        body.push_back({TextStmt{take().text}, token.line});
      } else if (token.type == TokenType::kVariableBegin) {
        take();
        const int line = current().line;
        body.push_back({PrintStmt{parse_tuple()}, line});
        expect_end(TokenType::kVariableEnd);
      } else if (token.type == TokenType::kBlockBegin) {
        take();
        if (std::find_if(ends.begin(), ends.end(), [this](auto end) { return is_name(end); }) != ends.end()) break;
        parse_statement(body);
      } else if (ends.size() == 0) {
        break;
      } else {
        fail(ErrorCode::kBadFile, "{}: line {}: expected '{{% {} %}}', found the end of the template", name_,
             begin_line, *(ends.end() - 1));
      }
    }
    --body_depth_;
    return body;
  }
  Body parse_body_of(std::string_view end) {
    expect_end(TokenType::kBlockEnd);
    Body body = parse_body({end});
    take();
    expect_end(TokenType::kBlockEnd);
    return body;
  }

  void parse_statement(Body& body) {
    const int line = current().line;
    if (current().type != TokenType::kName) error(fmt::format("expected a statement, found {}", described()));
    const std::string& name = current().text;
    if (name == "for") return body.push_back({parse_for(), line});
    if (name == "if") return body.push_back({parse_if(), line});
    if (name == "set") return parse_set(body);
    if (name == "macro") return body.push_back({parse_macro(), line});
    if (name == "call") return body.push_back({parse_call_block(), line});
    if (name == "filter") return body.push_back({parse_filter_block(), line});
    if (name == "with") return body.push_back({parse_with(), line});
    if (name == "print") return parse_print(body);
    if (name == "generation") {
      take();
      return body.push_back({ScopeStmt{parse_body_of("endgeneration")}, line});
    }
    if (name == "break" || name == "continue") {
      if (loop_depth_ == 0) error(fmt::format("'{}' outside of a loop", name));
      const JumpKind kind = take().text == "break" ? JumpKind::kBreak : JumpKind::kContinue;
      expect_end(TokenType::kBlockEnd);
      return body.push_back({JumpStmt{kind}, line});
    }
    for (const std::string_view known :
         {"block", "extends", "include", "import", "from", "autoescape", "do", "trans"}) {
      if (name == known) unsupported(fmt::format("the statement '{}'", name));
    }
    error(fmt::format("unknown statement '{}'", name));
  }

  Target parse_single_target() {
    Target target;
    if (skip_operator("(")) {
      target = parse_target();
      expect_operator(")");
      return target;
    }
    target.name = expect_name();
    if (skip_operator(".")) target.attribute = expect_name();
    for (const std::string_view constant : {"true", "false", "none", "True", "False", "None"}) {
      if (target.name == constant) error(fmt::format("'{}' cannot be assigned to", constant));
    }
    return target;
  }
  Target parse_target() {
    const Nested nested(*this);
    Target first = parse_single_target();
    if (!is_operator(",")) return first;
    Target tuple;
    tuple.is_tuple = true;
    tuple.parts.push_back(std::move(first));
    while (skip_operator(",")) {
      if (is_name("in") || is_operator("=") || is_operator(")")) break;
      tuple.parts.push_back(parse_single_target());
    }
    return tuple;
  }

  ForStmt parse_for() {
    take();
    ForStmt loop;
    loop.target = parse_target();
    if (!skip_name("in")) error(fmt::format("expected 'in', found {}", described()));
    loop.items = parse_tuple(Conditional::kNo);
    if (skip_name("if")) loop.condition = parse_expression();
    if (is_name("recursive")) unsupported("a recursive loop");
    expect_end(TokenType::kBlockEnd);
    ++loop_depth_;
    loop.body = parse_body({"else", "endfor"});
    --loop_depth_;
    if (take().text == "else")
      loop.otherwise = parse_body_of("endfor");
    else
      expect_end(TokenType::kBlockEnd);
    return loop;
  }

  IfStmt parse_if() {
    IfStmt result;
    do {
      take();
      ExpressionPtr condition = parse_tuple(Conditional::kNo);
      expect_end(TokenType::kBlockEnd);
      result.branches.emplace_back(std::move(condition), parse_body({"elif", "else", "endif"}));
    } while (is_name("elif"));
    if (take().text == "else")
      result.otherwise = parse_body_of("endif");
    else
      expect_end(TokenType::kBlockEnd);
    return result;
  }

  void parse_set(Body& body) {
    const int line = take().line;
    Target target = parse_target();
    if (skip_operator("=")) {
      body.push_back({SetStmt{std::move(target), parse_tuple()}, line});
      return expect_end(TokenType::kBlockEnd);
    }
    ExpressionPtr filter;
    while (skip_operator("|")) filter = parse_filter(std::move(filter));
    Body text = parse_body_of("endset");
    body.push_back({SetBlockStmt{std::move(target), std::move(filter), std::move(text)}, line});
  }

  void parse_parameters(MacroDefinition& macro) {
    expect_operator("(");
    while (!is_operator(")")) {
      if (!macro.parameters.empty()) expect_operator(",");
      if (is_operator(")")) break;
      Parameter parameter{expect_name(), nullptr};
      if (skip_operator("=")) {
        parameter.default_value = parse_expression();
      } else if (!macro.parameters.empty() && macro.parameters.back().default_value != nullptr) {
        error("a parameter without a default behind one that has it");
      }
      macro.parameters.push_back(std::move(parameter));
    }
    take();
  }
  void parse_macro_body(MacroDefinition& macro, std::string_view end) {
    const size_t first = at_;
    const int outer_loops = std::exchange(loop_depth_, 0);
    macro.body = parse_body_of(end);
    loop_depth_ = outer_loops;
    note_special_names(macro, first);
  }
  // What a macro may be called with besides its parameters depends on the names it mentions.
  void note_special_names(MacroDefinition& macro, size_t first_token) const {
    for (size_t i = first_token; i < at_; ++i) {
      if (tokens_[i].type != TokenType::kName) continue;
      macro.uses_varargs = macro.uses_varargs || tokens_[i].text == "varargs";
      macro.uses_kwargs = macro.uses_kwargs || tokens_[i].text == "kwargs";
      macro.uses_caller = macro.uses_caller || tokens_[i].text == "caller";
    }
  }

  MacroStmt parse_macro() {
    take();
    auto macro = std::make_shared<MacroDefinition>();
    macro->name = expect_name();
    parse_parameters(*macro);
    parse_macro_body(*macro, "endmacro");
    return {std::move(macro)};
  }
  CallStmt parse_call_block() {
    take();
    auto caller = std::make_shared<MacroDefinition>();
    caller->name = "caller";
    if (is_operator("(")) parse_parameters(*caller);
    ExpressionPtr call = parse_expression();
    if (std::get_if<CallExpr>(&call->node) == nullptr) error("expected a call");
    parse_macro_body(*caller, "endcall");
    return {std::move(call), std::move(caller)};
  }
  FilterStmt parse_filter_block() {
    take();
    ExpressionPtr filter = parse_filter(nullptr);
    while (skip_operator("|")) filter = parse_filter(std::move(filter));
    return {std::move(filter), parse_body_of("endfilter")};
  }
  WithStmt parse_with() {
    take();
    WithStmt with;
    while (current().type != TokenType::kBlockEnd) {
      if (!with.variables.empty()) expect_operator(",");
      Target target = parse_single_target();
      expect_operator("=");
      with.variables.emplace_back(std::move(target), parse_expression());
    }
    with.body = parse_body_of("endwith");
    return with;
  }
  void parse_print(Body& body) {
    const int line = take().line;
    while (current().type != TokenType::kBlockEnd) {
      body.push_back({PrintStmt{parse_expression()}, line});
      if (!is_operator(",")) break;
      take();
    }
    expect_end(TokenType::kBlockEnd);
  }

  int body_depth_ = 0;
  int loop_depth_ = 0;
};

}  // namespace

Body parse(std::string_view source, const std::string& name) {
  if (source.size() > kMaxSourceBytes) {
    fail(ErrorCode::kUnsupported, "{}: a template of {} bytes, the limit is {}", name, source.size(), kMaxSourceBytes);
  }
  return Parser(tokenize(source, name), name).run();
}

}  // namespace witan::jinja
