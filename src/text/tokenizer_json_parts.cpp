#include "text/tokenizer_json_parts.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "base/printable.h"
#include "text/pre_tokenizer_table.h"
#include "text/unicode.h"

namespace witan {

namespace {

// Real files have at most six steps and nest them once.
constexpr size_t kMaxSteps = 64;
constexpr int kMaxDepth = 8;
constexpr size_t kMaxInsertBytes = 256;  // a prefix or replacement; real ones are a character or two

const nlohmann::json kNull;

// Calls visit(part) for every part of a possibly nested Sequence, in order; `key` names the list in it.
template <typename Visit>
void for_each_part(const JsonView& json, const char* key, Visit&& visit, int depth = 0) {
  if (json.is_null()) return;
  if (json["type"].string() != "Sequence") return visit(json);
  if (depth == kMaxDepth) fail(ErrorCode::kUnsupported, "{}: sequences nested too deeply", json.place());
  for (const JsonView& part : json[key].elements()) for_each_part(part, key, visit, depth + 1);
}

template <typename Step>
void check_num_steps(const std::vector<Step>& steps, const JsonView& json) {
  if (steps.size() > kMaxSteps) {
    fail(ErrorCode::kUnsupported, "{}: more than {} steps in a sequence", json.place(), kMaxSteps);
  }
}

const std::string& insert_text(const JsonView& json) {
  if (json.string().size() > kMaxInsertBytes) {
    fail(ErrorCode::kUnsupported, "{} has {} bytes, the limit is {}", json.place(), json.string().size(),
         kMaxInsertBytes);
  }
  return json.string();
}

Regex parse_pattern(const JsonView& json) {
  if (!json["Regex"].is_null()) return Regex(json["Regex"].string(), json["Regex"].place());
  const JsonView literal = json["String"];
  if (literal.is_null()) json.expected("an object with \"String\" or \"Regex\"");
  if (literal.string().empty()) literal.expected("a string that is not empty");
  return Regex(escape_regex(literal.string()), json.place());
}

std::string decode_base64(const JsonView& json) {
  std::string bytes;
  uint32_t buffer = 0;
  int num_bits = 0;
  for (const char c : json.string()) {
    constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if (c == '=') break;
    const size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) json.expected("base64");
    buffer = buffer << 6 | static_cast<uint32_t>(digit);
    num_bits += 6;
    if (num_bits < 8) continue;
    num_bits -= 8;
    bytes += static_cast<char>(buffer >> num_bits & 0xFF);
  }
  return bytes;
}

Normalizer::Step parse_precompiled(const JsonView& json) {
  return Normalizer::Precompiled{std::make_shared<const Charsmap>(decode_base64(json), json.place())};
}

Normalizer::Step parse_normalizer_step(const JsonView& json) {
  using Form = Normalizer::Form;
  const std::string& type = json["type"].string();
  if (type == "NFC") return Normalizer::Unicode{Form::kNfc};
  if (type == "NFD") return Normalizer::Unicode{Form::kNfd};
  if (type == "NFKC") return Normalizer::Unicode{Form::kNfkc};
  if (type == "NFKD") return Normalizer::Unicode{Form::kNfkd};
  if (type == "Lowercase") return Normalizer::Lowercase{};
  if (type == "Prepend") return Normalizer::Prepend{insert_text(json["prepend"])};
  if (type == "Strip") return Normalizer::Strip{json["strip_left"].boolean(), json["strip_right"].boolean()};
  if (type == "Precompiled") return parse_precompiled(json["precompiled_charsmap"]);
  if (type != "Replace") json.unsupported("normalizer", type);
  const JsonView pattern = json["pattern"];
  const std::string& to = insert_text(json["content"]);
  if (!pattern["Regex"].is_null()) return Normalizer::ReplaceMatches{parse_pattern(pattern), to};
  const std::string& from = pattern["String"].string();
  if (from.empty()) pattern["String"].expected("a string that is not empty");
  return Normalizer::Replace{from, to};
}

SplitBehavior parse_behavior(const JsonView& json) {
  constexpr std::array<std::pair<std::string_view, SplitBehavior>, 5> kNames = {{
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous},
  }};
  for (const auto& [name, behavior] : kNames) {
    if (json.string() == name) return behavior;
  }
  json.unsupported("split behavior", json.string());
}

