#pragma once

#include <ctime>
#include <string>
#include <string_view>

#include "text/jinja/ast.h"
#include "text/jinja/budget.h"
#include "text/jinja/value.h"

namespace witan::jinja {

// A Jinja template as models' chat templates use the language: that of Jinja 3.1 with trim_blocks, lstrip_blocks and
// loop controls, without blocks, imports and recursive loops, and with the filters, tests, methods and functions that
// builtins.cpp, *_filters.cpp, *methods.cpp and globals.cpp list. Immutable: any thread may render.
class Template {
 public:
  // `name` names the template in messages. Throws Error(kBadFile) naming it, line and cause for what is no Jinja,
  // Error(kUnsupported) for Jinja that Witan does not have.
  Template(std::string_view source, std::string name);

  // `variables` is a dict; strftime_now() formats `now`. Throws Error(kInvalidArgument) naming template, line and
  // cause: raise_exception's message, an operation that does not fit its values, a limit that is exceeded;
  // Error(kUnsupported) for a filter or test that Witan does not have.
  std::string render(const Value& variables, const std::tm& now, const Limits& limits = {}) const;

 private:
  std::string name_;
  Body body_;
};

}  // namespace witan::jinja
