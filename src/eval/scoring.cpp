#include "eval/scoring.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>

namespace witan {
namespace {

// ASCII alone, in every locale.
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
char to_lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// Characters of the number with which a text begins: digits, with commas among them, a sign before and a fraction
// behind. 0 where there is none.
size_t number_length(std::string_view text) {
  const auto digit_at = [&](size_t i) { return i < text.size() && is_digit(text[i]); };
  size_t i = text.starts_with('-') ? 1 : 0;
  if (!digit_at(i)) return 0;
  while (digit_at(i) || (i < text.size() && text[i] == ',')) ++i;
  if (i < text.size() && text[i] == '.' && digit_at(i + 1)) {
    ++i;
    while (digit_at(i)) ++i;
  }
  return i;
}

bool is_number(std::string_view text) { return !text.empty() && number_length(text) == text.size(); }

size_t word_length(std::string_view text) {
  return static_cast<size_t>(std::find_if_not(text.begin(), text.end(), is_letter) - text.begin());
}

// The last number of the text where a number is expected, its last number or word otherwise; empty where there is none.
std::string_view last_value(std::string_view text, std::string_view expected) {
  const bool numbers_only = is_number(expected);
  std::string_view last;
  for (size_t i = 0; i < text.size();) {
    const std::string_view rest = text.substr(i);
    // "12-3" is a range or a difference: a sign follows no digit.
    const bool is_sign = rest.front() != '-' || i == 0 || !is_digit(text[i - 1]);
    size_t length = is_sign ? number_length(rest) : 0;
    if (length == 0 && !numbers_only) length = word_length(rest);
    if (length > 0) last = rest.substr(0, length);
    i += std::max<size_t>(length, 1);
  }
  return last;
}

using Values = std::vector<std::string_view>;

// The last value of each part that has an expected one.
Values last_of_each(const Values& parts, const ExpectedAnswers& expected) {
  Values values;
  for (size_t i = 0; i < std::min(parts.size(), expected.values.size()); ++i) {
    values.push_back(last_value(parts[i], expected.values[i]));
  }
  return values;
}

Values find_last(std::string_view reply, const ExpectedAnswers& expected) { return last_of_each({reply}, expected); }

Values find_each(std::string_view reply, const ExpectedAnswers& expected) {
  Values sentences;
  size_t begin = 0;
  for (size_t i = 0; i <= reply.size(); ++i) {
    const bool ends_line = i == reply.size() || reply[i] == '\n';
    const bool ends_sentence =
        !ends_line && (reply[i] == '.' || reply[i] == ';') && i + 1 < reply.size() && is_space(reply[i + 1]);
    if (!ends_line && !ends_sentence) continue;
    const std::string_view sentence = reply.substr(begin, i - begin);
    if (!trim(sentence).empty()) sentences.push_back(sentence);
    begin = i + 1;
  }
  return last_of_each(sentences, expected);
}

Values find_items(std::string_view reply, const ExpectedAnswers& expected) {
  reply = trim(reply);
  if (const size_t colon = reply.rfind(':'); colon != std::string_view::npos) reply.remove_prefix(colon + 1);
  Values items;
  for (size_t begin = 0; begin <= reply.size();) {
    const size_t end = std::min(reply.find(',', begin), reply.size());
    items.push_back(reply.substr(begin, end - begin));
    begin = end + 1;
  }
  return last_of_each(items, expected);
}

Values find_numbered(std::string_view reply, const ExpectedAnswers& expected) {
  constexpr std::string_view kLabel = "Answer_";
  std::map<int64_t, std::string_view> blocks;
  std::string_view* open = nullptr;  // runs to the end so far
  for (size_t label = reply.find(kLabel); label != std::string_view::npos; label = reply.find(kLabel, label + 1)) {
    int64_t number = 0;
    const char* const end = reply.data() + reply.size();
    auto [c, error] = std::from_chars(reply.data() + label + kLabel.size(), end, number);
    while (c != end && is_space(*c)) ++c;
    if (error != std::errc{} || c == end || *c != ':') continue;
    if (open != nullptr) open->remove_suffix(reply.size() - label);
    const auto [block, is_new] = blocks.try_emplace(number, std::string_view(c + 1, end));
    open = is_new ? &block->second : nullptr;
  }
  Values values;
  for (size_t i = 0; i < expected.values.size(); ++i) {
    const auto block = blocks.find(expected.first_label + static_cast<int64_t>(i));
    values.push_back(block == blocks.end() ? "" : last_value(block->second, expected.values[i]));
  }
  return values;
}

Values find_text(std::string_view reply, const ExpectedAnswers& /*expected*/) {
  const size_t colon = reply.find(':');
  if (colon == std::string_view::npos) return {};
  std::string_view text = trim(reply.substr(colon + 1));
  while (text.ends_with('.')) text.remove_suffix(1);
  return {text};
}

std::string lower(std::string_view text) {
  std::string result(text);
  std::ranges::transform(result, result.begin(), to_lower);
  return result;
}

Values find_contained(std::string_view reply, const ExpectedAnswers& expected) {
  const std::string searched = lower(reply);
  Values values;
  for (const std::string& value : expected.values) {
    const size_t found = searched.find(lower(value));
    values.push_back(found == std::string::npos ? "" : reply.substr(found, value.size()));
  }
  return values;
}

constexpr std::array<ScoringRule, 6> kRules = {{
    {"last", find_last},
    {"each", find_each},
    {"items", find_items},
    {"numbered", find_numbered},
    {"text", find_text},
    {"contains", find_contained},
}};

// Numbers without commas and trailing zeros; other text in lower case, white space as one space.
std::string normalized(std::string_view value) {
  value = trim(value);
  std::string result;
  if (!is_number(value)) {
    for (const char c : value) {
      if (!is_space(c)) {
        result += to_lower(c);
      } else if (!result.ends_with(' ')) {
        result += ' ';
      }
    }
    return result;
  }
  std::ranges::copy_if(value, std::back_inserter(result), [](char c) { return c != ','; });
  if (result.find('.') == std::string::npos) return result;
  while (result.ends_with('0')) result.pop_back();
  if (result.ends_with('.')) result.pop_back();
  return result;
}

}  // namespace

const ScoringRule* find_scoring_rule(std::string_view name) {
  const auto* const rule = std::ranges::find(kRules, name, &ScoringRule::name);
  return rule == kRules.end() ? nullptr : rule;
}

std::string scoring_rule_names() {
  std::string names;
  for (const ScoringRule& rule : kRules) names.append(names.empty() ? "" : ", ").append(rule.name);
  return names;
}

std::vector<Mark> score(const ScoringRule& rule, std::string_view reply, const ExpectedAnswers& expected) {
  const Values found = rule.find(reply, expected);
  std::vector<Mark> marks(expected.values.size(), Mark::kMissing);
  for (size_t i = 0; i < std::min(found.size(), marks.size()); ++i) {
    if (trim(found[i]).empty()) continue;
    marks[i] = normalized(found[i]) == normalized(expected.values[i]) ? Mark::kRight : Mark::kWrong;
  }
  return marks;
}

}  // namespace witan
