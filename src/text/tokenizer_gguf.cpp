#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "base/error.h"
#include "text/pre_tokenizer_table.h"
#include "text/subword_tokenizer.h"
#include "text/tokenizer_factory.h"
#include "text/unicode.h"

namespace witan {

namespace {

// The longest tokens in use are runs of a few hundred spaces. Finding the merges of a SentencePiece vocabulary looks at
// every place to cut every token, which a token of megabytes would turn into hours.
constexpr size_t kMaxPieceBytes = 4096;

TokenKind kind_of(int32_t type, size_t id, const std::string& source) {
  switch (type) {
    case 0:  // "undefined": written by converters that know no types
    case 1:
      return TokenKind::kNormal;
    case 2:
      return TokenKind::kUnknown;
    case 3:
      return TokenKind::kControl;
    case 4:
      return TokenKind::kUserDefined;
    case 5:
      return TokenKind::kUnused;
    case 6:
      return TokenKind::kByte;
    default:
      fail(ErrorCode::kBadFile, "{}: tokenizer.ggml.token_type[{}] is {}, expected 0 to 6", source, id, type);
  }
}

void check_length(const char* key, size_t length, size_t num_tokens, const std::string& source) {
  if (length != 0 && length != num_tokens) {
    fail(ErrorCode::kBadFile, "{}: {} has {} entries, expected {}, one for each token", source, key, length,
         num_tokens);
  }
}

Vocabulary make_vocabulary(GgufTokenizerFields& fields) {
  const size_t count = fields.tokens.size();
  if (count == 0) fail(ErrorCode::kBadFile, "{}: tokenizer.ggml.tokens is missing or empty", fields.source);
  check_length("tokenizer.ggml.token_type", fields.token_types.size(), count, fields.source);
  check_length("tokenizer.ggml.scores", fields.scores.size(), count, fields.source);
  Vocabulary vocabulary(count);
  for (size_t id = 0; id < count; ++id) {
    std::string& piece = fields.tokens[id];
    if (piece.size() > kMaxPieceBytes) {
      fail(ErrorCode::kUnsupported, "{}: tokenizer.ggml.tokens[{}] has {} bytes, the limit is {}", fields.source, id,
           piece.size(), kMaxPieceBytes);
    }
    if (valid_utf8_prefix(piece) != piece.size()) {
      fail(ErrorCode::kBadFile, "{}: tokenizer.ggml.tokens[{}] is not valid UTF-8", fields.source, id);
    }
    TokenKind kind = TokenKind::kNormal;
    if (!fields.token_types.empty()) {
      kind = kind_of(fields.token_types[id], id, fields.source);
    } else if (fields.model != "gpt2" && byte_piece_value(piece)) {
      kind = TokenKind::kByte;
    }
    if (kind == TokenKind::kByte && !byte_piece_value(piece)) {
      fail(ErrorCode::kBadFile,
           "{}: tokenizer.ggml.tokens[{}] is a byte token, expected \"<0x00>\" to \"<0xFF>\", found "
           "\"{}\"",
           fields.source, id, piece);
    }
    vocabulary.set(static_cast<TokenId>(id), std::move(piece), kind, fields.source);
  }
  return vocabulary;
}

std::optional<TokenId> checked_id(const char* key, std::optional<int64_t> id, const Vocabulary& vocabulary,
                                  const std::string& source) {
  if (!id || *id == -1 || *id == UINT32_MAX) return std::nullopt;  // both are how files say "none"
  if (*id < 0 || *id >= vocabulary.size()) {
    fail(ErrorCode::kBadFile, "{}: {} is {}, expected 0 to {}", source, key, *id, vocabulary.size() - 1);
  }
  return static_cast<TokenId>(*id);
}

AddedTokens find_added_tokens(const Vocabulary& vocabulary, const std::string& source) {
  std::vector<AddedToken> added;
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    const TokenKind kind = vocabulary.kind(id);
    const bool special = kind == TokenKind::kControl || kind == TokenKind::kUnknown;
    if ((!special && kind != TokenKind::kUserDefined) || vocabulary.piece(id).empty()) continue;
    added.push_back({id, vocabulary.piece(id), special ? ParseSpecial::kYes : ParseSpecial::kNo});
  }
  return AddedTokens(std::move(added), source);
}

void add_byte_level_merges(const GgufTokenizerFields& fields, TokenizerParts& parts) {
  const auto find = [&](size_t rank, std::string_view piece) {
    const std::optional<TokenId> id = parts.vocabulary.find(piece);
    if (!id) {
      fail(ErrorCode::kBadFile, "{}: tokenizer.ggml.merges[{}] is \"{}\", but \"{}\" is no token", fields.source, rank,
           fields.merges[rank], piece);
    }
    return *id;
  };
  for (size_t rank = 0; rank < fields.merges.size(); ++rank) {
    const std::string_view merge = fields.merges[rank];
    const size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size()) {
      fail(ErrorCode::kBadFile, "{}: tokenizer.ggml.merges[{}] is \"{}\", expected two pieces with a space between",
           fields.source, rank, merge);
    }
    const std::string_view left = merge.substr(0, space);
    const std::string_view right = merge.substr(space + 1);
    const TokenId left_id = find(rank, left);
    const TokenId right_id = find(rank, right);
    const TokenId merged_id = find(rank, std::string(left).append(right));
    parts.model.merges.add(left_id, right_id, static_cast<int32_t>(rank), merged_id);
  }
}

