#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <string>
#include <string_view>

#include "base/error.h"
#include "text/jinja/template.h"

// Arbitrary bytes as a chat template, rendered with a conversation; after a zero byte, if there is one, as JSON that
// the template gets as `extra`.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace witan;
  using jinja::Value;
  static const Value kMessages = jinja::parse_json(
      R"([{"role": "system", "content": "Be \u00e9."}, {"role": "user", "content": "Hi"},
          {"role": "assistant", "content": "<think>a</think>b",
           "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, 2.5, null, true]}}}]}])",
      "messages");
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = std::min(input.find('\0'), size);
  // Small enough that the slowest input stays far below the fuzzer's time limit.
  const jinja::Limits limits{.max_steps = 200'000, .max_output_bytes = 1 << 20, .max_value_bytes = 8 << 20};
  try {
    const Value extra = cut < size ? jinja::parse_json(input.substr(cut + 1), "extra") : Value(jinja::None{});
    const jinja::Template chat(input.substr(0, cut), "fuzz");
    chat.render(Value::dict({{"messages", kMessages},
                             {"tools", jinja::None{}},
                             {"add_generation_prompt", true},
                             {"bos_token", Value::string("<s>")},
                             {"extra", extra}}),
                std::tm{}, limits);
  } catch (const Error&) {
  }
  return 0;
}
