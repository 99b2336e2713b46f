// A policy as a JSON object says the same as one as text: {"parts": [{"part": "snapkv", "window": 32}, "adakv"],
// "keep": 0.2} is snapkv(window=32),adakv,keep=0.2.
#include "kv/policy/policy_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"

namespace witan {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 3;  // the object, its parts, a part

// The parsed object. A key that is there twice, whichever of its values was meant, is refused, as it is in a text.
json parse_object(std::string_view text) {
  std::vector<std::set<std::string>> keys;  // of the objects that the parser is in
  const auto check = [&](int depth, json::parse_event_t event, const json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
      case json::parse_event_t::array_start:
        if (depth >= kMaxDepth) {
          fail(ErrorCode::kInvalidArgument, "a KV policy in JSON: objects and lists lie more than {} deep", kMaxDepth);
        }
        if (event == json::parse_event_t::object_start) keys.emplace_back();
        break;
      case json::parse_event_t::key: {
        const auto key = parsed.get<std::string>();
        if (key.empty() || key.find_first_of(",()= ") != std::string::npos) {
          fail(ErrorCode::kInvalidArgument, "a KV policy in JSON: \"{}\" is no name", key);
        }
        if (!keys.back().insert(key).second) {
          fail(ErrorCode::kInvalidArgument, "a KV policy in JSON: \"{}\" is given twice", key);
        }
        break;
      }
      case json::parse_event_t::object_end:
        keys.pop_back();
        break;
      default:
        break;
    }
    return true;
  };
  return json::parse(text, check, false);
}

// A name or a value, which must not look like more than that in a text.
std::string plain(const json& value, const std::string& what) {
  std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  if (!(value.is_string() || value.is_number()) || text.empty() || text.find_first_of(",()= ") != std::string::npos) {
    fail(ErrorCode::kInvalidArgument, "a KV policy in JSON: {} is {}; expected a number or a word", what, value.dump());
  }
  return text;
}

std::string part_text(const json& part) {
  if (part.is_string()) return plain(part, "a part");
  if (!part.is_object() || !part.contains("part")) {
    fail(ErrorCode::kInvalidArgument, "a KV policy in JSON: {} is no part; expected a name or {{\"part\": NAME, ...}}",
         part.dump());
  }
  std::vector<std::string> arguments;
  for (const auto& [name, value] : part.items()) {
    if (name != "part") arguments.push_back(fmt::format("{}={}", name, plain(value, name)));
  }
  return fmt::format("{}({})", plain(part["part"], "part"), fmt::join(arguments, ","));
}

}  // namespace

std::string kv_policy_text_of_json(std::string_view text) {
  const json object = parse_object(text);
  if (!object.is_object()) fail(ErrorCode::kInvalidArgument, "a KV policy begins as JSON, but is no JSON object");
  if (!object.contains("parts") || !object["parts"].is_array()) {
    fail(ErrorCode::kInvalidArgument, "a KV policy in JSON: no list \"parts\"");
  }
  std::vector<std::string> parts;
  for (const json& part : object["parts"]) parts.push_back(part_text(part));
  for (const auto& [name, value] : object.items()) {
    if (name != "parts") parts.push_back(fmt::format("{}={}", name, plain(value, name)));
  }
  return fmt::format("{}", fmt::join(parts, ","));
}

}  // namespace witan
