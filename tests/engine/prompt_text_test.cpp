#include "engine/prompt_text.h"

#include <gtest/gtest.h>

#include "engine/engine.h"
#include "support/made_model.h"

namespace witan {
namespace {

class PromptTextTest : public testing::Test {
 protected:
  const Tokenizer& tokenizer() const { return *engine_.tokenizer(); }

  // Of tokens [begin, end).
  std::string bytes_of(const std::vector<TokenId>& tokens, int32_t begin, int32_t end) const {
    std::string bytes;
    for (int32_t i = begin; i < end; ++i) bytes += tokenizer().token_bytes(tokens[static_cast<size_t>(i)]);
    return bytes;
  }

  Engine engine_{{.path = test::made_model("qwen3moe", "tiny", DType::kF32),
                  .num_threads = 1,
                  .memory_bytes = int64_t{256} << 20,
                  .context_length = 128}};
};

TEST_F(PromptTextTest, SpansHaveTheTokensThatOverlapWithATextAndNoOthers) {
  const std::vector<TokenId> tokens = engine_.encode("The code is 4711, and the code was 42. Decode.");
  const PromptText text(tokenizer(), tokens);
  for (const auto& [wanted, count] : {std::pair("code", 3), {"the code", 1}, {"4711", 1}, {"e", 6}, {"Code", 0}}) {
    const std::vector<KvSpan> spans = text.find(wanted);
    EXPECT_EQ(std::ssize(spans), count) << wanted;
    for (const KvSpan& span : spans) {
      EXPECT_NE(bytes_of(tokens, span.begin, span.end).find(wanted), std::string::npos) << wanted;
      EXPECT_EQ(bytes_of(tokens, span.begin + 1, span.end).find(wanted), std::string::npos) << wanted << ": too long";
      EXPECT_EQ(bytes_of(tokens, span.begin, span.end - 1).find(wanted), std::string::npos) << wanted << ": too long";
    }
  }
  const std::vector<KvSpan> all = text.find(bytes_of(tokens, 0, static_cast<int32_t>(tokens.size())));
  EXPECT_EQ(all, (std::vector<KvSpan>{{0, static_cast<int32_t>(tokens.size())}}));
}

TEST_F(PromptTextTest, PartsBeginBehindTheirSeparators) {
  const std::vector<TokenId> tokens = engine_.encode("one\ntwo\n\nthree");
  const std::vector<int32_t> lines = PromptText(tokenizer(), tokens).part_starts("\n");
  ASSERT_GE(lines.size(), 3u);
  EXPECT_EQ(lines.front(), 0);
  for (size_t i = 1; i < lines.size(); ++i) {
    EXPECT_TRUE(bytes_of(tokens, 0, lines[i]).ends_with('\n'));
    EXPECT_LT(lines[i - 1], lines[i]);
  }
  EXPECT_EQ(PromptText(tokenizer(), tokens).part_starts("\n\n").size(), 2u);
}

TEST_F(PromptTextTest, TokensWithoutANameHaveNoText) {
  std::vector<TokenId> tokens = engine_.encode("ab");
  tokens.insert(tokens.end() - 1, tokenizer().vocab_size());
  const auto last = static_cast<int32_t>(tokens.size()) - 1;
  EXPECT_EQ(PromptText(tokenizer(), tokens).find("b"), (std::vector<KvSpan>{{last, last + 1}}));
}

}  // namespace
}  // namespace witan
