#include "engine/document_prompt.h"

#include <gtest/gtest.h>

#include "support/expect_error.h"
#include "support/goldens.h"
#include "support/made_model.h"

namespace witan {
namespace {

using test::expect_error;

class DocumentPromptTest : public testing::Test {
 protected:
  std::vector<TokenId> tokens_of(const std::string& text, ParseSpecial parse_special = ParseSpecial::kNo) const {
    return engine_.tokenizer()->encode(text, AddSpecial::kNo, parse_special);
  }
  static std::vector<TokenId> of_span(const DocumentPrompt& prompt, const KvSpan& span) {
    return {prompt.tokens.begin() + span.begin, prompt.tokens.begin() + span.end};
  }

  Engine engine_{{.path = test::made_model("qwen3moe", "tiny", DType::kF32),
                  .num_threads = 1,
                  .memory_bytes = int64_t{256} << 20,
                  .context_length = 128}};
};

TEST_F(DocumentPromptTest, DocumentsHaveTheirOwnTokensWhereverTheyAre) {
  const std::string first = "The fox is red.\n";
  const std::string second = "caf\xc3\xa9";
  const std::string question = "What is red?";
  for (const auto& documents : {std::vector{first, second}, {second, first}, {first}, {second, second}}) {
    const DocumentPrompt prompt = encode_with_documents(engine_, documents, question);
    std::vector<TokenId> expected = {*engine_.tokenizer()->bos()};
    ASSERT_EQ(prompt.documents.size(), documents.size());
    for (size_t i = 0; i < documents.size(); ++i) {
      EXPECT_EQ(prompt.documents[i].begin, std::ssize(expected)) << "no BOS in it";
      EXPECT_EQ(of_span(prompt, prompt.documents[i]), tokens_of(documents[i]));
      expected.insert(expected.end(), prompt.tokens.begin() + prompt.documents[i].begin,
                      prompt.tokens.begin() + prompt.documents[i].end);
    }
    const std::vector<TokenId> asked = tokens_of(question);
    expected.insert(expected.end(), asked.begin(), asked.end());
    EXPECT_EQ(prompt.tokens, expected);
  }
}

TEST_F(DocumentPromptTest, WithoutDocumentsItIsTheTextsTokens) {
  const DocumentPrompt prompt = encode_with_documents(engine_, {}, "What is red?");
  EXPECT_EQ(prompt.tokens, engine_.encode("What is red?"));
  EXPECT_TRUE(prompt.documents.empty());
}

TEST_F(DocumentPromptTest, ControlTokensAreParsedInDocumentsTooWhereThatIsAskedFor) {
  const std::string control = engine_.tokenizer()->token_piece(*engine_.tokenizer()->bos());
  const std::vector<std::string> documents = {"a" + control + "b"};
  for (const ParseSpecial parse : {ParseSpecial::kNo, ParseSpecial::kYes}) {
    const DocumentPrompt prompt = encode_with_documents(engine_, documents, "c" + control, parse);
    EXPECT_EQ(of_span(prompt, prompt.documents[0]), tokens_of(documents[0], parse));
  }
  EXPECT_LT(tokens_of(documents[0], ParseSpecial::kYes).size(), tokens_of(documents[0]).size());
}

TEST_F(DocumentPromptTest, WhatCannotBeIsNamed) {
  const std::vector<std::string> documents = {"a", ""};
  expect_error(ErrorCode::kInvalidArgument, "document 2 has no tokens",
               [&] { encode_with_documents(engine_, documents, "b"); });
}

TEST(DocumentPromptOfEncoderTest, ModelsWithAnEncoderTakeNone) {
  WITAN_GOLDEN_OR_SKIP(golden, "switch-capacity/hf");
  const Engine engine({.path = golden, .num_threads = 1, .memory_bytes = int64_t{512} << 20, .context_length = 64});
  const std::vector<std::string> documents = {"a"};
  expect_error(ErrorCode::kUnsupported, "encoder", [&] { encode_with_documents(engine, documents, "b"); });
}

}  // namespace
}  // namespace witan
