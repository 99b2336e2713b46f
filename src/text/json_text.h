#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace witan {

// Parses JSON that others wrote. Throws Error(kBadFile) naming `source` and the place when it is not JSON, repeats a
// key within an object, nests deeper than 64 levels, or is not an object at the top.
nlohmann::json parse_json_object(std::string_view text, const std::string& source);

// What a value is, for messages: "the number 5", "the string \"x\"", "an array of 3".
std::string describe_json(const nlohmann::json& value);

}  // namespace witan