TokenizerParts byte_level_parts(GgufTokenizerFields& fields) {
  const PreTokenizerRow* row = find_pre_tokenizer(fields.pre);
  if (row == nullptr) {
    fail(ErrorCode::kUnsupported, "{}: unknown pre-tokenizer \"{}\" (tokenizer.ggml.pre); known are {}", fields.source,
         fields.pre, pre_tokenizer_names());
  }
  if (fields.merges.empty()) fail(ErrorCode::kBadFile, "{}: tokenizer.ggml.merges is missing or empty", fields.source);
  if (fields.add_space_prefix.value_or(false)) {
    fail(ErrorCode::kUnsupported, "{}: tokenizer.ggml.add_space_prefix with tokenizer model gpt2", fields.source);
  }
  TokenizerParts parts;
  parts.description = fmt::format("bpe ({})", fields.pre.empty() ? "default" : fields.pre);
  parts.vocabulary = make_vocabulary(fields);
  parts.pre_tokenizer = make_pre_tokenizer(*row);
  parts.spelling.byte_alphabet = true;
  parts.model.unit = SymbolUnit::kByte;
  parts.model.ignore_merges = row->ignore_merges == IgnoreMerges::kYes;
  for (int byte = 0; byte < 256; ++byte) {
    std::string piece;
    append_utf8(byte_to_alphabet(static_cast<uint8_t>(byte)), piece);
    const std::optional<TokenId> id = parts.vocabulary.find(piece);
    // A user-defined "ÿ" is the character, not the byte 0xFF (DeepSeek's vocabularies have such).
    if (id && parts.vocabulary.kind(*id) == TokenKind::kNormal) parts.model.byte_tokens[byte] = *id;
  }
  add_byte_level_merges(fields, parts);
  return parts;
}

// The symbol of every character in a piece; characters that are no tokens get ids past the vocabulary.
void add_character_symbols(TokenizerParts& parts) {
  const Vocabulary& vocabulary = parts.vocabulary;
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    const std::string& piece = vocabulary.piece(id);
    const bool merges = vocabulary.kind(id) == TokenKind::kNormal || vocabulary.kind(id) == TokenKind::kUserDefined ||
                        vocabulary.kind(id) == TokenKind::kUnused;
    if (!merges) continue;
    for (size_t at = 0; at < piece.size();) {
      const Utf8Char c = next_utf8(piece, at);
      if (parts.model.character_symbols.find(c.code_point) == nullptr) {
        const std::optional<TokenId> token = vocabulary.find(std::string_view(piece).substr(at, c.size));
        const auto extra = static_cast<TokenId>(vocabulary.size() + parts.model.extra_characters.size());
        if (!token) parts.model.extra_characters.push_back(c.code_point);
        parts.model.character_symbols.insert(c.code_point, static_cast<uint64_t>(token.value_or(extra)));
      }
      at += c.size;
    }
  }
}

