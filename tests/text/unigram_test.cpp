#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/goldens.h"
#include "text/charsmap.h"
#include "text/tokenizer_factory.h"
#include "text/unigram_model.h"

namespace witan {
namespace {

using nlohmann::json;
using test::expect_error;
using testing::ElementsAre;

std::string from_base64(const std::string& text) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t buffer = 0;
  for (size_t i = 0; i < text.size() && text[i] != '='; ++i) {
    buffer = buffer << 6 | static_cast<uint32_t>(kDigits.find(text[i]));
    if (i % 4 > 0) bytes += static_cast<char>(buffer >> (6 - 2 * (i % 4)) & 0xFF);
  }
  return bytes;
}

const json& models() {
  static const json kModels = json::parse(test::read_file(WITAN_TEST_DATA "/text/unigram.json"));
  return kModels;
}

GgufTokenizerFields gguf_fields(const json& model) {
  GgufTokenizerFields fields;
  fields.model = "t5";
  fields.tokens = model["pieces"].get<std::vector<std::string>>();
  fields.scores = model["scores"].get<std::vector<float>>();
  fields.token_types = model["types"].get<std::vector<int32_t>>();
  fields.bos = 1;
  fields.eos = 2;
  fields.unk = 0;
  fields.add_eos = false;
  fields.add_space_prefix = true;
  fields.remove_extra_whitespaces = true;
  fields.precompiled_charsmap = from_base64(model["charsmap"]);
  fields.source = "unigram.gguf";
  return fields;
}

// The same model as a tokenizer.json, in the manner of transformers' converter.
json tokenizer_json(const json& model, bool byte_fallback) {
  json vocab = json::array();
  for (size_t i = 0; i < model["pieces"].size(); ++i) vocab.push_back({model["pieces"][i], model["scores"][i]});
  const json spaces = {{"type", "Replace"}, {"pattern", {{"Regex", " {2,}"}}}, {"content", " "}};
  const json normalizer = {{"type", "Sequence"},
                           {"normalizers",
                            {{{"type", "Precompiled"}, {"precompiled_charsmap", model["charsmap"]}},
                             {{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}},
                             spaces}}};
  const json metaspace = {
      {"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "always"}, {"split", true}};
  return {{"normalizer", normalizer},
          {"pre_tokenizer", metaspace},
          {"decoder", metaspace},
          {"model", {{"type", "Unigram"}, {"unk_id", 0}, {"vocab", vocab}, {"byte_fallback", byte_fallback}}}};
}

TEST(UnigramTokenizer, GgufFileAgreesWithSentencePiece) {
  for (const auto& [name, model] : models().items()) {
    const auto tokenizer = tokenizer_from_gguf(gguf_fields(model));
    EXPECT_EQ(tokenizer->description(), "unigram");
    for (const json& item : model["cases"]) {
      EXPECT_EQ(tokenizer->encode(item["text"].get<std::string>(), AddSpecial::kNo, ParseSpecial::kNo),
                item["ids"].get<std::vector<TokenId>>())
          << name << ": " << item["text"];
    }
  }
}

TEST(UnigramTokenizer, TokenizerJsonAgreesWithSentencePiece) {
  for (const auto& [name, model] : models().items()) {
    const auto tokenizer = tokenizer_from_json(tokenizer_json(model, name == "byte_fallback").dump(), "", "t.json");
    for (const json& item : model["cases"]) {
      // Hugging Face's Metaspace puts no mark before one that is there already; SentencePiece does.
      if (item["text"].get<std::string>().starts_with("\u2581")) continue;
      EXPECT_EQ(tokenizer->encode(item["text"].get<std::string>(), AddSpecial::kNo, ParseSpecial::kNo),
                item["ids"].get<std::vector<TokenId>>())
          << name << ": " << item["text"];
    }
  }
}

TEST(UnigramTokenizer, DecodesWhatItEncoded) {
  const auto tokenizer = tokenizer_from_gguf(gguf_fields(models()["byte_fallback"]));
  const std::string text = "the lighthouse keeper \u4e2d\u6587 \U0001f999";
  EXPECT_EQ(decode(*tokenizer, tokenizer->encode(text, AddSpecial::kYes, ParseSpecial::kNo)), text);
}

TEST(UnigramTokenizer, AddsEosAsT5Does) {
  GgufTokenizerFields fields = gguf_fields(models()["unknown"]);
  fields.add_eos.reset();
  const auto ids = tokenizer_from_gguf(std::move(fields))->encode("the", AddSpecial::kYes, ParseSpecial::kNo);
  ASSERT_FALSE(ids.empty());
  EXPECT_EQ(ids.back(), 2);
  EXPECT_NE(ids.front(), 1);
}

TEST(UnigramTokenizer, NamesWhatIsWrongInAGgufFile) {
  const auto refuse = [](ErrorCode code, const std::string& part, auto change) {
    GgufTokenizerFields fields = gguf_fields(models()["unknown"]);
    change(fields);
    expect_error(code, part, [&] { tokenizer_from_gguf(std::move(fields)); });
  };
  refuse(ErrorCode::kBadFile, "scores is missing", [](auto& f) { f.scores.clear(); });
  refuse(ErrorCode::kBadFile, "scores has 1 entries", [](auto& f) { f.scores.resize(1); });
  refuse(ErrorCode::kBadFile, "precompiled_charsmap of 2 bytes", [](auto& f) { f.precompiled_charsmap = "ab"; });
  refuse(ErrorCode::kUnsupported, "the limit for tokenizer model t5",
         [](auto& f) { f.tokens[9] = std::string(600, 'a'); });
  refuse(ErrorCode::kUnsupported, "expected gpt2, llama or t5", [](auto& f) { f.model = "rwkv"; });
}

TEST(UnigramTokenizer, NamesWhatIsWrongInATokenizerJson) {
  const auto refuse = [](ErrorCode code, const std::string& part, auto change) {
    json file = tokenizer_json(models()["unknown"], false);
    change(file);
    expect_error(code, part, [&] { tokenizer_from_json(file.dump(), "", "t.json"); });
  };
  refuse(ErrorCode::kBadFile, "model.vocab should be an array", [](json& f) { f["model"]["vocab"] = 3; });
  refuse(ErrorCode::kBadFile, "model.vocab should be an array with",
         [](json& f) { f["model"]["vocab"] = json::array(); });
  refuse(ErrorCode::kBadFile, "model.vocab[1] should be [piece, score]", [](json& f) { f["model"]["vocab"][1] = "x"; });
  refuse(ErrorCode::kBadFile, "unk_id should be an id below", [](json& f) { f["model"]["unk_id"] = 99999; });
  refuse(ErrorCode::kBadFile, "should be base64",
         [](json& f) { f["normalizer"]["normalizers"][0]["precompiled_charsmap"] = "a!"; });
  refuse(ErrorCode::kBadFile, "precompiled_charsmap of 1 bytes",
         [](json& f) { f["normalizer"]["normalizers"][0]["precompiled_charsmap"] = "YQ=="; });
}

TEST(UnigramModel, PicksTheBestSumAndTheFirstOfEquals) {
  UnigramModel model;
  model.add("a", 0, -3.0);
  model.add("b", 1, -3.0);
  model.add("ab", 2, -5.0);
  model.add("abb", 3, -9.0);
  model.add("bb", 4, -6.0);
  std::array<TokenId, 256> no_bytes;
  no_bytes.fill(-1);
  const auto encode = [&](std::string_view text, std::optional<TokenId> unknown = 7) {
    std::vector<TokenId> ids;
    model.encode(text, no_bytes, unknown, ids);
    return ids;
  };
  EXPECT_THAT(encode("ab"), ElementsAre(2));          // -5 > -6
  EXPECT_THAT(encode("abb"), ElementsAre(2, 1));      // -8 > -9
  EXPECT_THAT(encode("bb"), ElementsAre(4));          // -6 either way: the longer one begins earlier
  EXPECT_THAT(encode("axyb"), ElementsAre(0, 7, 1));  // unknown ones in a row are one
  EXPECT_THAT(encode("xax"), ElementsAre(7, 0, 7));
  EXPECT_THAT(encode("axb", std::nullopt), ElementsAre(0, 1));
  EXPECT_THAT(encode(""), ElementsAre());
}

TEST(Charsmap, AnEmptyOneChangesNothing) {
  EXPECT_EQ(Charsmap("", "x").normalize("a\u0301\ufb01"), "a\u0301\ufb01");
  EXPECT_EQ(Charsmap(std::string(4, '\0'), "x").normalize("abc"), "abc");
}

TEST(Charsmap, BrokenTriesAreRefusedOrHarmless) {
  const std::string good = from_base64(models()["unknown"]["charsmap"]);
  expect_error(ErrorCode::kBadFile, "says that its trie has", [&] { Charsmap(good.substr(0, 20), "x"); });
  expect_error(ErrorCode::kBadFile, "ends inside a replacement", [&] { Charsmap(good + "a", "x"); });
  for (size_t i = 4; i < good.size(); i += 7) {
    std::string broken = good;
    broken[i] = static_cast<char>(broken[i] ^ 0x55);
    if (broken.back() != '\0') continue;
    EXPECT_LT(Charsmap(broken, "x").normalize("a\u0301e\u0301\u0323 \ufb01\uff21\u2460").size(), 10000u);
  }
}

}  // namespace
}  // namespace witan