PreTokenizer::Metaspace parse_metaspace(const JsonView& json) {
  PreTokenizer::Metaspace step;
  step.replacement = json["replacement"].is_null() ? std::string(kSpaceMarker) : json["replacement"].string();
  if (step.replacement.empty() || next_utf8(step.replacement, 0).size != step.replacement.size()) {
    json["replacement"].expected("one character");
  }
  step.split = json["split"].boolean_or(true);
  const JsonView scheme = json["prepend_scheme"];
  if (scheme.is_null()) {  // files from before 2024
    step.prepend = json["add_prefix_space"].boolean_or(true) ? PrependScheme::kAlways : PrependScheme::kNever;
  } else if (scheme.string() == "always") {
    step.prepend = PrependScheme::kAlways;
  } else if (scheme.string() == "first") {
    step.prepend = PrependScheme::kFirst;
  } else if (scheme.string() == "never") {
    step.prepend = PrependScheme::kNever;
  } else {
    scheme.unsupported("prepend scheme", scheme.string());
  }
  return step;
}

void add_pre_tokenizer_step(const JsonView& json, std::vector<PreTokenizer::Step>& steps) {
  using Split = PreTokenizer::Split;
  const auto add_split = [&](std::string_view pattern, SplitBehavior behavior, SplitInvert invert = SplitInvert::kNo) {
    steps.emplace_back(Split{Regex(pattern, json.place()), behavior, invert});
  };
  const std::string& type = json["type"].string();
  if (type == "ByteLevel") {
    if (json["add_prefix_space"].boolean_or(true)) steps.emplace_back(PreTokenizer::PrefixSpace{});
    if (json["use_regex"].boolean_or(true)) add_split(kGpt2Pattern, SplitBehavior::kIsolated);
  } else if (type == "Split") {
    const SplitInvert invert = json["invert"].boolean_or(false) ? SplitInvert::kYes : SplitInvert::kNo;
    steps.emplace_back(Split{parse_pattern(json["pattern"]), parse_behavior(json["behavior"]), invert});
  } else if (type == "Digits") {
    const bool individual = json["individual_digits"].boolean_or(false);
    add_split(R"(\p{N})", individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
  } else if (type == "Metaspace") {
    steps.emplace_back(parse_metaspace(json));
  } else if (type == "Whitespace") {
    // \w as Unicode (UTS 18, annex C) and the file's authors mean it; PCRE2's has fewer characters.
    add_split(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]+)"
              R"(|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}\s]+)",
              SplitBehavior::kRemoved, SplitInvert::kYes);
  } else if (type == "WhitespaceSplit") {
    add_split(R"(\s)", SplitBehavior::kRemoved);
  } else if (type == "Punctuation") {
    const JsonView behavior = json["behavior"];
    add_split(R"([\p{P}!-/:-@\[-`{-~])", behavior.is_null() ? SplitBehavior::kIsolated : parse_behavior(behavior));
  } else {
    json.unsupported("pre-tokenizer", type);
  }
}

void add_decoder_step(const JsonView& json, ParsedDecoder& decoder) {
  const std::string& type = json["type"].string();
  if (type == "ByteLevel") {
    decoder.spelling.byte_alphabet = true;
  } else if (type == "Replace") {
    const JsonView pattern = json["pattern"];
    if (!pattern["Regex"].is_null()) pattern.unsupported("decoder pattern", "Regex");
    if (pattern["String"].string().empty()) pattern["String"].expected("a string that is not empty");
    decoder.spelling.replacements.emplace_back(pattern["String"].string(), insert_text(json["content"]));
  } else if (type == "Metaspace") {
    const PreTokenizer::Metaspace metaspace = parse_metaspace(json);
    decoder.spelling.replacements.emplace_back(metaspace.replacement, " ");
    decoder.strips_leading_space = metaspace.prepend != PrependScheme::kNever;
  } else if (type == "Strip") {
    const JsonView start = json["start"];
    const JsonView stop = json["stop"];
    if (json["content"].string() != " " || start.id() > 1 || stop.id() != 0) {
      json.unsupported("decoder", "Strip of anything but one leading space");
    }
    decoder.strips_leading_space = start.id() == 1;
  } else if (type != "ByteFallback" && type != "Fuse") {  // these two are what the detokenizer does anyway
    json.unsupported("decoder", type);
  }
}

// The ids of the special token that a template names.
void append_special(const JsonView& name, const JsonView& special_tokens, int32_t vocab_size,
                    std::vector<TokenId>& ids) {
  const JsonView special = special_tokens[name.string().c_str()];
  if (special.is_null()) name.expected("a key of special_tokens");
  for (const JsonView& id : special["ids"].elements()) {
    if (id.id() >= vocab_size) id.expected(fmt::format("an id below {}", vocab_size));
    ids.push_back(id.id());
  }
}

