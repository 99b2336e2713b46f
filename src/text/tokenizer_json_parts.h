#pragma once

#include <nlohmann/json.hpp>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/subword_tokenizer.h"

namespace witan {

// The first 80 bytes of a text, cut between characters.
std::string shortened(std::string_view text);

// A value in a parsed JSON file together with its place, so that every complaint can name it. Absent members are null.
class JsonView {
 public:
  // The value must outlive the view. The root's place is "FILE: ".
  JsonView(const nlohmann::json& value, std::string place) : value_(&value), place_(std::move(place)) {}

  const nlohmann::json& json() const { return *value_; }
  const std::string& place() const { return place_; }
  bool is_null() const { return value_->is_null(); }

  // These throw Error(kBadFile), naming the place, what it should hold and what it holds.
  JsonView operator[](const char* key) const;  // of an object; null where absent
  std::vector<JsonView> elements() const;      // of an array
  const std::string& string() const;
  bool boolean() const;
  bool boolean_or(bool absent) const { return is_null() ? absent : boolean(); }
  TokenId id() const;
  [[noreturn]] void expected(std::string_view what) const;

  // Throws Error(kUnsupported): "FILE: pre_tokenizer: unsupported pre-tokenizer "X"".
  [[noreturn]] void unsupported(std::string_view what, std::string_view name) const;

 private:
  const nlohmann::json* value_;
  std::string place_;
};

// The components of a tokenizer.json; each may be null. They throw Error(kUnsupported) naming a type that Witan does
// not have, and Error(kBadFile) for what contradicts the format.

Normalizer parse_normalizer(const JsonView& json);

struct ParsedPreTokenizer {
  PreTokenizer pre_tokenizer;
  bool byte_level = false;  // pieces are spelled in GPT-2's alphabet
};
ParsedPreTokenizer parse_pre_tokenizer(const JsonView& json);

struct ParsedDecoder {
  PieceSpelling spelling;
  bool strips_leading_space = false;
};
// A null decoder undoes what `byte_level` says and no more.
ParsedDecoder parse_decoder(const JsonView& json, bool byte_level);

struct ParsedTemplate {
  std::vector<TokenId> prefix;
  std::vector<TokenId> suffix;
};
ParsedTemplate parse_post_processor(const JsonView& json, int32_t vocab_size);

}  // namespace witan
