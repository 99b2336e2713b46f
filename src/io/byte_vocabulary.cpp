#include "io/byte_vocabulary.h"

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"

namespace witan {
namespace {

constexpr std::string_view kSpace = "\u2581";  // "▁"
constexpr int32_t kFirstByteToken = 3;
constexpr int32_t kSpaceToken = kFirstByteToken + 256;
static_assert(kNumReservedTokens == kSpaceToken + 1);

// llama.cpp's numbers for tokenizer.ggml.token_type.
enum TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kByte = 6 };

constexpr std::string_view kConsonants = "bdfghjklmnprstvz";
constexpr std::string_view kVowels = "aeiou";
constexpr int32_t kNumSyllables = static_cast<int32_t>(kConsonants.size() * kVowels.size());
constexpr int32_t kNumWords = kNumSyllables * kNumSyllables * kNumSyllables;

// Word `index` of three syllables. Words of neighbouring ids look nothing alike: the multiplier is prime and so
// permutes [0, kNumWords).
std::string invented_word(int32_t index) {
  auto code = static_cast<int32_t>(static_cast<int64_t>(index) * 314159 % kNumWords);
  std::string word(kSpace);
  for (int i = 0; i < 3; ++i) {
    const auto syllable = static_cast<size_t>(code % kNumSyllables);
    word += kConsonants[syllable / kVowels.size()];
    word += kVowels[syllable % kVowels.size()];
    code /= kNumSyllables;
  }
  return word;
}

// Turns are lines that begin with their role in brackets.
constexpr std::string_view kChatTemplate =
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";

}  // namespace

void set_byte_vocabulary(GgufMetadata& metadata, int32_t vocab_size) {
  WITAN_CHECK(vocab_size >= kNumReservedTokens && vocab_size <= kNumReservedTokens + kNumWords, "{}", vocab_size);
  std::vector<std::string> pieces = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {kUnknown, kControl, kControl};
  pieces.reserve(static_cast<size_t>(vocab_size));
  for (int byte = 0; byte < 256; ++byte) {
    pieces.push_back(fmt::format("<0x{:02X}>", byte));
    types.push_back(kByte);
  }
  pieces.emplace_back(kSpace);
  for (int32_t id = kNumReservedTokens; id < vocab_size; ++id) pieces.push_back(invented_word(id - kNumReservedTokens));
  types.resize(static_cast<size_t>(vocab_size), kNormal);
  // Higher scores merge first; nothing merges here, but published vocabularies have falling scores.
  std::vector<float> scores(static_cast<size_t>(vocab_size), 0.0f);
  for (int32_t id = kSpaceToken; id < vocab_size; ++id) scores[id] = static_cast<float>(kSpaceToken - id);

  metadata.set("tokenizer.ggml.model", "llama");
  metadata.set("tokenizer.ggml.pre", "default");
  metadata.set_array("tokenizer.ggml.tokens", std::span<const std::string>(pieces));
  metadata.set_array("tokenizer.ggml.scores", std::span<const float>(scores));
  metadata.set_array("tokenizer.ggml.token_type", std::span<const int32_t>(types));
  metadata.set("tokenizer.ggml.unknown_token_id", uint32_t{0});
  metadata.set("tokenizer.ggml.bos_token_id", uint32_t{1});
  metadata.set("tokenizer.ggml.eos_token_id", uint32_t{2});
  metadata.set("tokenizer.ggml.add_bos_token", true);
  metadata.set("tokenizer.ggml.add_eos_token", false);
  metadata.set("tokenizer.chat_template", kChatTemplate);
}

}  // namespace witan
