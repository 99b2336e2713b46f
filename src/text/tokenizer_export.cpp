#include "text/tokenizer_export.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "text/pre_tokenizer_table.h"

namespace witan {
namespace {

using nlohmann::json;

int32_t type_of(TokenKind kind) {
  switch (kind) {
    case TokenKind::kNormal:
      return 1;
    case TokenKind::kUnknown:
      return 2;
    case TokenKind::kControl:
      return 3;
    case TokenKind::kUserDefined:
      return 4;
    case TokenKind::kUnused:
      return 5;
    case TokenKind::kByte:
      return 6;
  }
  return 1;
}

void set_tokens(const Tokenizer& tokenizer, int64_t vocab_size, GgufTokenizerFields& fields) {
  if (tokenizer.vocab_size() > vocab_size) {
    fail(ErrorCode::kBadFile, "{}: has {} tokens, the model {}", fields.source, tokenizer.vocab_size(), vocab_size);
  }
  for (TokenId id = 0; id < vocab_size; ++id) {
    const bool known = id < tokenizer.vocab_size() && !tokenizer.token_piece(id).empty();
    fields.tokens.push_back(known ? tokenizer.token_piece(id) : fmt::format("[PAD{}]", id));
    fields.token_types.push_back(type_of(known ? tokenizer.token_kind(id) : TokenKind::kUnused));
  }
}

// The patterns of the pre-tokenizer, one for each step, as pre_tokenizer_table.h has them.
std::vector<std::string> patterns_of(const json& step) {
  if (step.is_null()) return {};
  const std::string type = step.value("type", "");
  if (type == "Sequence") {
    std::vector<std::string> all;
    for (const json& part : step["pretokenizers"]) {
      for (std::string& pattern : patterns_of(part)) all.push_back(std::move(pattern));
    }
    return all;
  }
  if (type == "ByteLevel" && step.value("use_regex", true)) return {std::string(kGpt2Pattern)};
  if (type == "Digits") return {step.value("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)"};
  if (type == "Split") {
    const json& pattern = step["pattern"];
    return {pattern.contains("Regex") ? pattern["Regex"].get<std::string>() : pattern["String"].get<std::string>()};
  }
  return {};
}

std::string pre_tokenizer_name(const json& document, const std::string& source) {
  const std::vector<std::string> patterns = patterns_of(document.value("pre_tokenizer", json()));
  const bool ignore_merges = document["model"].value("ignore_merges", false);
  for (const PreTokenizerRow& row : pre_tokenizer_table()) {
    if ((row.ignore_merges == IgnoreMerges::kYes) == ignore_merges && std::ranges::equal(row.patterns, patterns)) {
      return std::string(row.names.front());
    }
  }
  fail(ErrorCode::kUnsupported, "{}: pre_tokenizer: none that GGUF files have a name for", source);
}

std::pair<std::string, std::string> parts_of(const json& merge) {
  if (merge.is_array()) return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  const auto text = merge.get<std::string>();
  const size_t space = text.find(' ', 1);
  return {text.substr(0, space), text.substr(space + 1)};
}

// The score of a piece is how early it is made: minus the rank of its first merge.
std::vector<float> scores_from_merges(const Tokenizer& tokenizer, const json& merges, size_t num_tokens) {
  constexpr float kNotMade = -1e6f;
  std::vector<float> scores(num_tokens, 0.0f);
  for (size_t id = 0; id < num_tokens && std::cmp_less(id, tokenizer.vocab_size()); ++id) {
    if (tokenizer.token_kind(static_cast<TokenId>(id)) == TokenKind::kNormal) scores[id] = kNotMade;
  }
  float rank = 0;
  for (const json& merge : merges) {
    const auto [left, right] = parts_of(merge);
    const std::optional<TokenId> made = tokenizer.find_token(left + right);
    if (made && scores[static_cast<size_t>(*made)] == kNotMade) scores[static_cast<size_t>(*made)] = -rank;
    ++rank;
  }
  return scores;
}

// Whether the piece that begins a text gets a space before it.
bool prefixes_space(const Tokenizer& tokenizer) {
  const std::vector<TokenId> tokens = tokenizer.encode("a", AddSpecial::kNo, ParseSpecial::kNo);
  return !tokens.empty() && tokenizer.token_piece(tokens.front()).starts_with("\u2581");
}

std::optional<int64_t> named_token(const json& config, const char* key, const Tokenizer& tokenizer) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return std::nullopt;
  const json& name = found->is_object() ? (*found)["content"] : *found;
  const std::optional<TokenId> id = name.is_string() ? tokenizer.find_token(name.get<std::string>()) : std::nullopt;
  return id ? std::optional<int64_t>(*id) : std::nullopt;
}

}  // namespace

GgufTokenizerFields gguf_fields_from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                                          int64_t vocab_size, const std::string& source) {
  // Whatever this accepts has the members that are read below.
  const std::unique_ptr<Tokenizer> tokenizer = tokenizer_from_json(tokenizer_json, tokenizer_config_json, source);
  if (tokenizer->description() == "unigram") {
    fail(ErrorCode::kUnsupported, "{}: a unigram tokenizer, which cannot be written into a GGUF file", source);
  }
  const json document = json::parse(tokenizer_json);
  const json config = tokenizer_config_json.empty() ? json::object() : json::parse(tokenizer_config_json);
  GgufTokenizerFields fields;
  fields.source = source;
  set_tokens(*tokenizer, vocab_size, fields);
  const json& model = document["model"];
  if (tokenizer->description().starts_with("bpe")) {
    fields.model = "gpt2";
    fields.pre = pre_tokenizer_name(document, source);
    for (const json& merge : model["merges"]) {
      const auto [left, right] = parts_of(merge);
      fields.merges.push_back(fmt::format("{} {}", left, right));
    }
  } else {
    fields.model = "llama";
    fields.pre = "default";
    fields.scores = scores_from_merges(*tokenizer, model["merges"], fields.tokens.size());
    fields.add_space_prefix = prefixes_space(*tokenizer);
  }
  fields.bos = named_token(config, "bos_token", *tokenizer);
  fields.eos = named_token(config, "eos_token", *tokenizer);
  fields.unk = named_token(model, "unk_token", *tokenizer);
  if (fields.unk && fields.model == "llama") fields.token_types[static_cast<size_t>(*fields.unk)] = 2;
  fields.pad = named_token(config, "pad_token", *tokenizer);
  const std::vector<TokenId> frame = tokenizer->encode("", AddSpecial::kYes, ParseSpecial::kNo);
  const auto adds = [&](const std::optional<int64_t>& id) {
    return id && std::ranges::find(frame, *id) != frame.end();
  };
  if (!fields.bos && !frame.empty()) fields.bos = frame.front();
  fields.add_bos = adds(fields.bos);
  fields.add_eos = adds(fields.eos);
  return fields;
}

}  // namespace witan
