#include "text/json_text.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "base/printable.h"

namespace witan {
namespace {

using nlohmann::json;

// Real files nest less than ten levels; much deeper ones would overflow the stack of what walks them later.
constexpr int kMaxDepth = 64;

// Watches a parse and throws on what JSON allows and these files must not have.
class StrictParse {
 public:
  explicit StrictParse(const std::string& source) : source_(source) {}

  bool operator()(int depth, json::parse_event_t event, const json& parsed) {
    if (event == json::parse_event_t::object_start || event == json::parse_event_t::array_start) {
      if (depth >= kMaxDepth) {
        fail(ErrorCode::kBadFile, "{}: JSON nested deeper than {} levels", source_, kMaxDepth);
      }
    }
    if (event == json::parse_event_t::object_start) keys_.emplace_back();
    if (event == json::parse_event_t::object_end) keys_.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys_.back().insert(key).second) {
        fail(ErrorCode::kBadFile, "{}: key {} is there twice in one JSON object", source_, printable(key));
      }
    }
    return true;
  }

 private:
  const std::string& source_;
  std::vector<std::unordered_set<std::string>> keys_;  // of the objects that are open
};

}  // namespace

json parse_json_object(std::string_view text, const std::string& source) {
  json parsed;
  try {
    StrictParse strict(source);
    parsed = json::parse(text.begin(), text.end(), [&strict](int depth, json::parse_event_t event, const json& value) {
      return strict(depth, event, value);
    });
  } catch (const json::parse_error& error) {
    // The library's message repeats what it read last, which may be the whole file.
    const size_t position = std::min(error.byte, text.size());
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(position), '\n');
    fail(ErrorCode::kBadFile, "{}: not valid JSON: error at byte {} (line {})", source, position, line);
  } catch (const json::exception&) {
    fail(ErrorCode::kBadFile, "{}: not valid JSON: a number too large", source);
  }
  if (!parsed.is_object()) {
    fail(ErrorCode::kBadFile, "{}: holds {}, expected a JSON object", source, describe_json(parsed));
  }
  return parsed;
}

std::string describe_json(const json& value) {
  switch (value.type()) {
    case json::value_t::null:
      return "null";
    case json::value_t::boolean:
      return value.get<bool>() ? "the bool true" : "the bool false";
    case json::value_t::string:
      return fmt::format("the string {}", printable(value.get_ref<const std::string&>()));
    case json::value_t::array:
      return fmt::format("an array of {}", value.size());
    case json::value_t::object:
      return "an object";
    case json::value_t::number_integer:
    case json::value_t::number_unsigned:
    case json::value_t::number_float:
      return fmt::format("the number {}", value.dump());
    case json::value_t::binary:
    case json::value_t::discarded:
      break;
  }
  return "nothing";
}

}  // namespace witan
