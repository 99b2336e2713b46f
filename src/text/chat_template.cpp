#include "text/chat_template.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"

namespace witan {
namespace {

using jinja::Value;

[[noreturn]] void wrong_type(const std::string& source, const std::string& key, std::string_view expected,
                             const Value& found) {
  fail(ErrorCode::kInvalidArgument, "{}: \"{}\" is of type {}, expected {}", source, key, found.type_name(), expected);
}

// Lists of objects.
void check_list(const Value& list, const std::string& source, const std::string& key) {
  if (list.as_sequence() == nullptr) wrong_type(source, key, "an array of objects", list);
  const std::vector<Value>& items = list.as_sequence()->items;
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].as_dict() == nullptr) wrong_type(source, fmt::format("{}[{}]", key, i), "an object", items[i]);
  }
}

std::tm parse_time(const std::string& text, const std::string& source) {
  std::tm time{};
  const char* end = strptime(text.c_str(), "%Y-%m-%d %H:%M:%S", &time);
  if (end == nullptr || *end != '\0') {
    fail(ErrorCode::kInvalidArgument, "{}: \"now\" is \"{}\", expected a time such as \"2025-01-15 12:34:56\"", source,
         text);
  }
  time.tm_isdst = -1;
  std::tm known = time;
  std::mktime(&known);  // the name of the time zone, and whether it is summer
  time.tm_isdst = known.tm_isdst;
  time.tm_gmtoff = known.tm_gmtoff;
  time.tm_zone = known.tm_zone;
  return time;
}

}  // namespace

ChatInput parse_chat_input(std::string_view json, const std::string& source) {
  constexpr std::array<std::string_view, 7> kKeys = {
      "messages", "tools", "add_generation_prompt", "extra", "bos_token", "eos_token", "now"};
  const Value root = jinja::parse_json(json, source);
  const jinja::DictObject* object = root.as_dict();
  if (object == nullptr) {
    fail(ErrorCode::kInvalidArgument, "{}: a value of type {}, expected an object with \"messages\"", source,
         root.type_name());
  }
  for (const auto& [key, value] : object->entries()) {
    if (std::ranges::find(kKeys, key.as_string()->text) == kKeys.end()) {
      fail(ErrorCode::kInvalidArgument, "{}: unknown key \"{}\"; variables of the template go into \"extra\"", source,
           key.as_string()->text);
    }
  }
  const auto find = [&](const std::string& key) -> const Value* {
    const Value* value = object->find(key);
    return value == nullptr || value->is_none() ? nullptr : value;
  };
  ChatInput input;
  const Value* messages = find("messages");
  if (messages == nullptr) fail(ErrorCode::kInvalidArgument, "{}: \"messages\" is missing", source);
  check_list(*messages, source, "messages");
  input.messages = *messages;
  if (const Value* tools = find("tools")) {
    check_list(*tools, source, "tools");
    input.tools = *tools;
  }
  if (const Value* flag = find("add_generation_prompt")) {
    if (!flag->is_bool()) wrong_type(source, "add_generation_prompt", "true or false", *flag);
    input.add_generation_prompt = flag->truth();
  }
  if (const Value* now = find("now")) {
    if (!now->is_string()) wrong_type(source, "now", "a string", *now);
    input.now = parse_time(now->as_string()->text, source);
  }
  jinja::DictObject extra;
  for (const std::string key : {"bos_token", "eos_token"}) {
    const Value* token = find(key);
    if (token == nullptr) continue;
    if (!token->is_string()) wrong_type(source, key, "a string", *token);
    extra.set(Value::string(key), *token);
  }
  if (const Value* more = find("extra")) {
    if (more->as_dict() == nullptr) wrong_type(source, "extra", "an object", *more);
    for (const auto& [key, value] : more->as_dict()->entries()) extra.set(key, value);
  }
  input.extra = Value(Value::Data(std::make_shared<jinja::DictObject>(std::move(extra))));
  return input;
}

ChatTemplate::ChatTemplate(std::string source, const std::string& name, SpecialTokenNames special_tokens)
    : source_(std::move(source)), template_(source_, name), special_tokens_(std::move(special_tokens)) {}

std::string ChatTemplate::render(const ChatInput& input) const {
  jinja::DictObject variables;
  const auto set = [&](const std::string& name, const Value& value) { variables.set(Value::string(name), value); };
  for (const auto& [name, token] : special_tokens_) set(name, Value::string(token));
  set("messages", input.messages);
  set("tools", input.tools);
  set("documents", jinja::None{});
  set("add_generation_prompt", input.add_generation_prompt);
  if (const jinja::DictObject* extra = input.extra.as_dict()) {
    for (const auto& [key, value] : extra->entries()) variables.set(key, value);
  }
  std::tm now{};
  if (input.now) {
    now = *input.now;
  } else {
    const std::time_t seconds = std::time(nullptr);
    localtime_r(&seconds, &now);
  }
  const Value dict(Value::Data(std::make_shared<jinja::DictObject>(std::move(variables))));
  return template_.render(dict, now);
}

std::vector<TokenId> encode_prompt(const Tokenizer& tokenizer, std::string_view prompt) {
  std::vector<TokenId> ids = tokenizer.encode(prompt, AddSpecial::kNo, ParseSpecial::kYes);
  const std::optional<TokenId> bos = tokenizer.bos();
  const std::vector<TokenId> frame = tokenizer.encode("", AddSpecial::kYes, ParseSpecial::kNo);
  const bool adds_bos = bos && !frame.empty() && frame.front() == *bos;
  if (adds_bos && (ids.empty() || ids.front() != *bos)) ids.insert(ids.begin(), *bos);
  return ids;
}

}  // namespace witan
