#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/pre_tokenizer.h"

namespace witan {

enum class IgnoreMerges : uint8_t { kNo, kYes };  // kYes: a piece that is a token needs no merges
enum class BosDefault : uint8_t { kNo, kYes };    // whether BOS is added where the file does not say

// A value of the GGUF key `tokenizer.ggml.pre`: the file names its pre-tokenizer instead of describing it.
struct PreTokenizerRow {
  std::vector<std::string_view> names;
  std::vector<std::string_view> patterns;  // each cuts the pieces of the one before; matches become pieces
  IgnoreMerges ignore_merges = IgnoreMerges::kNo;
  BosDefault add_bos = BosDefault::kNo;
};

// Adding a pre-tokenizer is adding a row, with the patterns of the model's tokenizer.json.
std::span<const PreTokenizerRow> pre_tokenizer_table();

// nullptr for a name that is not in the table.
const PreTokenizerRow* find_pre_tokenizer(std::string_view name);

// The names in the table, for messages.
std::string pre_tokenizer_names();

// The compiled steps of a row.
PreTokenizer make_pre_tokenizer(const PreTokenizerRow& row);

// The pattern of GPT-2, which tokenizer.json calls ByteLevel with use_regex.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace witan
