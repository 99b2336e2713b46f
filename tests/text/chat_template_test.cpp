#include "text/chat_template.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/goldens.h"

namespace witan {
namespace {

using jinja::Value;
using nlohmann::ordered_json;

std::tm golden_now() {
  std::tm now{};
  now.tm_year = 2025 - 1900;
  now.tm_mon = 0;
  now.tm_mday = 15;
  now.tm_hour = 12;
  now.tm_min = 34;
  now.tm_sec = 56;
  now.tm_wday = 3;
  now.tm_yday = 14;
  return now;
}

// The models whose templates are in a folder of goldens.
std::vector<std::string> golden_templates() {
  std::vector<std::string> names;
  for (const char* root : {WITAN_GOLDENS, WITAN_TEST_DATA "/goldens"}) {
    const std::filesystem::path folder = std::filesystem::path(root) / "chat-templates";
    if (!names.empty() || !std::filesystem::is_directory(folder)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() == ".jinja") names.push_back(entry.path().stem().string());
    }
  }
  std::ranges::sort(names);
  return names;
}

class ChatTemplateGolden : public testing::TestWithParam<std::string> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ChatTemplateGolden);

TEST_P(ChatTemplateGolden, RendersEveryCaseAsTransformersDoes) {
  WITAN_GOLDEN_OR_SKIP(template_path, "chat-templates/" + GetParam() + ".jinja");
  WITAN_GOLDEN_OR_SKIP(cases_path, "chat-templates/" + GetParam() + ".json");
  const auto golden = ordered_json::parse(test::read_file(cases_path));
  SpecialTokenNames tokens;
  for (const char* name : {"bos_token", "eos_token"}) {
    if (golden[name].is_string()) tokens.emplace_back(name, golden[name]);
  }
  const ChatTemplate chat(test::read_file(template_path), GetParam(), tokens);
  ASSERT_FALSE(golden["cases"].empty());
  for (const auto& item : golden["cases"]) {
    ChatInput input;
    input.messages = jinja::parse_json(item["messages"].dump(), "messages");
    input.tools = jinja::parse_json(item["tools"].dump(), "tools");
    input.extra = jinja::parse_json(item["extra"].dump(), "extra");
    input.add_generation_prompt = item["add_generation_prompt"];
    input.now = golden_now();
    if (item.contains("error")) {
      std::string cause = item["error"];
      cause = cause.substr(cause.find(": ") + 2);
      test::expect_error(ErrorCode::kInvalidArgument, cause, [&] { chat.render(input); });
    } else {
      EXPECT_EQ(chat.render(input), item["expected"]) << item["name"];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(ChatTemplate, ChatTemplateGolden, testing::ValuesIn(golden_templates()),
                         [](const auto& named) {
                           std::string name = named.param;
                           std::ranges::replace_if(
                               name, [](char c) { return std::isalnum(c) == 0; }, '_');
                           return name;
                         });

TEST(ChatTemplate, GivesTheNamesThatTransformersGives) {
  const ChatTemplate chat(
      "{{ bos_token }}|{{ messages[0].content }}|{{ tools is none }}|{{ documents is none }}|"
      "{{ add_generation_prompt }}|{{ thinking }}|{{ eos_token is defined }}",
      "test", {{"bos_token", "<s>"}});
  ChatInput input;
  input.messages = jinja::parse_json(R"([{"role": "user", "content": "hi"}])", "messages");
  input.extra = Value::dict({{"thinking", true}});
  EXPECT_EQ(chat.render(input), "<s>|hi|True|True|True|True|False");
}

TEST(ChatTemplate, ExtraVariablesWinOverSpecialTokens) {
  const ChatTemplate chat("{{ bos_token }}", "test", {{"bos_token", "<s>"}});
  ChatInput input;
  input.messages = Value::list({});
  input.extra = Value::dict({{"bos_token", Value::string("<x>")}});
  EXPECT_EQ(chat.render(input), "<x>");
}

TEST(ChatTemplate, FormatsTheTimeItIsGivenOrTheLocalTime) {
  const ChatTemplate chat("{{ strftime_now('%d %b %Y %H:%M:%S %A %j') }}", "test", {});
  ChatInput input;
  input.messages = Value::list({});
  input.now = golden_now();
  EXPECT_EQ(chat.render(input), "15 Jan 2025 12:34:56 Wednesday 015");
  input.now.reset();
  EXPECT_THAT(chat.render(input), testing::MatchesRegex("[0-9]+ [A-Z][a-z]+ 20[0-9]+ .*"));
}

}  // namespace
}  // namespace witan
