#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "text/tokenizer_factory.h"

// Arbitrary bytes as a tokenizer.json; up to a zero byte, if there is one, after which they are a
// tokenizer_config.json. What loads must encode and decode without fault.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace witan;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = std::min(input.find('\0'), size);
  const std::string_view config = cut < size ? input.substr(cut + 1) : std::string_view();
  try {
    const auto tokenizer = tokenizer_from_json(input.substr(0, cut), config, "fuzz");
    const std::string long_run(500, 'a');
    for (const std::string_view text :
         {std::string_view("Hello, world! 123"), std::string_view("\xFF na\xC3\xAFve \xE2\x96"),
          std::string_view("  \n\t<s>ab</s> \xE2\x96\x81"), std::string_view(long_run)}) {
      try {
        const auto ids = tokenizer->encode(text, AddSpecial::kYes, ParseSpecial::kYes);
        decode(*tokenizer, ids, ShowSpecial::kYes);
        tokenizer->encode(text, AddSpecial::kNo, ParseSpecial::kNo);
      } catch (const Error&) {
      }
    }
    for (TokenId id = 0; id < tokenizer->vocab_size() && id < 1000; ++id) tokenizer->token_bytes(id);
  } catch (const Error&) {
  }
  return 0;
}