ParsedTemplate parse_template(const JsonView& json, int32_t vocab_size) {
  ParsedTemplate result;
  bool after_text = false;
  for (const JsonView& item : json["single"].elements()) {
    if (!item["SpecialToken"].is_null()) {
      append_special(item["SpecialToken"]["id"], json["special_tokens"], vocab_size,
                     after_text ? result.suffix : result.prefix);
    } else if (!after_text && item["Sequence"]["id"].string() == "A") {
      after_text = true;
    } else {
      item.expected("a special token, or sequence A once");
    }
  }
  if (!after_text) json["single"].expected("a template with sequence A");
  return result;
}

}  // namespace

JsonView JsonView::operator[](const char* key) const {
  if (!value_->is_object()) expected("an object");
  const auto member = value_->find(key);
  const char* separator = place_.ends_with(": ") ? "" : ".";
  return JsonView(member == value_->end() ? kNull : *member, fmt::format("{}{}{}", place_, separator, key));
}

std::string shortened(std::string_view text) {
  constexpr size_t kShown = 80;
  if (text.size() <= kShown) return std::string(text);
  return std::string(text.substr(0, valid_utf8_prefix(text.substr(0, kShown)))) + "...";
}

std::vector<JsonView> JsonView::elements() const {
  if (!value_->is_array()) expected("an array");
  std::vector<JsonView> views;
  for (size_t i = 0; i < value_->size(); ++i) views.emplace_back((*value_)[i], fmt::format("{}[{}]", place_, i));
  return views;
}

const std::string& JsonView::string() const {
  if (!value_->is_string()) expected("a string");
  return value_->get_ref<const std::string&>();
}

bool JsonView::boolean() const {
  if (!value_->is_boolean()) expected("true or false");
  return value_->get<bool>();
}

TokenId JsonView::id() const {
  if (!value_->is_number_unsigned() || value_->get<uint64_t>() > INT32_MAX) expected("a number from 0 to 2^31 - 1");
  return value_->get<TokenId>();
}

void JsonView::expected(std::string_view what) const {
  const bool is_scalar = value_->is_primitive();
  const std::string found = is_scalar && !is_null() ? value_->dump() : is_null() ? "nothing" : value_->type_name();
  fail(ErrorCode::kBadFile, "{} should be {}, found {}", place_, what, shortened(found));
}

void JsonView::unsupported(std::string_view what, std::string_view name) const {
  fail(ErrorCode::kUnsupported, "{}: unsupported {} {}", place_, what, printable(name));
}

Normalizer parse_normalizer(const JsonView& json) {
  std::vector<Normalizer::Step> steps;
  for_each_part(json, "normalizers", [&](const JsonView& part) {
    steps.emplace_back(parse_normalizer_step(part));
    check_num_steps(steps, json);
  });
  return Normalizer(std::move(steps));
}

ParsedPreTokenizer parse_pre_tokenizer(const JsonView& json) {
  ParsedPreTokenizer result;
  std::vector<PreTokenizer::Step> steps;
  for_each_part(json, "pretokenizers", [&](const JsonView& part) {
    // ByteLevel respells the pieces, so that a pattern behind it would see other characters.
    if (result.byte_level) part.unsupported("pre-tokenizer behind ByteLevel", part["type"].string());
    result.byte_level = part["type"].string() == "ByteLevel";
    add_pre_tokenizer_step(part, steps);
    check_num_steps(steps, json);
  });
  result.pre_tokenizer = PreTokenizer(std::move(steps));
  return result;
}

ParsedDecoder parse_decoder(const JsonView& json, bool byte_level) {
  ParsedDecoder decoder;
  decoder.spelling.byte_alphabet = byte_level && json.is_null();
  for_each_part(json, "decoders", [&](const JsonView& part) {
    add_decoder_step(part, decoder);
    check_num_steps(decoder.spelling.replacements, json);
  });
  return decoder;
}

ParsedTemplate parse_post_processor(const JsonView& json, int32_t vocab_size) {
  ParsedTemplate result;
  for_each_part(json, "processors", [&](const JsonView& part) {
    const std::string& type = part["type"].string();
    if (type == "ByteLevel") return;  // concerns offsets only
    if (type != "TemplateProcessing") part.unsupported("post-processor", type);
    const ParsedTemplate inner = parse_template(part, vocab_size);
    result.prefix.insert(result.prefix.begin(), inner.prefix.begin(), inner.prefix.end());
    result.suffix.insert(result.suffix.end(), inner.suffix.begin(), inner.suffix.end());
  });
  return result;
}

}  // namespace witan
