#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <tuple>
#include <unordered_map>

#include "support/expect_error.h"
#include "support/gguf_vocab.h"
#include "text/json_vocabularies.h"
#include "text/tokenizer_factory.h"
#include "text/vocabularies.h"

namespace witan {
namespace {

using nlohmann::json;
using test::byte_level_json;
using test::byte_level_step;
using test::expect_error;
using test::sentencepiece_json;
using test::sequence;
using test::split_step;
using Ids = std::vector<TokenId>;

std::unique_ptr<Tokenizer> make(const json& document, const json& config = nullptr) {
  return tokenizer_from_json(document.dump(), config.is_null() ? "" : config.dump(), "tokenizer.json");
}

std::string pieces(const Tokenizer& tokenizer, std::string_view text, ParseSpecial parse = ParseSpecial::kYes) {
  std::string shown;
  for (const TokenId id : tokenizer.encode(text, AddSpecial::kNo, parse)) {
    if (!shown.empty()) shown += '|';
    shown += tokenizer.token_piece(id);
  }
  return shown;
}

struct Golden {
  const char* name;
  std::function<json(const GgufTokenizerFields&)> build;
};

void PrintTo(const Golden& golden, std::ostream* out) { *out << golden.name; }

class GoldenJson : public testing::TestWithParam<Golden> {};

TEST_P(GoldenJson, GivesTheIdsOfEveryVectorAndTheTextBack) {
  WITAN_GOLDEN_OR_SKIP(path, std::string("tokenizers/ggml-vocab-") + GetParam().name + ".gguf");
  const auto tokenizer = make(GetParam().build(test::GgufVocabReader::read(path)));
  for (const test::TokenizerVector& vector : test::read_tokenizer_vectors(path)) {
    const Ids ids = tokenizer->encode(vector.text, AddSpecial::kNo, ParseSpecial::kNo);
    EXPECT_EQ(ids, vector.ids) << vector.text;
    EXPECT_EQ(decode(*tokenizer, ids), vector.text);
  }
}

json with_steps(const GgufTokenizerFields& fields, std::vector<json> steps, bool use_regex) {
  json document = byte_level_json(fields);
  steps.push_back(byte_level_step(use_regex));
  document["pre_tokenizer"] = sequence("pretokenizers", steps);
  return document;
}

const Golden kGoldens[] = {
    {"gpt-2", byte_level_json},
    {"llama-bpe",
     [](const GgufTokenizerFields& f) {
       json document = with_steps(f,
                                  {split_step(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
                                              R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)")},
                                  false);
       document["model"]["ignore_merges"] = true;
       return document;
     }},
    {"qwen2",
     [](const GgufTokenizerFields& f) {
       json document = with_steps(f,
                                  {split_step(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
                                              R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)")},
                                  false);
       document["normalizer"] = {{"type", "NFC"}};
       return document;
     }},
    {"deepseek-coder",
     [](const GgufTokenizerFields& f) {
       return with_steps(f,
                         {split_step("[\r\n]"),
                          split_step(R"(\s?\p{L}+)"),
                          split_step(R"(\s?\p{P}+)"),
                          split_step("[一-龥ࠀ-一가-퟿]+"),
                          {{"type", "Digits"}, {"individual_digits", true}}},
                         false);
     }},
    {"starcoder",
     [](const GgufTokenizerFields& f) {
       return with_steps(f, {{{"type", "Digits"}, {"individual_digits", true}}}, true);
     }},
    {"llama-spm", sentencepiece_json},
    {"phi-3", sentencepiece_json},
};

INSTANTIATE_TEST_SUITE_P(Vocabularies, GoldenJson, testing::ValuesIn(kGoldens), [](const auto& tested) {
  std::string name = tested.param.name;
  std::erase(name, '-');
  return name;
});

TEST(JsonTokenizer, AgreesWithTheGgufFormOnSmallVocabularies) {
  const auto bpe = make(byte_level_json(test::small_byte_level()));
  const auto bpe_gguf = tokenizer_from_gguf(test::small_byte_level());
  const auto spm = make(sentencepiece_json(test::small_sentencepiece()));
  const auto spm_gguf = tokenizer_from_gguf(test::small_sentencepiece());
  EXPECT_EQ(bpe->description(), "bpe");
  EXPECT_EQ(spm->description(), "spm");
  EXPECT_TRUE(spm->strips_leading_space());
  for (const char* text : {"the hello the", " thell  ä", "o<|tool|>o<|end|>", "abcab </s>the", "\xFFz\xE2\x96", ""}) {
    for (const ParseSpecial parse : {ParseSpecial::kNo, ParseSpecial::kYes}) {
      EXPECT_EQ(bpe->encode(text, AddSpecial::kNo, parse), bpe_gguf->encode(text, AddSpecial::kNo, parse)) << text;
      EXPECT_EQ(spm->encode(text, AddSpecial::kNo, parse), spm_gguf->encode(text, AddSpecial::kNo, parse)) << text;
    }
  }
  for (TokenId id = 0; id < bpe->vocab_size(); ++id) {
    EXPECT_EQ(bpe->token_bytes(id), bpe_gguf->token_bytes(id));
    EXPECT_EQ(bpe->token_kind(id), bpe_gguf->token_kind(id));
  }
  for (TokenId id = 1; id < spm->vocab_size(); ++id) EXPECT_EQ(spm->token_bytes(id), spm_gguf->token_bytes(id));
}

TEST(JsonTokenizer, AddedTokenFlagsAreHonoured) {
  json document = byte_level_json(test::small_byte_level());
  const auto add = [&](int id, const char* content, const char* flag) {
    json token = {{"id", id}, {"content", content}, {"special", false}, {"normalized", false}};
    token[flag] = true;
    document["added_tokens"].push_back(token);
  };
  add(266, "<l>", "lstrip");
  add(267, "<r>", "rstrip");
  add(268, "toe", "single_word");
  add(269, "<S>", "special");
  const auto tokenizer = make(document);
  EXPECT_EQ(pieces(*tokenizer, "o  <l> o"), "o|<l>|Ġ|o");
  EXPECT_EQ(pieces(*tokenizer, "o <r>  o"), "o|Ġ|<r>|o");
  EXPECT_EQ(pieces(*tokenizer, "toe toes"), "toe|Ġ|t|o|e|s");
  EXPECT_EQ(pieces(*tokenizer, "<S>", ParseSpecial::kYes), "<S>");
  EXPECT_EQ(pieces(*tokenizer, "<S>", ParseSpecial::kNo), "<|S|>");
  EXPECT_EQ(tokenizer->vocab_size(), 270);
}

TEST(JsonTokenizer, NormalizedAddedTokensAreFoundInNormalizedText) {
  json document = byte_level_json(test::small_byte_level());
  document["normalizer"] = {{"type", "Lowercase"}};
  document["added_tokens"].push_back({{"id", 266}, {"content", "Hi"}, {"special", false}, {"normalized", true}});
  document["added_tokens"].push_back({{"id", 267}, {"content", "Yo"}, {"special", false}, {"normalized", false}});
  const auto tokenizer = make(document);
  EXPECT_EQ(pieces(*tokenizer, "oHIo"), "o|Hi|o");
  EXPECT_EQ(pieces(*tokenizer, "oYOo"), "o|y|o|o");
  EXPECT_EQ(pieces(*tokenizer, "oYoo"), "o|Yo|o");
}

TEST(JsonTokenizer, ComponentsCutTheTextAsDescribed) {
  struct Case {
    json pre_tokenizer;
    const char* text;
    const char* pieces;  // as merges allow: "the" and "hello" merge within a cut only
  };
  const auto string_split = [](const char* at, const char* behavior, bool invert) {
    return json{{"type", "Split"}, {"pattern", {{"String", at}}}, {"behavior", behavior}, {"invert", invert}};
  };
  const json bytes = byte_level_step(false);
  const Case cases[] = {
      {byte_level_step(true), "the the", "the|Ġthe"},
      {{{"type", "ByteLevel"}}, "the", "Ġthe"},
      {sequence("pretokenizers", {string_split("e", "Isolated", false), bytes}), "the", "th|e"},
      {sequence("pretokenizers", {string_split("h", "MergedWithNext", false), bytes}), "the", "t|h|e"},
      {sequence("pretokenizers", {string_split(".", "Removed", false), bytes}), "t.he.the", "t|h|e|the"},
      {sequence("pretokenizers", {{{"type", "Punctuation"}}, bytes}), "the,,the", "the|,|,|the"},
      {sequence("pretokenizers", {{{"type", "Whitespace"}}, bytes}), "the the!", "the|the|!"},
      {sequence("pretokenizers", {{{"type", "WhitespaceSplit"}}, bytes}), "the the", "the|the"},
      {sequence("pretokenizers", {sequence("pretokenizers", {{{"type", "Digits"}}}), bytes}), "the12", "the|1|2"},
  };
  for (const Case& c : cases) {
    json document = byte_level_json(test::small_byte_level());
    document["pre_tokenizer"] = c.pre_tokenizer;
    EXPECT_EQ(pieces(*make(document), c.text), c.pieces) << c.pre_tokenizer;
  }
}

TEST(JsonTokenizer, MetaspaceCutsAndDecodes) {
  json document = sentencepiece_json(test::small_sentencepiece());
  document["normalizer"] = nullptr;
  const json metaspace = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "first"}, {"split", false}};
  document["pre_tokenizer"] = metaspace;
  document["decoder"] = metaspace;
  const auto tokenizer = make(document);
  EXPECT_EQ(pieces(*tokenizer, "the the</s>the"), "▁the|▁the|</s>|t|he");
  EXPECT_TRUE(tokenizer->strips_leading_space());
  EXPECT_EQ(tokenizer->token_bytes(*tokenizer->find_token("▁the")), " the");
}

TEST(JsonTokenizer, TemplateAndConfigDecideOnBosAndEos) {
  const json spm = sentencepiece_json(test::small_sentencepiece());
  const auto framed = [&](const json& config) {
    return make(spm, config)->encode("the", AddSpecial::kYes, ParseSpecial::kNo);
  };
  const TokenId the = *make(spm)->find_token("▁the");
  const json names = {{"bos_token", "<s>"}, {"eos_token", {{"content", "</s>"}, {"special", true}}}};
  const auto with = [&](const json& more) {
    json config = names;
    config.update(more);
    return config;
  };
  EXPECT_EQ(framed(nullptr), (Ids{1, the}));
  EXPECT_EQ(framed(names), (Ids{1, the}));
  EXPECT_EQ(framed(with({{"add_bos_token", true}})), (Ids{1, the}));
  EXPECT_EQ(framed(with({{"add_bos_token", false}})), (Ids{the}));
  EXPECT_EQ(framed(with({{"add_eos_token", true}})), (Ids{1, the, 2}));
  EXPECT_EQ(make(spm, names)->bos(), 1);
  EXPECT_EQ(make(spm, names)->eos(), 2);
  EXPECT_EQ(make(spm, {{"bos_token", nullptr}})->bos(), std::nullopt);
  EXPECT_EQ(make(spm)->bos(), std::nullopt);
  expect_error(ErrorCode::kBadFile, "bos_token should be a token of tokenizer.json, found \"<t>\"", [&] {
    make(spm, {{"bos_token", "<t>"}});
  });
  expect_error(ErrorCode::kBadFile, "add_bos_token", [&] { make(spm, {{"add_bos_token", true}}); });
  expect_error(ErrorCode::kBadFile, "bos_token should be a string, found 7", [&] { make(spm, {{"bos_token", 7}}); });
}

TEST(JsonTokenizer, MergesMayBeStringsOrPairs) {
  json document = byte_level_json(test::small_byte_level());
  for (json& merge : document["model"]["merges"]) {
    const std::string text = merge;
    const size_t space = text.find(' ');
    merge = {text.substr(0, space), text.substr(space + 1)};
  }
  EXPECT_EQ(pieces(*make(document), "the hello"), "the|Ġ|hello");
}

TEST(JsonTokenizer, RefusesWhatItDoesNotHaveByName) {
  struct Case {
    const char* message;
    json patch;
  };
  const Case cases[] = {
      {"model.type: unsupported model \"WordPiece\"", {{"model", {{"type", "WordPiece"}}}}},
      {"unsupported option \"dropout\"", {{"model", {{"dropout", 0.1}}}}},
      {"continuing_subword_prefix: unsupported affix \"##\"", {{"model", {{"continuing_subword_prefix", "##"}}}}},
      {"normalizer: unsupported normalizer \"BertNormalizer\"", {{"normalizer", {{"type", "BertNormalizer"}}}}},
      {"pre_tokenizer: unsupported pre-tokenizer \"BertPreTokenizer\"",
       {{"pre_tokenizer", {{"type", "BertPreTokenizer"}}}}},
      {"pretokenizers[1]: unsupported pre-tokenizer behind ByteLevel \"Digits\"",
       {{"pre_tokenizer", sequence("pretokenizers", {byte_level_step(true), {{"type", "Digits"}}})}}},
      {"class intersection", {{"pre_tokenizer", split_step("[a&&b]")}}},
      {"decoder: unsupported decoder \"CTC\"", {{"decoder", {{"type", "CTC"}}}}},
      {"post_processor: unsupported post-processor \"BertProcessing\"",
       {{"post_processor", {{"type", "BertProcessing"}}}}},
      {"more than 64 steps", {{"normalizer", sequence("normalizers", std::vector<json>(100, {{"type", "NFC"}}))}}},
      {"prepend has 1000 bytes", {{"normalizer", {{"type", "Prepend"}, {"prepend", std::string(1000, 'x')}}}}},
  };
  for (const Case& c : cases) {
    json document = byte_level_json(test::small_byte_level());
    document.merge_patch(c.patch);
    expect_error(ErrorCode::kUnsupported, c.message, [&] { make(document); });
    expect_error(ErrorCode::kUnsupported, "tokenizer.json: ", [&] { make(document); });
  }
}

TEST(JsonTokenizer, ContradictionsAreRefusedByName) {
  struct Case {
    const char* message;
    std::function<void(json&)> damage;
  };
  const Case cases[] = {
      {"model.vocab should be an object with at least one token",
       [](json& d) { d["model"]["vocab"] = json::object(); }},
      {"model.vocab should be an object, found array", [](json& d) { d["model"]["vocab"] = json::array(); }},
      {"model.vocab should be an object, found nothing", [](json& d) { d["model"].erase("vocab"); }},
      {"model.merges should be an array", [](json& d) { d["model"]["merges"] = 3; }},
      {"model.merges[0] should be two pieces", [](json& d) { d["model"]["merges"][0] = "a b c"; }},
      {"model.merges[0] should be two pieces", [](json& d) { d["model"]["merges"][0] = {"a"}; }},
      {"model.merges[0] needs \"zz\", which is no token",
       [](json& d) {
         d["model"]["merges"][0] = {"z", "z"};
       }},
      {"token \"q\" has id 1000000000", [](json& d) { d["model"]["vocab"]["q"] = 1'000'000'000; }},
      {"vocab.q should be a number from 0 to 2^31 - 1, found 4294967296",
       [](json& d) { d["model"]["vocab"]["q"] = 4294967296; }},
      {"vocab.q should be a number", [](json& d) { d["model"]["vocab"]["q"] = -1; }},
      {"have the same id 5", [](json& d) { d["model"]["vocab"]["q"] = 5; }},
      {"gives \"q\" the id 7, but it has 113 already",
       [](json& d) {
         d["added_tokens"].push_back({{"id", 7}, {"content", "q"}});
       }},
      {"have the same id 7",
       [](json& d) {
         d["added_tokens"].push_back({{"id", 7}, {"content", "qq"}});
       }},
      {"added_tokens should be an array", [](json& d) { d["added_tokens"] = "none"; }},
      {"added_tokens[0].content should be a string, found 3", [](json& d) { d["added_tokens"][0]["content"] = 3; }},
      {"added_tokens[0].special should be true or false", [](json& d) { d["added_tokens"][0]["special"] = "yes"; }},
      {"pre_tokenizer.type should be a string, found nothing", [](json& d) { d["pre_tokenizer"] = json::object(); }},
      {"pattern should be an object with \"String\" or \"Regex\"",
       [](json& d) {
         d["pre_tokenizer"] = {{"type", "Split"}, {"pattern", json::object()}};
       }},
      {"pattern.Regex: regular expression \"(\"", [](json& d) { d["pre_tokenizer"] = split_step("("); }},
      {"pattern.String should be a string that is not empty",
       [](json& d) {
         d["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}};
       }},
      {"single should be a template with sequence A",
       [](json& d) {
         d["post_processor"] = {{"type", "TemplateProcessing"}, {"single", json::array()}};
       }},
      {"should be an id below 266",
       [](json& d) {
         d["post_processor"] = {{"type", "TemplateProcessing"},
                                {"single", {{{"SpecialToken", {{"id", "x"}}}}, {{"Sequence", {{"id", "A"}}}}}},
                                {"special_tokens", {{"x", {{"ids", {266}}}}}}};
       }},
  };
  for (const Case& c : cases) {
    json document = byte_level_json(test::small_byte_level());
    c.damage(document);
    expect_error(ErrorCode::kBadFile, c.message, [&] { make(document); });
    expect_error(ErrorCode::kBadFile, "tokenizer.json: ", [&] { make(document); });
  }
}

TEST(JsonTokenizer, TextThatIsNoTokenizerIsRefused) {
  const std::string deep(1'000'000, '[');
  for (const std::string& text : {std::string(""), std::string("{"), std::string("[]"), std::string("7"),
                                  std::string("{}"), std::string("{\"model\": null}"), std::string("\xFF\xFE"), deep,
                                  deep + std::string(1'000'000, ']'), std::string("{\"model\": 1e999}")}) {
    expect_error(ErrorCode::kBadFile, "tokenizer.json: ", [&] { tokenizer_from_json(text, "", "tokenizer.json"); });
  }
  const std::string good = byte_level_json(test::small_byte_level()).dump();
  expect_error(ErrorCode::kBadFile, "tokenizer_config.json", [&] { tokenizer_from_json(good, "{", "tokenizer.json"); });
}

TEST(TokenizerJson, MessagesStayShortWhateverTheFileHolds) {
  const std::string long_text(1 << 20, 'x');
  const std::string texts[] = {
      long_text,
      "{\"" + long_text,
      R"({"model": {"type": ")" + long_text + R"("}})",
      R"({"model": {"type": "BPE", "vocab": {")" + long_text + R"(": "a"}, "merges": []}})",
      R"({"model": {"type": "BPE", "vocab": ")" + long_text + R"(", "merges": []}})",
      R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "normalizer": {"type": ")" + long_text + R"("}})",
      R"({"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}})",
  };
  for (const std::string& text : texts) {
    try {
      tokenizer_from_json(text, "", "tokenizer.json");
      ADD_FAILURE() << "no error for " << text.substr(0, 60);
    } catch (const Error& error) {
      EXPECT_LT(std::string_view(error.what()).size(), 400u) << text.substr(0, 60);
      EXPECT_THAT(error.what(), testing::HasSubstr("tokenizer.json"));
    }
  }
}

}  // namespace
}  // namespace witan
