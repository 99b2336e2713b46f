#include "text/tokenizer_export.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "text/json_vocabularies.h"
#include "text/pre_tokenizer_table.h"
#include "text/vocabularies.h"

namespace witan {
namespace {

using nlohmann::json;

constexpr std::string_view kTexts[] = {"", "the hell", "hello, there  ab abc", "a\nthe<|end|>hello",
                                       "caf\u00e4 \u4e2d"};

void expect_equal_tokenizers(const Tokenizer& a, const Tokenizer& b) {
  for (const std::string_view text : kTexts) {
    for (const ParseSpecial parse : {ParseSpecial::kNo, ParseSpecial::kYes}) {
      EXPECT_EQ(a.encode(text, AddSpecial::kYes, parse), b.encode(text, AddSpecial::kYes, parse)) << text;
    }
  }
  EXPECT_EQ(a.bos(), b.bos());
  EXPECT_EQ(a.eos(), b.eos());
}

TEST(TokenizerExport, ByteLevelTokenizerKeepsItsTokensAndMerges) {
  const GgufTokenizerFields given = test::small_byte_level();
  const std::string text = test::byte_level_json(given).dump();
  const std::string config = json{{"eos_token", "<|end|>"}, {"bos_token", nullptr}}.dump();
  GgufTokenizerFields made = gguf_fields_from_json(text, config, std::ssize(given.tokens), "tokenizer.json");
  EXPECT_EQ(made.model, "gpt2");
  EXPECT_EQ(made.pre, "gpt-2");
  EXPECT_EQ(made.tokens, given.tokens);
  EXPECT_EQ(made.token_types, given.token_types);
  EXPECT_EQ(made.merges, given.merges);
  EXPECT_EQ(made.eos, given.eos);
  EXPECT_EQ(made.bos, std::nullopt);
  EXPECT_EQ(made.add_bos, false);
  expect_equal_tokenizers(*tokenizer_from_gguf(std::move(made)), *tokenizer_from_json(text, config, "tokenizer.json"));
}

TEST(TokenizerExport, SentencePieceTokenizerGetsScoresOfTheSameOrder) {
  const GgufTokenizerFields given = test::small_sentencepiece();
  const std::string text = test::sentencepiece_json(given).dump();
  const std::string config = json{{"bos_token", "<s>"}, {"eos_token", {{"content", "</s>"}}}}.dump();
  GgufTokenizerFields made = gguf_fields_from_json(text, config, std::ssize(given.tokens), "tokenizer.json");
  EXPECT_EQ(made.model, "llama");
  EXPECT_EQ(made.tokens, given.tokens);
  EXPECT_EQ(made.token_types, given.token_types);
  EXPECT_EQ(made.bos, 1);
  EXPECT_EQ(made.eos, 2);
  EXPECT_EQ(made.add_bos, true);
  EXPECT_EQ(made.add_eos, false);
  EXPECT_EQ(made.add_space_prefix, true);
  expect_equal_tokenizers(*tokenizer_from_gguf(std::move(made)), *tokenizer_from_json(text, config, "tokenizer.json"));
}

TEST(TokenizerExport, EveryNamedPreTokenizerIsFoundByItsPatterns) {
  for (const PreTokenizerRow& row : pre_tokenizer_table()) {
    if (row.patterns.size() == 1 && row.patterns[0] == kGpt2Pattern) continue;  // several names for one
    std::vector<json> steps;
    for (const std::string_view pattern : row.patterns) steps.push_back(test::split_step(std::string(pattern)));
    steps.push_back(test::byte_level_step(false));
    json document = test::byte_level_json(test::small_byte_level());
    document["pre_tokenizer"] = test::sequence("pretokenizers", steps);
    document["model"]["ignore_merges"] = row.ignore_merges == IgnoreMerges::kYes;
    const std::string pre = gguf_fields_from_json(document.dump(), "", 300, "tokenizer.json").pre;
    const PreTokenizerRow* found = find_pre_tokenizer(pre);
    ASSERT_NE(found, nullptr) << pre;
    EXPECT_EQ(found->patterns, row.patterns) << pre;
  }
}

TEST(TokenizerExport, IdsWithoutATokenBecomeUnusedOnes) {
  const GgufTokenizerFields given = test::small_byte_level();
  const GgufTokenizerFields made =
      gguf_fields_from_json(test::byte_level_json(given).dump(), "", std::ssize(given.tokens) + 2, "tokenizer.json");
  EXPECT_EQ(made.tokens.back(), "[PAD267]");
  EXPECT_EQ(made.token_types.back(), 5);
}

TEST(TokenizerExport, WhatAGgufFileCannotSayIsRefused) {
  json document = test::byte_level_json(test::small_byte_level());
  test::expect_error(ErrorCode::kBadFile, std::vector<std::string>{"tokenizer.json", "266 tokens", "100"},
                     [&] { gguf_fields_from_json(document.dump(), "", 100, "tokenizer.json"); });
  document["pre_tokenizer"] =
      test::sequence("pretokenizers", {test::split_step("[0-9]"), test::byte_level_step(false)});
  test::expect_error(ErrorCode::kUnsupported, std::vector<std::string>{"tokenizer.json", "pre_tokenizer"},
                     [&] { gguf_fields_from_json(document.dump(), "", 300, "tokenizer.json"); });
}

}  // namespace
}  // namespace witan
