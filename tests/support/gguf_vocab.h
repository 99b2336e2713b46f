#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

#include "support/goldens.h"
#include "text/tokenizer_factory.h"

namespace witan::test {

// Reads the tokenizer.ggml.* keys of a GGUF file that is known to be good (version 3, little-endian); the tokenizer
// tests may not use the real reader, which is in a layer above.
class GgufVocabReader {
 public:
  static GgufTokenizerFields read(const std::string& path) {
    GgufVocabReader reader(read_file(path));
    reader.fields_.source = path;
    reader.read_all();
    return std::move(reader.fields_);
  }

 private:
  enum Type : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

  explicit GgufVocabReader(std::string bytes) : bytes_(std::move(bytes)) {}

  template <typename T>
  T take() {
    if (bytes_.size() - at_ < sizeof(T)) throw std::runtime_error("the GGUF file ends early");
    T value;
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }

  std::string take_string() {
    const auto size = take<uint64_t>();
    at_ += size;
    return bytes_.substr(at_ - size, size);
  }

  template <typename T>
  std::vector<T> take_array() {
    take<uint32_t>();
    std::vector<T> values(take<uint64_t>());
    for (T& value : values) value = take<T>();
    return values;
  }

  std::vector<std::string> take_strings() {
    take<uint32_t>();
    std::vector<std::string> values(take<uint64_t>());
    for (std::string& value : values) value = take_string();
    return values;
  }

  void skip(uint32_t type) {
    constexpr size_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == kString) {
      take_string();
    } else if (type == kArray) {
      const auto element = take<uint32_t>();
      for (auto count = take<uint64_t>(); count > 0; --count) skip(element);
    } else {
      at_ += kSizes[type];
    }
  }

  void read_all() {
    at_ = 16;  // magic, version, number of tensors
    for (auto count = take<uint64_t>(); count > 0; --count) {
      const std::string key = take_string();
      read_value(key, take<uint32_t>());
    }
  }

  void read_value(std::string_view key, uint32_t type) {
    constexpr std::string_view kPrefix = "tokenizer.ggml.";
    if (!key.starts_with(kPrefix)) return skip(type);
    key.remove_prefix(kPrefix.size());
    if (key == "model")
      fields_.model = take_string();
    else if (key == "pre")
      fields_.pre = take_string();
    else if (key == "tokens")
      fields_.tokens = take_strings();
    else if (key == "merges")
      fields_.merges = take_strings();
    else if (key == "scores")
      fields_.scores = take_array<float>();
    else if (key == "token_type")
      fields_.token_types = take_array<int32_t>();
    else if (key == "bos_token_id")
      fields_.bos = take<uint32_t>();
    else if (key == "eos_token_id")
      fields_.eos = take<uint32_t>();
    else if (key == "unknown_token_id")
      fields_.unk = take<uint32_t>();
    else if (key == "padding_token_id")
      fields_.pad = take<uint32_t>();
    else if (key == "add_bos_token")
      fields_.add_bos = take<uint8_t>() != 0;
    else if (key == "add_eos_token")
      fields_.add_eos = take<uint8_t>() != 0;
    else if (key == "add_space_prefix")
      fields_.add_space_prefix = take<uint8_t>() != 0;
    else
      skip(type);
  }

  std::string bytes_;
  size_t at_ = 0;
  GgufTokenizerFields fields_;
};

// One text with the ids that its tokenizer should give.
struct TokenizerVector {
  std::string text;
  std::vector<TokenId> ids;
};

// The vectors beside a vocabulary: <path>.inp and <path>.out.
inline std::vector<TokenizerVector> read_tokenizer_vectors(const std::string& path) {
  constexpr std::string_view kSeparator = "\n__ggml_vocab_test__\n";
  std::vector<TokenizerVector> vectors;
  const std::string texts = read_file(path + ".inp");
  for (size_t at = 0; at <= texts.size();) {
    const size_t end = std::min(texts.find(kSeparator, at), texts.size());
    vectors.push_back({texts.substr(at, end - at), {}});  // the last one is empty, and has no line of ids
    at = end + kSeparator.size();
  }
  const std::string lines = read_file(path + ".out");
  size_t at = 0;
  for (TokenizerVector& vector : vectors) {
    const size_t end = std::min(lines.find('\n', at), lines.size());
    const char* cursor = lines.c_str() + at;
    for (char* next = nullptr;; cursor = next) {
      while (*cursor == ' ') ++cursor;
      if (*cursor == '\n' || *cursor == '\0') break;
      vector.ids.push_back(static_cast<TokenId>(std::strtol(cursor, &next, 10)));
      if (next == cursor) throw std::runtime_error(path + ".out: not a number");
    }
    at = std::min(end + 1, lines.size());
  }
  return vectors;
}

}  // namespace witan::test
