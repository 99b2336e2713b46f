#include <nlohmann/json.hpp>

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "text/json_text.h"
#include "text/subword_tokenizer.h"
#include "text/tokenizer_factory.h"
#include "text/tokenizer_json_parts.h"
#include "text/unicode.h"

namespace witan {

namespace {

// The vocabulary's "vocab" object. It has 10^5 entries, so places are spelled out only for those that are wrong.
Vocabulary parse_vocabulary(const JsonView& vocab, size_t num_added, bool byte_fallback, const std::string& source) {
  if (!vocab.json().is_object()) vocab.expected("an object");
  if (vocab.json().empty()) vocab.expected("an object with at least one token");
  Vocabulary vocabulary(vocab.json().size() + num_added);
  for (const auto& [piece, id] : vocab.json().items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX)
      JsonView(id, fmt::format("{}.{}", vocab.place(), shortened(piece))).id();
    const TokenKind kind = byte_fallback && byte_piece_value(piece) ? TokenKind::kByte : TokenKind::kNormal;
    vocabulary.set(id.get<TokenId>(), piece, kind, source);
  }
  return vocabulary;
}

// A merge is "left right" or ["left", "right"].
std::pair<std::string_view, std::string_view> parse_merge(const nlohmann::json& merge, const JsonView& merges,
                                                          size_t rank) {
  const auto wrong = [&] {
    JsonView(merge, fmt::format("{}[{}]", merges.place(), rank)).expected("two pieces, as \"a b\" or [\"a\", \"b\"]");
  };
  if (merge.is_array()) {
    if (merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) wrong();
    return {merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>()};
  }
  if (!merge.is_string()) wrong();
  const std::string_view text = merge.get_ref<const std::string&>();
  const size_t space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) wrong();
  return {text.substr(0, space), text.substr(space + 1)};
}

void add_merges(const JsonView& merges, const Vocabulary& vocabulary, MergeTable& table) {
  if (!merges.json().is_array()) merges.expected("an array");
  for (size_t rank = 0; rank < merges.json().size(); ++rank) {
    const auto [left, right] = parse_merge(merges.json()[rank], merges, rank);
    const auto find = [&, place = &merges](std::string_view piece) {
      const std::optional<TokenId> id = vocabulary.find(piece);
      if (!id) {
        fail(ErrorCode::kBadFile, "{}[{}] needs \"{}\", which is no token", place->place(), rank, piece);
      }
      return *id;
    };
    const TokenId left_id = find(left);
    const TokenId right_id = find(right);
    table.add(left_id, right_id, static_cast<int32_t>(rank), find(std::string(left).append(right)));
  }
}

void refuse_affix(const JsonView& affix) {
  if (!affix.is_null() && !affix.string().empty()) affix.unsupported("affix", affix.string());
}

void add_symbols(const Vocabulary& vocabulary, bool byte_level, BpeModel& model) {
  model.unit = byte_level ? SymbolUnit::kByte : SymbolUnit::kCharacter;
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    const std::string& piece = vocabulary.piece(id);
    if (piece.empty()) continue;
    if (vocabulary.kind(id) == TokenKind::kByte && !byte_level) model.byte_tokens[*byte_piece_value(piece)] = id;
    const Utf8Char c = next_utf8(piece, 0);
    if (c.size != piece.size()) continue;
    if (!byte_level) model.character_symbols.insert(c.code_point, static_cast<uint64_t>(id));
    const std::optional<uint8_t> byte = alphabet_to_byte(c.code_point);
    if (byte_level && byte) model.byte_tokens[*byte] = id;
  }
}

