#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "support/expect_error.h"
#include "support/gguf_vocab.h"
#include "text/tokenizer_factory.h"
#include "text/vocabularies.h"

namespace witan {
namespace {

using test::expect_error;
using test::small_byte_level;
using test::small_sentencepiece;
using Ids = std::vector<TokenId>;

Ids encode(const Tokenizer& tokenizer, std::string_view text, ParseSpecial parse = ParseSpecial::kNo) {
  return tokenizer.encode(text, AddSpecial::kNo, parse);
}

std::string pieces(const Tokenizer& tokenizer, std::string_view text, ParseSpecial parse = ParseSpecial::kNo) {
  std::string shown;
  for (const TokenId id : encode(tokenizer, text, parse)) {
    if (!shown.empty()) shown += '|';
    shown += tokenizer.token_piece(id);
  }
  return shown;
}

class GoldenVocabulary : public testing::TestWithParam<const char*> {};

TEST_P(GoldenVocabulary, GivesTheIdsOfEveryVectorAndTheTextBack) {
  WITAN_GOLDEN_OR_SKIP(path, std::string("tokenizers/ggml-vocab-") + GetParam() + ".gguf");
  const auto tokenizer = tokenizer_from_gguf(test::GgufVocabReader::read(path));
  const auto vectors = test::read_tokenizer_vectors(path);
  ASSERT_EQ(vectors.size(), 47u);
  for (const test::TokenizerVector& vector : vectors) {
    const Ids ids = encode(*tokenizer, vector.text);
    EXPECT_EQ(ids, vector.ids) << vector.text;
    EXPECT_EQ(decode(*tokenizer, ids), vector.text);
  }
}

TEST_P(GoldenVocabulary, DecodesRandomTokensAsItDecodesTheirPushes) {
  WITAN_GOLDEN_OR_SKIP(path, std::string("tokenizers/ggml-vocab-") + GetParam() + ".gguf");
  const auto tokenizer = tokenizer_from_gguf(test::GgufVocabReader::read(path));
  std::mt19937 random(5);
  Ids ids(3000);
  for (TokenId& id : ids) id = static_cast<TokenId>(random() % static_cast<unsigned>(tokenizer->vocab_size()));
  Detokenizer detokenizer(*tokenizer);
  std::string joined;
  for (const TokenId id : ids) {
    const std::string text = detokenizer.push(id);
    ASSERT_EQ(valid_utf8_prefix(text), text.size());
    joined += text;
  }
  joined += detokenizer.finish();
  EXPECT_EQ(joined, decode(*tokenizer, ids));
}

// Anything quadratic would take minutes.
TEST_P(GoldenVocabulary, EncodesLongRunsAndNoise) {
  WITAN_GOLDEN_OR_SKIP(path, std::string("tokenizers/ggml-vocab-") + GetParam() + ".gguf");
  const auto tokenizer = tokenizer_from_gguf(test::GgufVocabReader::read(path));
  std::mt19937 random(9);
  std::string noise(100'000, '\0');
  for (char& c : noise) c = static_cast<char>(random());
  for (const std::string& text : {std::string(300'000, 'a'), std::string(300'000, ' ') + "我"}) {
    EXPECT_EQ(decode(*tokenizer, encode(*tokenizer, text)), text);
  }
  EXPECT_GT(encode(*tokenizer, noise).size(), 50'000u);
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, GoldenVocabulary,
                         testing::Values("gpt-2", "llama-bpe", "qwen2", "deepseek-llm", "deepseek-coder", "starcoder",
                                         "llama-spm", "phi-3"),
                         [](const auto& tested) {
                           std::string name = tested.param;
                           std::erase(name, '-');
                           return name;
                         });

TEST(GoldenModel, EncodesItsPromptsAndDecodesWhatFollowsThem) {
  WITAN_GOLDEN_OR_SKIP(path, "e2e-bytes/model.gguf");
  WITAN_GOLDEN_OR_SKIP(cases, "e2e-bytes/golden.json");
  const auto tokenizer = tokenizer_from_gguf(test::GgufVocabReader::read(path));
  const auto file = nlohmann::json::parse(test::read_file(cases));
  for (const auto& golden : file["cases"]) {
    const Ids prompt = tokenizer->encode(golden["prompt"].get<std::string>(), AddSpecial::kYes, ParseSpecial::kYes);
    EXPECT_EQ(prompt, golden["prompt_ids"].get<Ids>()) << golden["prompt"];
    EXPECT_EQ(decode(*tokenizer, prompt), golden["prompt"]);
    Detokenizer detokenizer(*tokenizer, ShowSpecial::kNo, DecodeFrom::kContinuation);
    std::string text;
    for (const TokenId id : golden["greedy_tokens"].get<Ids>()) text += detokenizer.push(id);
    text += detokenizer.finish();
    EXPECT_EQ(text, golden["greedy_text"]);
  }
}

TEST(ByteLevelTokenizer, MergesInTheOrderOfTheList) {
  const auto tokenizer = tokenizer_from_gguf(small_byte_level());
  EXPECT_EQ(tokenizer->description(), "bpe (gpt-2)");
  EXPECT_EQ(pieces(*tokenizer, "the hello the"), "the|Ġ|hello|Ġthe");
  EXPECT_EQ(pieces(*tokenizer, "thell"), "the|ll");  // "th" "e" comes before "e" "ll"
  EXPECT_EQ(pieces(*tokenizer, "ä"), test::alphabet("ä"));
}

TEST(ByteLevelTokenizer, EveryByteStringSurvives) {
  const auto tokenizer = tokenizer_from_gguf(small_byte_level());
  std::mt19937 random(1);
  for (int round = 0; round < 500; ++round) {
    std::string text(random() % 60, '\0');
    for (char& c : text) c = static_cast<char>(random() % 3 == 0 ? random() : "thelo \xC3\xA4"[random() % 8]);
    std::string bytes;
    for (const TokenId id : encode(*tokenizer, text)) bytes += tokenizer->token_bytes(id);
    ASSERT_EQ(bytes, text);
  }
}

TEST(ByteLevelTokenizer, ParsesControlTokensOnlyWhenAsked) {
  const auto tokenizer = tokenizer_from_gguf(small_byte_level());
  EXPECT_EQ(pieces(*tokenizer, "o<|end|>o<|tool|>", ParseSpecial::kYes), "o|<|end|>|o|<|tool|>");
  EXPECT_EQ(pieces(*tokenizer, "<|end|>", ParseSpecial::kNo), "<|||e|n|d|||>");
  EXPECT_EQ(encode(*tokenizer, "<|tool|>", ParseSpecial::kNo), Ids{265});
  EXPECT_EQ(tokenizer->token_kind(264), TokenKind::kControl);
  EXPECT_EQ(tokenizer->token_kind(265), TokenKind::kUserDefined);
  EXPECT_EQ(tokenizer->eos(), 264);
  EXPECT_EQ(tokenizer->bos(), std::nullopt);
  EXPECT_EQ(tokenizer->find_token("<|end|>"), 264);
  EXPECT_EQ(tokenizer->find_token("<|nothing|>"), std::nullopt);
}

TEST(ByteLevelTokenizer, WholeWordsNeedNoMergesWhereTheModelSaysSo) {
  GgufTokenizerFields fields = small_byte_level();
  fields.tokens.push_back("oh");
  fields.token_types.push_back(1);
  EXPECT_EQ(pieces(*tokenizer_from_gguf(fields), "oh"), "o|h");
  fields.pre = "llama-bpe";
  EXPECT_EQ(pieces(*tokenizer_from_gguf(fields), "oh"), "oh");
  // A control token is no word.
  fields.tokens.push_back("eo");
  fields.token_types.push_back(3);
  EXPECT_EQ(pieces(*tokenizer_from_gguf(fields), "eo"), "e|o");
}

TEST(ByteLevelTokenizer, ACharacterThatLooksLikeAByteIsItselfWhenUserDefined) {
  GgufTokenizerFields fields = small_byte_level();
  fields.token_types[0xFF] = 4;  // "ÿ", which spells the byte 0xFF in a normal token
  const auto tokenizer = tokenizer_from_gguf(fields);
  EXPECT_EQ(encode(*tokenizer, "ÿ"), Ids{0xFF});
  EXPECT_EQ(decode(*tokenizer, Ids{0xFF}), "ÿ");
  EXPECT_EQ(decode(*tokenizer, encode(*tokenizer, "a\xFF")), "a\uFFFD");  // there is no token for that byte now
}

TEST(ByteLevelTokenizer, SpecialTokensAreAddedAsTheFileSays) {
  GgufTokenizerFields fields = small_byte_level();
  const auto framed = [&] { return tokenizer_from_gguf(fields)->encode("o", AddSpecial::kYes, ParseSpecial::kNo); };
  EXPECT_EQ(framed(), Ids{'o'});
  fields.bos = 265;
  EXPECT_EQ(framed(), Ids{'o'});
  fields.pre = "llama-bpe";
  EXPECT_EQ(framed(), (Ids{265, 'o'}));
  fields.add_bos = false;
  fields.add_eos = true;
  EXPECT_EQ(framed(), (Ids{'o', 264}));
  fields.add_bos = true;
  EXPECT_EQ(tokenizer_from_gguf(fields)->encode("", AddSpecial::kYes, ParseSpecial::kNo), (Ids{265, 264}));
  fields.bos = UINT32_MAX;  // "none"
  expect_error(ErrorCode::kBadFile, "add_bos_token is true", framed);
}

TEST(SentencePieceTokenizer, MergesByScore) {
  const auto tokenizer = tokenizer_from_gguf(small_sentencepiece());
  EXPECT_EQ(tokenizer->description(), "spm");
  EXPECT_TRUE(tokenizer->strips_leading_space());
  EXPECT_EQ(pieces(*tokenizer, "the hello"), "▁the|▁hello");
  EXPECT_EQ(pieces(*tokenizer, " the"), "▁|▁the");
  EXPECT_EQ(pieces(*tokenizer, "abcab"), "▁|abc|ab");
  EXPECT_EQ(tokenizer->bos(), 1);
  EXPECT_EQ(tokenizer->eos(), 2);
  EXPECT_EQ(tokenizer->encode("the", AddSpecial::kYes, ParseSpecial::kNo).front(), 1);
}

TEST(SentencePieceTokenizer, WorksOnPiecesThatCrossWords) {
  GgufTokenizerFields fields = small_sentencepiece();
  const auto add = [&](const char* piece, float score) {
    fields.tokens.push_back(piece);
    fields.token_types.push_back(1);
    fields.scores.push_back(score);
  };
  EXPECT_EQ(pieces(*tokenizer_from_gguf(fields), "c t"), "▁|c|▁t");
  add("c▁", -400.0f);  // later than "▁t"
  EXPECT_EQ(pieces(*tokenizer_from_gguf(fields), "c t"), "▁|c|▁t");
  fields.scores.back() = -1.0f;
  EXPECT_EQ(pieces(*tokenizer_from_gguf(fields), "c t"), "▁|c▁|t");
  add("c▁t", -400.0f);
  EXPECT_EQ(pieces(*tokenizer_from_gguf(fields), "c t"), "▁|c▁t");
}

TEST(SentencePieceTokenizer, MergesCharactersThatAreNoTokensThemselves) {
  GgufTokenizerFields fields = small_sentencepiece();
  fields.tokens.push_back("xy");
  fields.token_types.push_back(1);
  fields.scores.push_back(-500.0f);
  const auto tokenizer = tokenizer_from_gguf(fields);
  EXPECT_EQ(pieces(*tokenizer, "xy"), "▁|xy");
  EXPECT_EQ(pieces(*tokenizer, "yx"), "▁|<0x79>|<0x78>");
}

TEST(SentencePieceTokenizer, EqualScoresAreMergedFromTheLeft) {
  GgufTokenizerFields fields = small_sentencepiece();
  for (const char* piece : {"ha", "ae"}) {
    fields.tokens.push_back(piece);
    fields.token_types.push_back(1);
    fields.scores.push_back(-1.0f);
  }
  EXPECT_EQ(pieces(*tokenizer_from_gguf(fields), "hae"), "▁|ha|e");
}

TEST(SentencePieceTokenizer, TextBehindASpecialTokenGetsASpaceOfItsOwn) {
  const auto tokenizer = tokenizer_from_gguf(small_sentencepiece());
  EXPECT_EQ(pieces(*tokenizer, "the</s>the", ParseSpecial::kYes), "▁the|</s>|▁the");
  EXPECT_EQ(pieces(*tokenizer, "</s>", ParseSpecial::kNo), "▁|<0x3C>|<0x2F>|<0x73>|<0x3E>");
}

TEST(SentencePieceTokenizer, EveryByteStringSurvives) {
  const auto tokenizer = tokenizer_from_gguf(small_sentencepiece());
  std::mt19937 random(2);
  for (int round = 0; round < 500; ++round) {
    std::string text(1 + random() % 60, '\0');
    for (char& c : text) c = static_cast<char>(random() % 3 == 0 ? random() : "thelo abc"[random() % 9]);
    std::string bytes;
    for (const TokenId id : encode(*tokenizer, text)) bytes += tokenizer->token_bytes(id);
    if (valid_utf8_prefix(text) > 0) bytes.erase(0, 1);  // the prefix space, which an invalid start does not get
    ASSERT_EQ(bytes, text);
  }
}

TEST(SentencePieceTokenizer, WithoutByteTokensUnknownTextIsUnknown) {
  GgufTokenizerFields fields = small_sentencepiece();
  for (size_t id = 3; id < 259; ++id) {
    fields.token_types[id] = 5;
    fields.tokens[id] = fmt::format("[PAD{}]", id);
  }
  fields.unk = 0;
  const auto tokenizer = tokenizer_from_gguf(fields);
  EXPECT_EQ(pieces(*tokenizer, "tz\xFFt"), "▁t|<unk>|<unk>|t");  // z and U+FFFD
}

TEST(SentencePieceTokenizer, SpaceOptionsAreHonoured) {
  GgufTokenizerFields fields = small_sentencepiece();
  fields.add_space_prefix = false;
  EXPECT_FALSE(tokenizer_from_gguf(fields)->strips_leading_space());
  EXPECT_EQ(pieces(*tokenizer_from_gguf(fields), "the the"), "t|he|▁the");
  fields.add_space_prefix = true;
  fields.remove_extra_whitespaces = true;
  EXPECT_EQ(pieces(*tokenizer_from_gguf(fields), "  the   the "), "▁the|▁the");
}

TEST(SentencePieceTokenizer, ManyThreadsEncodeWithOneTokenizer) {
  const auto tokenizer = tokenizer_from_gguf(small_sentencepiece());
  const Ids expected = encode(*tokenizer, "the hello ab");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) ASSERT_EQ(encode(*tokenizer, "the hello ab"), expected);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(GgufTokenizer, RefusesWhatItDoesNotKnowByName) {
  GgufTokenizerFields fields = small_byte_level();
  fields.pre = "never-heard-of";
  expect_error(ErrorCode::kUnsupported, "small.gguf: unknown pre-tokenizer \"never-heard-of\"",
               [&] { tokenizer_from_gguf(fields); });
  fields = small_byte_level();
  fields.model = "bert";
  expect_error(ErrorCode::kUnsupported, "small.gguf: unknown tokenizer model \"bert\"",
               [&] { tokenizer_from_gguf(fields); });
  fields = small_byte_level();
  fields.add_space_prefix = true;
  expect_error(ErrorCode::kUnsupported, "add_space_prefix", [&] { tokenizer_from_gguf(fields); });
}

TEST(GgufTokenizer, ContradictionsAreRefusedByName) {
  struct Case {
    const char* message;
    GgufTokenizerFields fields;
    std::function<void(GgufTokenizerFields&)> damage;
  };
  const GgufTokenizerFields bpe = small_byte_level(), spm = small_sentencepiece();
  using Fields = GgufTokenizerFields;
  const Case cases[] = {
      {"tokens is missing or empty", bpe, [](Fields& f) { f.tokens.clear(); }},
      {"merges is missing or empty", bpe, [](Fields& f) { f.merges.clear(); }},
      {"scores is missing or empty", spm, [](Fields& f) { f.scores.clear(); }},
      {"scores has 276 entries, expected 277", spm, [](Fields& f) { f.scores.pop_back(); }},
      {"scores[5] is not a number", spm, [](Fields& f) { f.scores[5] = std::numeric_limits<float>::quiet_NaN(); }},
      {"token_type has 1 entries, expected 266", bpe, [](Fields& f) { f.token_types = {1}; }},
      {"token_type[3] is 77, expected 0 to 6", bpe, [](Fields& f) { f.token_types[3] = 77; }},
      {"tokens[3] is a byte token", bpe, [](Fields& f) { f.token_types[3] = 6; }},
      {"tokens[7] is not valid UTF-8", bpe, [](Fields& f) { f.tokens[7] = "cut \xC3"; }},
      {"is there twice, with ids 7 and 8", bpe, [](Fields& f) { f.tokens[8] = f.tokens[7]; }},
      {"merges[2] is \"Ġthe\", expected two pieces", bpe, [](Fields& f) { f.merges[2] = "Ġthe"; }},
      {"merges[2] is \"q x\", but \"qx\" is no token", bpe, [](Fields& f) { f.merges[2] = "q x"; }},
      {"merges[2] is \"qq x\", but \"qq\" is no token", bpe, [](Fields& f) { f.merges[2] = "qq x"; }},
      {"bos_token_id is 266, expected 0 to 265", bpe, [](Fields& f) { f.bos = 266; }},
      {"eos_token_id is -2, expected 0 to 265", bpe, [](Fields& f) { f.eos = -2; }},
      {"unknown_token_id is 1000000000", spm, [](Fields& f) { f.unk = 1'000'000'000; }},
      {"padding_token_id is 277", spm, [](Fields& f) { f.pad = 277; }},
      {"add_eos_token is true", bpe,
       [](Fields& f) {
         f.eos.reset();
         f.add_eos = true;
       }},
  };
  for (const Case& c : cases) {
    GgufTokenizerFields fields = c.fields;
    c.damage(fields);
    expect_error(ErrorCode::kBadFile, c.message, [&] { tokenizer_from_gguf(fields); });
    expect_error(ErrorCode::kBadFile, "small.gguf: ", [&] { tokenizer_from_gguf(fields); });
  }
  GgufTokenizerFields fields = spm;
  fields.tokens.back() = std::string(5000, 'x');
  expect_error(ErrorCode::kUnsupported, "has 5000 bytes", [&] { tokenizer_from_gguf(fields); });
}

TEST(GgufTokenizer, EmptyPiecesAreNoTokens) {
  GgufTokenizerFields fields = small_sentencepiece();
  fields.tokens[100] = "";
  fields.token_types[100] = 4;
  fields.tokens[101] = "";
  fields.token_types[101] = 1;
  const auto tokenizer = tokenizer_from_gguf(fields);
  EXPECT_EQ(pieces(*tokenizer, "the", ParseSpecial::kYes), "▁the");
  EXPECT_EQ(tokenizer->token_bytes(100), "");
}

}  // namespace
}  // namespace witan
