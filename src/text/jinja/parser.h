#pragma once

#include <string>
#include <string_view>

#include "text/jinja/ast.h"

namespace witan::jinja {

// Parses a template with Jinja 3.1's grammar and the statements that chat templates use. Throws Error(kBadFile) naming
// `name`, line and cause for what is no Jinja, Error(kUnsupported) for Jinja that Witan does not have (blocks, imports,
// recursive loops).
Body parse(std::string_view source, const std::string& name);

}  // namespace witan::jinja