// SentencePiece merges any two symbols whose text together is a token, the highest score first. As rules: every cut of
// every token into two symbols, ranked by the token's score; equal scores have equal rank, so that the place decides.
void add_scored_merges(const std::vector<float>& scores, TokenizerParts& parts) {
  const Vocabulary& vocabulary = parts.vocabulary;
  std::vector<float> order = scores;
  std::ranges::sort(order, std::greater<>());
  order.erase(std::unique(order.begin(), order.end()), order.end());

  const auto mergeable = [&](TokenId id) {
    const TokenKind kind = vocabulary.kind(id);
    return kind == TokenKind::kNormal || kind == TokenKind::kUserDefined || kind == TokenKind::kUnused;
  };
  const auto symbol_of = [&](std::string_view text) -> std::optional<TokenId> {
    const Utf8Char c = next_utf8(text, 0);
    if (c.size == text.size()) return static_cast<TokenId>(*parts.model.character_symbols.find(c.code_point));
    const std::optional<TokenId> id = vocabulary.find(text);
    return id && mergeable(*id) ? id : std::nullopt;
  };
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    const std::string_view piece = vocabulary.piece(id);
    if (!mergeable(id) || piece.empty()) continue;
    const auto rank = std::ranges::lower_bound(order, scores[id], std::greater<>()) - order.begin();
    for (size_t cut = next_utf8(piece, 0).size; cut < piece.size(); cut += next_utf8(piece, cut).size) {
      const std::optional<TokenId> left = symbol_of(piece.substr(0, cut));
      if (!left) continue;
      if (const std::optional<TokenId> right = symbol_of(piece.substr(cut))) {
        parts.model.merges.add(*left, *right, static_cast<int32_t>(rank), id);
      }
    }
  }
}

void check_scores(const GgufTokenizerFields& fields) {
  if (fields.scores.empty()) fail(ErrorCode::kBadFile, "{}: tokenizer.ggml.scores is missing or empty", fields.source);
  for (size_t id = 0; id < fields.scores.size(); ++id) {
    if (std::isnan(fields.scores[id])) {
      fail(ErrorCode::kBadFile, "{}: tokenizer.ggml.scores[{}] is not a number", fields.source, id);
    }
  }
}

TokenizerParts sentencepiece_parts(GgufTokenizerFields& fields) {
  TokenizerParts parts;
  parts.description = "spm";
  parts.vocabulary = make_vocabulary(fields);
  check_scores(fields);
  const bool space_prefix = fields.add_space_prefix.value_or(true);
  std::vector<Normalizer::Step> steps;
  if (fields.remove_extra_whitespaces.value_or(false)) steps.emplace_back(Normalizer::CollapseSpaces{});
  if (space_prefix) steps.emplace_back(Normalizer::Prepend{std::string(kSpaceMarker)});
  steps.emplace_back(Normalizer::Replace{" ", std::string(kSpaceMarker)});
  parts.normalizer = Normalizer(std::move(steps));
  parts.strips_leading_space = space_prefix;
  parts.spelling.replacements = {{std::string(kSpaceMarker), " "}};
  parts.model.unit = SymbolUnit::kCharacter;
  for (TokenId id = 0; id < parts.vocabulary.size(); ++id) {
    if (parts.vocabulary.kind(id) != TokenKind::kByte) continue;
    parts.model.byte_tokens[*byte_piece_value(parts.vocabulary.piece(id))] = id;
  }
  add_character_symbols(parts);
  add_scored_merges(fields.scores, parts);
  parts.model.inspect_words(parts.vocabulary);
  return parts;
}

TokenizerParts unigram_parts(GgufTokenizerFields& fields) {
  TokenizerParts parts;
  parts.description = "unigram";
  parts.vocabulary = make_vocabulary(fields);
  check_scores(fields);
  const bool space_prefix = fields.add_space_prefix.value_or(false);
  std::vector<Normalizer::Step> steps;
  if (!fields.precompiled_charsmap.empty()) {
    steps.emplace_back(
        Normalizer::Precompiled{std::make_shared<const Charsmap>(fields.precompiled_charsmap, fields.source)});
  }
  if (fields.remove_extra_whitespaces.value_or(false)) steps.emplace_back(Normalizer::CollapseSpaces{});
  if (space_prefix) steps.emplace_back(Normalizer::Prepend{std::string(kSpaceMarker)});
  steps.emplace_back(Normalizer::Replace{" ", std::string(kSpaceMarker)});
  parts.normalizer = Normalizer(std::move(steps));
  parts.strips_leading_space = space_prefix;
  parts.spelling.replacements = {{std::string(kSpaceMarker), " "}};
  UnigramModel& model = parts.unigram.emplace();
  for (TokenId id = 0; id < parts.vocabulary.size(); ++id) {
    const std::string& piece = parts.vocabulary.piece(id);
    const TokenKind kind = parts.vocabulary.kind(id);
    if (kind == TokenKind::kByte) parts.model.byte_tokens[*byte_piece_value(piece)] = id;
    if ((kind != TokenKind::kNormal && kind != TokenKind::kUserDefined) || piece.empty()) continue;
    if (piece.size() > UnigramModel::kMaxPieceBytes) {
      fail(ErrorCode::kUnsupported,
           "{}: tokenizer.ggml.tokens[{}] has {} bytes, the limit for tokenizer model t5 is {}", fields.source, id,
           piece.size(), UnigramModel::kMaxPieceBytes);
    }
    model.add(piece, id, fields.scores[static_cast<size_t>(id)]);
  }
  return parts;
}

