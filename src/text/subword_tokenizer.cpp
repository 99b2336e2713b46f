#include "text/subword_tokenizer.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "text/unicode.h"

namespace witan {

struct SubwordTokenizer::Encoding {
  std::string_view text;  // the whole of it
  ParseSpecial parse_special;
  RegexWorkspace workspace;
  std::vector<TokenId> ids;
};

std::vector<TokenId> SubwordTokenizer::encode(std::string_view text, AddSpecial add_special,
                                              ParseSpecial parse_special) const {
  // Positions in a text are 32 bits wide while it is merged.
  if (text.size() > INT32_MAX) fail(ErrorCode::kInvalidArgument, "a text of {} bytes is too long", text.size());
  std::string repaired;
  if (valid_utf8_prefix(text) != text.size()) {
    repaired = replace_unspeakable(text);
    text = repaired;
  }
  Encoding encoding{text, parse_special, RegexWorkspace(text.size()), {}};
  if (add_special == AddSpecial::kYes) encoding.ids = parts_.prefix;
  parts_.raw_added.split(text, parse_special, [&](const AddedTokens::Fragment& fragment) {
    if (fragment.token != nullptr) {
      encoding.ids.push_back(fragment.token->id);
    } else {
      encode_fragment(fragment.text, encoding);
    }
  });
  if (add_special == AddSpecial::kYes) {
    encoding.ids.insert(encoding.ids.end(), parts_.suffix.begin(), parts_.suffix.end());
  }
  return std::move(encoding.ids);
}

// Puts U+FFFD in the place of invalid bytes that the vocabulary has no tokens for.
std::string SubwordTokenizer::replace_unspeakable(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = next_utf8(text, at);
    const std::string_view bytes = text.substr(at, c.size);
    const bool speakable = c.status == Utf8Status::kValid || std::ranges::all_of(bytes, [&](char byte) {
                             return parts_.model.has_byte(static_cast<uint8_t>(byte));
                           });
    out.append(speakable ? bytes : kReplacementCharacter);
    at += c.size;
  }
  return out;
}

// Text between added tokens: valid stretches, and single bytes that are no text.
void SubwordTokenizer::encode_fragment(std::string_view text, Encoding& encoding) const {
  for (size_t at = 0; at < text.size();) {
    const size_t valid = valid_utf8_prefix(text.substr(at));
    if (valid > 0)
      encode_valid(text.substr(at, valid), at == 0 ? FragmentPart::kFirst : FragmentPart::kLater, encoding);
    at += valid;
    if (at == text.size()) break;
    const size_t invalid = next_utf8(text, at).size;
    for (size_t i = 0; i < invalid; ++i) {
      encoding.ids.push_back(parts_.model.byte_tokens[static_cast<uint8_t>(text[at + i])]);
    }
    at += invalid;
  }
}

void SubwordTokenizer::encode_valid(std::string_view text, FragmentPart part, Encoding& encoding) const {
  const TextPlace place = text.data() == encoding.text.data() ? TextPlace::kStart : TextPlace::kInside;
  std::string normalized;
  if (!parts_.normalizer.empty()) {
    normalized = parts_.normalizer.normalize(text, part, encoding.workspace);
    text = normalized;
  }
  parts_.normalized_added.split(text, encoding.parse_special, [&](const AddedTokens::Fragment& fragment) {
    if (fragment.token != nullptr) {
      encoding.ids.push_back(fragment.token->id);
      return;
    }
    const bool first = fragment.text.data() == text.data();
    parts_.pre_tokenizer.split(
        fragment.text, first ? place : TextPlace::kInside, encoding.workspace, [&](std::string_view piece) {
          if (parts_.unigram) {
            parts_.unigram->encode(piece, parts_.model.byte_tokens, parts_.model.unknown, encoding.ids);
          } else {
            parts_.model.encode(piece, parts_.vocabulary, encoding.ids);
          }
        });
  });
}

std::string SubwordTokenizer::token_bytes(TokenId id) const {
  const std::string& piece = token_piece(id);
  switch (parts_.vocabulary.kind(id)) {
    case TokenKind::kByte:
      return std::string(1, static_cast<char>(byte_piece_value(piece).value_or(0)));
    case TokenKind::kNormal:
      break;
    default:
      return piece;
  }
  // A piece with characters outside the alphabet was added to the file as plain text.
  if (parts_.spelling.byte_alphabet) return alphabet_piece_bytes(piece).value_or(piece);
  std::string text = piece;
  for (const auto& [from, to] : parts_.spelling.replacements) {
    std::string replaced;
    size_t at = 0;
    for (size_t found; (found = text.find(from, at)) != std::string::npos; at = found + from.size()) {
      replaced.append(text, at, found - at).append(to);
    }
    text = replaced.append(text, at);
  }
  return text;
}

const std::string& SubwordTokenizer::token_piece(TokenId id) const {
  WITAN_CHECK(id >= 0 && id < vocab_size(), "token {} of {}", id, vocab_size());
  return parts_.vocabulary.piece(id);
}

TokenKind SubwordTokenizer::token_kind(TokenId id) const {
  WITAN_CHECK(id >= 0 && id < vocab_size(), "token {} of {}", id, vocab_size());
  return parts_.vocabulary.kind(id);
}

}  // namespace witan