// "vocab" is [[piece, score], ...], an id being its place.
void add_unigram_model(const JsonView& json, size_t num_added, const std::string& source, TokenizerParts& parts) {
  const bool byte_fallback = json["byte_fallback"].boolean_or(false);
  const std::vector<JsonView> entries = json["vocab"].elements();
  if (entries.empty()) json["vocab"].expected("an array with at least one piece");
  parts.vocabulary = Vocabulary(entries.size() + num_added);
  UnigramModel& model = parts.unigram.emplace();
  for (size_t i = 0; i < entries.size(); ++i) {
    const nlohmann::json& entry = entries[i].json();
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number()) {
      entries[i].expected("[piece, score]");
    }
    const std::string& piece = entry[0].get_ref<const std::string&>();
    const std::optional<uint8_t> byte = byte_fallback ? byte_piece_value(piece) : std::nullopt;
    const auto id = static_cast<TokenId>(i);
    parts.vocabulary.set(id, piece, byte ? TokenKind::kByte : TokenKind::kNormal, source);
    if (byte) parts.model.byte_tokens[*byte] = id;
    if (piece.size() > UnigramModel::kMaxPieceBytes) {
      entries[i].unsupported("piece of more than", fmt::format("{} bytes", UnigramModel::kMaxPieceBytes));
    }
    if (!piece.empty()) model.add(piece, id, entry[1].get<double>());
  }
  if (json["unk_id"].is_null()) return;
  const TokenId unknown = json["unk_id"].id();
  if (unknown >= parts.vocabulary.size()) json["unk_id"].expected(fmt::format("an id below {}", entries.size()));
  parts.model.unknown = unknown;
  parts.vocabulary.set_kind(unknown, TokenKind::kUnknown);
}

void add_model(const JsonView& json, size_t num_added, bool byte_level, const std::string& source,
               TokenizerParts& parts) {
  const JsonView type = json["type"];
  if (!type.is_null() && type.string() == "Unigram") return add_unigram_model(json, num_added, source, parts);
  const bool untyped_bpe = type.is_null() && !json["merges"].is_null();  // files from before 2020
  if (!untyped_bpe && type.string() != "BPE") type.unsupported("model", type.string());
  if (!json["dropout"].is_null() && json["dropout"].json() != 0.0) json.unsupported("option", "dropout");
  refuse_affix(json["continuing_subword_prefix"]);
  refuse_affix(json["end_of_word_suffix"]);

  const bool byte_fallback = json["byte_fallback"].boolean_or(false);
  parts.vocabulary = parse_vocabulary(json["vocab"], num_added, byte_fallback, source);
  Vocabulary& vocabulary = parts.vocabulary;
  add_merges(json["merges"], vocabulary, parts.model.merges);
  add_symbols(vocabulary, byte_level, parts.model);
  parts.model.ignore_merges = json["ignore_merges"].boolean_or(false);
  parts.model.fuse_unknown = json["fuse_unk"].boolean_or(false);
  if (!json["unk_token"].is_null()) {
    parts.model.unknown = vocabulary.find(json["unk_token"].string());
    if (parts.model.unknown) vocabulary.set_kind(*parts.model.unknown, TokenKind::kUnknown);
  }
  parts.model.inspect_words(vocabulary);
}

void add_added_tokens(const JsonView& json, const std::string& source, TokenizerParts& parts) {
  std::vector<AddedToken> raw;
  std::vector<AddedToken> normalized;
  RegexWorkspace workspace(0);
  for (const JsonView& item : json.elements()) {
    const std::string& content = item["content"].string();
    if (content.empty()) continue;
    const TokenId id = item["id"].id();
    const std::optional<TokenId> known = parts.vocabulary.find(content);
    if (known && *known != id) {
      fail(ErrorCode::kBadFile, "{} gives \"{}\" the id {}, but it has {} already", item.place(), content, id, *known);
    }
    const bool special = item["special"].boolean_or(false);
    const TokenKind kind = special ? TokenKind::kControl : TokenKind::kUserDefined;
    if (known) {
      parts.vocabulary.set_kind(id, kind);
    } else {
      parts.vocabulary.set(id, content, kind, source);
    }
    AddedToken token{id, content, special ? ParseSpecial::kYes : ParseSpecial::kNo};
    if (item["lstrip"].boolean_or(false)) token.left = SpaceAround::kTaken;
    if (item["rstrip"].boolean_or(false)) token.right = SpaceAround::kTaken;
    if (item["single_word"].boolean_or(false)) token.in_word = MatchInWord::kRefused;
    if (!item["normalized"].boolean_or(!special)) {
      raw.push_back(std::move(token));
      continue;
    }
    token.content = parts.normalizer.normalize(content, FragmentPart::kFirst, workspace);
    if (!token.content.empty()) normalized.push_back(std::move(token));
  }
  parts.raw_added = AddedTokens(std::move(raw), source);
  parts.normalized_added = AddedTokens(std::move(normalized), source);
}