// SentencePiece's own ids, which converters leave out: where such a token has the right kind, it is the one.
std::optional<TokenId> default_id(const Vocabulary& vocabulary, TokenId id, TokenKind kind) {
  if (id >= vocabulary.size() || vocabulary.kind(id) != kind) return std::nullopt;
  return id;
}

void add_special_ids(const GgufTokenizerFields& fields, TokenizerParts& parts) {
  const Vocabulary& vocabulary = parts.vocabulary;
  const bool sentencepiece = fields.model == "llama";
  const bool unigram = fields.model == "t5";
  parts.bos = checked_id("tokenizer.ggml.bos_token_id", fields.bos, vocabulary, fields.source);
  parts.eos = checked_id("tokenizer.ggml.eos_token_id", fields.eos, vocabulary, fields.source);
  parts.model.unknown = checked_id("tokenizer.ggml.unknown_token_id", fields.unk, vocabulary, fields.source);
  checked_id("tokenizer.ggml.padding_token_id", fields.pad, vocabulary, fields.source);
  if (sentencepiece) {
    if (!fields.unk) parts.model.unknown = default_id(vocabulary, 0, TokenKind::kUnknown);
    if (!fields.bos) parts.bos = default_id(vocabulary, 1, TokenKind::kControl);
    if (!fields.eos) parts.eos = default_id(vocabulary, 2, TokenKind::kControl);
  }
  if (unigram) {  // T5's own
    if (!fields.unk) parts.model.unknown = default_id(vocabulary, 2, TokenKind::kUnknown);
    if (!fields.eos) parts.eos = default_id(vocabulary, 1, TokenKind::kControl);
  }
  const PreTokenizerRow* row = sentencepiece || unigram ? nullptr : find_pre_tokenizer(fields.pre);
  const bool bos_default = sentencepiece || (row != nullptr && row->add_bos == BosDefault::kYes);
  if (fields.add_bos.value_or(false) && !parts.bos) {
    fail(ErrorCode::kBadFile, "{}: tokenizer.ggml.add_bos_token is true, but there is no bos_token_id", fields.source);
  }
  if (fields.add_eos.value_or(false) && !parts.eos) {
    fail(ErrorCode::kBadFile, "{}: tokenizer.ggml.add_eos_token is true, but there is no eos_token_id", fields.source);
  }
  if (fields.add_bos.value_or(bos_default) && parts.bos) parts.prefix = {*parts.bos};
  if (fields.add_eos.value_or(unigram) && parts.eos) parts.suffix = {*parts.eos};
}

}  // namespace

std::unique_ptr<Tokenizer> tokenizer_from_gguf(GgufTokenizerFields fields) {
  TokenizerParts parts;
  if (fields.model == "gpt2") {
    parts = byte_level_parts(fields);
  } else if (fields.model == "llama") {
    parts = sentencepiece_parts(fields);
  } else if (fields.model == "t5") {
    parts = unigram_parts(fields);
  } else {
    fail(ErrorCode::kUnsupported,
         "{}: unknown tokenizer model \"{}\" (tokenizer.ggml.model), expected gpt2, llama or t5", fields.source,
         fields.model);
  }
  parts.raw_added = find_added_tokens(parts.vocabulary, fields.source);
  add_special_ids(fields, parts);
  return std::make_unique<SubwordTokenizer>(std::move(parts));
}

}  // namespace witan
