#pragma once

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/tokenizer_factory.h"

namespace witan::test {

using nlohmann::json;

// The vocabulary of a GGUF file in the shape that published tokenizer.json files have.

inline json byte_level_json(const GgufTokenizerFields& fields) {
  json vocab = json::object();
  json added = json::array();
  for (size_t id = 0; id < fields.tokens.size(); ++id) {
    if (fields.token_types[id] == 1) {
      vocab[fields.tokens[id]] = id;
      continue;
    }
    const bool special = fields.token_types[id] == 3;
    added.push_back({{"id", id},
                     {"content", fields.tokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", !special},
                     {"special", special}});
  }
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}}},
          {"post_processor", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", false}}},
          {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", ""},
            {"end_of_word_suffix", ""},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"vocab", vocab},
            {"merges", fields.merges}}}};
}

inline json split_step(const std::string& pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

inline json byte_level_step(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

inline json sequence(const char* key, const std::vector<json>& parts) { return {{"type", "Sequence"}, {key, parts}}; }

// As transformers converts a SentencePiece vocabulary: every cut of every piece into two, by score.
inline json sentencepiece_json(const GgufTokenizerFields& fields) {
  std::unordered_map<std::string, size_t> ids;
  for (size_t id = 0; id < fields.tokens.size(); ++id) ids[fields.tokens[id]] = id;
  std::vector<std::tuple<float, size_t, size_t>> cuts;
  for (size_t id = 0; id < fields.tokens.size(); ++id) {
    if (fields.token_types[id] != 1) continue;
    const std::string& piece = fields.tokens[id];
    for (size_t cut = 1; cut < piece.size(); ++cut) {
      if ((static_cast<uint8_t>(piece[cut]) & 0xC0) == 0x80) continue;
      const auto left = ids.find(piece.substr(0, cut)), right = ids.find(piece.substr(cut));
      if (left != ids.end() && right != ids.end()) cuts.emplace_back(-fields.scores[id], left->second, right->second);
    }
  }
  std::ranges::sort(cuts);
  json merges = json::array();
  for (const auto& [score, left, right] : cuts) merges.push_back({fields.tokens[left], fields.tokens[right]});

  const json marker = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}};
  const json unmark = {{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}};
  const json strip = {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}};
  json result = byte_level_json(fields);
  result["normalizer"] = sequence("normalizers", {{{"type", "Prepend"}, {"prepend", "▁"}}, marker});
  result["pre_tokenizer"] = nullptr;
  result["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"pair", json::array()},
      {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {1}}, {"tokens", {"<s>"}}}}}}};
  result["decoder"] = sequence("decoders", {unmark, {{"type", "ByteFallback"}}, {{"type", "Fuse"}}, strip});
  json& model = result["model"];
  model["unk_token"] = "<unk>";
  model["fuse_unk"] = true;
  model["byte_fallback"] = true;
  model["merges"] = merges;
  model["vocab"] = json::object();
  for (size_t id = 0; id < fields.tokens.size(); ++id) model["vocab"][fields.tokens[id]] = id;
  for (json& token : result["added_tokens"]) token["normalized"] = false;
  json& added = result["added_tokens"];
  added.erase(std::remove_if(added.begin(), added.end(),
                             [](const json& t) { return t["content"].get<std::string>().starts_with("<0x"); }),
              added.end());
  return result;
}

}  // namespace witan::test