// "<s>", or {"content": "<s>", ...}, or null.
std::optional<TokenId> find_config_token(const JsonView& json, const Vocabulary& vocabulary) {
  if (json.is_null()) return std::nullopt;
  const JsonView name = json.json().is_object() ? json["content"] : json;
  const std::optional<TokenId> id = vocabulary.find(name.string());
  if (!id) name.expected("a token of tokenizer.json");
  return id;
}

// tokenizer_config.json. Its add_bos_token and add_eos_token, where they stand, overrule the post-processor: that is
// what the Llama and GPT-NeoX tokenizer classes do with them, and other classes write none.
void add_config(const JsonView& json, TokenizerParts& parts) {
  parts.bos = find_config_token(json["bos_token"], parts.vocabulary);
  parts.eos = find_config_token(json["eos_token"], parts.vocabulary);
  const auto apply = [&](const char* key, std::optional<TokenId> id, std::vector<TokenId>& ids, bool front) {
    if (json[key].is_null()) return;
    const bool add = json[key].boolean();
    if (add && !id) json[key].expected("false, or the token it adds named");
    if (!id) return;
    if (!add) std::erase(ids, *id);
    if (add && std::ranges::find(ids, *id) == ids.end()) ids.insert(front ? ids.begin() : ids.end(), *id);
  };
  apply("add_bos_token", parts.bos, parts.prefix, true);
  apply("add_eos_token", parts.eos, parts.suffix, false);
}

}  // namespace

std::unique_ptr<Tokenizer> tokenizer_from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                                               const std::string& source) {
  const nlohmann::json document = parse_json_object(tokenizer_json, source);
  const JsonView root(document, source + ": ");
  const nlohmann::json no_added = nlohmann::json::array();
  const JsonView added =
      root["added_tokens"].is_null() ? JsonView(no_added, source + ": added_tokens") : root["added_tokens"];
  if (!added.json().is_array()) added.expected("an array");

  TokenizerParts parts;
  parts.normalizer = parse_normalizer(root["normalizer"]);
  ParsedPreTokenizer pre_tokenizer = parse_pre_tokenizer(root["pre_tokenizer"]);
  parts.pre_tokenizer = std::move(pre_tokenizer.pre_tokenizer);
  parts.description = pre_tokenizer.byte_level ? "bpe" : "spm";
  add_model(root["model"], added.json().size(), pre_tokenizer.byte_level, source, parts);
  if (parts.unigram) parts.description = "unigram";
  add_added_tokens(added, source, parts);
  ParsedDecoder decoder = parse_decoder(root["decoder"], pre_tokenizer.byte_level);
  parts.spelling = std::move(decoder.spelling);
  parts.strips_leading_space = decoder.strips_leading_space;
  ParsedTemplate frame = parse_post_processor(root["post_processor"], parts.vocabulary.size());
  parts.prefix = std::move(frame.prefix);
  parts.suffix = std::move(frame.suffix);
  if (!tokenizer_config_json.empty()) {
    const nlohmann::json config = parse_json_object(tokenizer_config_json, source + " (tokenizer_config.json)");
    add_config(JsonView(config, source + " (tokenizer_config.json): "), parts);
  }
  return std::make_unique<SubwordTokenizer>(std::move(parts));
}

}  // namespace witan
