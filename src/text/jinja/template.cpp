#include "text/jinja/template.h"

#include "base/check.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/parser.h"

namespace witan::jinja {

Template::Template(std::string_view source, std::string name) : name_(std::move(name)), body_(parse(source, name_)) {}

std::string Template::render(const Value& variables, const std::tm& now, const Limits& limits) const {
  WITAN_CHECK(variables.as_dict() != nullptr);
  return Interpreter(name_, limits, now).render(body_, *variables.as_dict());
}

}  // namespace witan::jinja
