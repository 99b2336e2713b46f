#include "text/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "base/error.h"
#include "text/unicode.h"

namespace witan::jinja {
namespace {

enum class Tag : uint8_t { kVariable, kBlock, kComment };

struct Delimiters {
  std::string_view begin;
  std::string_view end;
};
constexpr std::array<Delimiters, 3> kDelimiters = {{{"{{", "}}"}, {"{%", "%}"}, {"{#", "#}"}}};

// Longest first.
constexpr std::array<std::string_view, 25> kOperators = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                         "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                         ">",  "<",  "=",  ".",  ":",  "|",  ","};

std::string normalized_newlines(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      text += source[i];
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

bool is_space_at(std::string_view text, size_t at, size_t& size) {
  const Utf8Char c = next_utf8(text, at);
  size = c.size;
  return is_whitespace(c.code_point) || (c.code_point >= 0x1C && c.code_point <= 0x1F);
}

std::string_view without_trailing_space(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t last = end - 1;
    while (last > 0 && (static_cast<uint8_t>(text[last]) & 0xC0) == 0x80) --last;
    size_t size = 0;
    if (!is_space_at(text, last, size)) break;
    end = last;
  }
  return text.substr(0, end);
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) {
  return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || static_cast<uint8_t>(c) >= 0x80;
}

class Lexer {
 public:
  Lexer(std::string_view source, const std::string& name) : name_(name), source_(normalized_newlines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) next_piece();
    add(TokenType::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void error(int line, const std::string& what) const {
    fail(ErrorCode::kBadFile, "{}: line {}: {}", name_, line, what);
  }

  std::string_view rest() const { return std::string_view(source_).substr(at_); }

  void advance(size_t bytes) {
    line_ += static_cast<int>(std::count(source_.begin() + at_, source_.begin() + at_ + bytes, '\n'));
    at_ += bytes;
  }
  void skip_space() {
    size_t size = 0;
    while (at_ < source_.size() && is_space_at(source_, at_, size)) advance(size);
  }
  void add(TokenType type, std::string text) { tokens_.push_back({type, std::move(text), line_}); }

  // Text up to the next tag, then the tag.
  void next_piece() {
    size_t begin = at_;
    std::optional<Tag> tag;
    for (; begin + 1 < source_.size() && !tag; ++begin) {
      for (size_t i = 0; i < kDelimiters.size(); ++i) {
        if (source_.compare(begin, 2, kDelimiters[i].begin) == 0) tag = static_cast<Tag>(i);
      }
      if (tag) break;
    }
    if (!tag) begin = source_.size();
    const char sign = tag && begin + 2 < source_.size() ? source_[begin + 2] : '\0';
    add_text(rest().substr(0, begin - at_), tag, sign);
    advance(begin - at_);
    if (!tag) return;
    advance(sign == '-' || sign == '+' ? 3 : 2);
    if (*tag == Tag::kComment) return skip_comment();
    if (*tag == Tag::kBlock && skip_word("raw")) return take_raw();
    const std::string_view end = kDelimiters[static_cast<size_t>(*tag)].end;
    const bool is_block = *tag == Tag::kBlock;
    add(is_block ? TokenType::kBlockBegin : TokenType::kVariableBegin, "");
    take_expression(is_block, end);
  }

  // What whitespace control leaves of the text before a tag.
  void add_text(std::string_view text, std::optional<Tag> tag, char sign) {
    if (tag && sign == '-') {
      text = without_trailing_space(text);
    } else if (tag && sign != '+' && *tag != Tag::kVariable) {
      const size_t line_begin = text.rfind('\n') + 1;
      if (line_begin > 0 || at_line_start_) {
        if (without_trailing_space(text.substr(line_begin)).empty()) text = text.substr(0, line_begin);
      }
    }
    if (!text.empty()) add(TokenType::kText, std::string(text));
  }

  // After the end of a block or comment: "-%}" takes all space behind it, "%}" one newline.
  void after_tag(char sign) {
    if (sign == '-') {
      const size_t before = at_;
      skip_space();
      at_line_start_ = at_ > before && source_[at_ - 1] == '\n';
    } else {
      at_line_start_ = sign != '+' && at_ < source_.size() && source_[at_] == '\n';
      if (at_line_start_) advance(1);
    }
  }

  void skip_comment() {
    const int begin_line = line_;
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) error(begin_line, "a comment has no end (\"#}\")");
    const char sign = end > at_ && (source_[end - 1] == '-' || source_[end - 1] == '+') ? source_[end - 1] : '\0';
    advance(end + 2 - at_);
    after_tag(sign);
  }

  // True, and behind the tag, when the block tag just opened has only this word in it.
  bool skip_word(std::string_view word) {
    size_t at = at_;
    size_t size = 0;
    while (at < source_.size() && is_space_at(source_, at, size)) at += size;
    if (std::string_view(source_).substr(at, word.size()) != word) return false;
    at += word.size();
    while (at < source_.size() && is_space_at(source_, at, size)) at += size;
    const bool strips = at < source_.size() && source_[at] == '-';
    if (strips) ++at;
    if (source_.compare(at, 2, "%}") != 0) return false;
    advance(at + 2 - at_);
    if (strips) skip_space();
    return true;
  }

  void take_raw() {
    const int begin_line = line_;
    for (size_t begin = at_; (begin = source_.find("{%", begin)) != std::string::npos; begin += 2) {
      size_t at = begin + 2;
      const char sign = at < source_.size() ? source_[at] : '\0';
      if (sign == '-' || sign == '+') ++at;
      size_t size = 0;
      while (at < source_.size() && is_space_at(source_, at, size)) at += size;
      if (source_.compare(at, 6, "endraw") != 0) continue;
      at += 6;
      while (at < source_.size() && is_space_at(source_, at, size)) at += size;
      const char end_sign = at < source_.size() && (source_[at] == '-' || source_[at] == '+') ? source_[at] : '\0';
      if (end_sign != '\0') ++at;
      if (source_.compare(at, 2, "%}") != 0) continue;
      at_line_start_ = false;
      add_text(rest().substr(0, begin - at_), Tag::kBlock, sign);
      advance(at + 2 - at_);
      return after_tag(end_sign);
    }
    error(begin_line, "a raw block has no end");
  }

  void take_expression(bool is_block, std::string_view end) {
    const int begin_line = line_;
    std::vector<char> open;  // brackets
    for (;;) {
      skip_space();
      if (at_ == source_.size()) error(begin_line, fmt::format("a tag has no end (\"{}\")", end));
      if (open.empty() && take_end(is_block, end)) return;
      take_token(open);
    }
  }

  bool take_end(bool is_block, std::string_view end) {
    const char sign = source_[at_] == '-' || (is_block && source_[at_] == '+') ? source_[at_] : '\0';
    if (rest().substr(sign == '\0' ? 0 : 1, 2) != end) return false;
    add(is_block ? TokenType::kBlockEnd : TokenType::kVariableEnd, "");
    advance(sign == '\0' ? 2 : 3);
    if (is_block || sign == '-') {
      after_tag(sign);
    } else {
      at_line_start_ = false;
    }
    return true;
  }

  void take_token(std::vector<char>& open) {
    const char c = source_[at_];
    if (is_digit(c)) return take_number();
    if (c == '"' || c == '\'') return take_string();
    if (is_name_start(c)) {
      size_t size = 1;
      while (at_ + size < source_.size() && (is_name_start(source_[at_ + size]) || is_digit(source_[at_ + size])))
        ++size;
      add(TokenType::kName, source_.substr(at_, size));
      return advance(size);
    }
    for (const std::string_view op : kOperators) {
      if (!rest().starts_with(op)) continue;
      if (op == "(" || op == "[" || op == "{") {
        open.push_back(op == "(" ? ')' : op == "[" ? ']' : '}');
      } else if (op == ")" || op == "]" || op == "}") {
        if (open.empty() || open.back() != op[0]) error(line_, fmt::format("unexpected '{}'", op));
        open.pop_back();
      }
      add(TokenType::kOperator, std::string(op));
      return advance(op.size());
    }
    error(line_, fmt::format("unexpected character '{}'", rest().substr(0, next_utf8(source_, at_).size)));
  }

  // Digits with single underscores between them, appended without those; false when there are none.
  bool take_digits(size_t& at, std::string& digits, int base = 10) const {
    const auto is_one = [&](char c) {
      if (base == 16) return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
      return c >= '0' && c < '0' + base;
    };
    const size_t begin = at;
    while (at < source_.size()) {
      if (is_one(source_[at])) {
        digits += source_[at++];
      } else if (source_[at] == '_' && at > begin && at + 1 < source_.size() && is_one(source_[at + 1])) {
        ++at;
      } else {
        break;
      }
    }
    return at > begin;
  }

  void take_number() {
    size_t at = at_;
    std::string digits;
    const char kind = at + 1 < source_.size() ? static_cast<char>(source_[at + 1] | 0x20) : '\0';
    if (source_[at] == '0' && (kind == 'x' || kind == 'o' || kind == 'b')) {
      size_t after = at + 2;
      std::string value;
      if (take_digits(after, value, kind == 'x' ? 16 : kind == 'o' ? 8 : 2)) {
        add(TokenType::kInteger, std::string("0") + kind + value);
        return advance(after - at_);
      }
    }
    take_digits(at, digits);
    bool is_float = false;
    std::string fraction;
    if (size_t after = at + 1; at < source_.size() && source_[at] == '.' && take_digits(after, fraction)) {
      digits += "." + fraction;
      at = after;
      is_float = true;
    }
    if (at < source_.size() && (source_[at] | 0x20) == 'e') {
      size_t after = at + 1;
      std::string exponent = "e";
      if (after < source_.size() && (source_[after] == '+' || source_[after] == '-')) exponent += source_[after++];
      if (take_digits(after, exponent)) {
        digits += exponent;
        at = after;
        is_float = true;
      }
    }
    add(is_float ? TokenType::kFloat : TokenType::kInteger, digits);
    advance(at - at_);
  }

  void take_string() {
    const char quote = source_[at_];
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) error(line_, "a string has no end");
    add(TokenType::kString, unescaped(std::string_view(source_).substr(at_ + 1, end - at_ - 1)));
    advance(end + 1 - at_);
  }

  std::string unescaped(std::string_view text) const {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\' || i + 1 == text.size()) {
        out += text[i];
        continue;
      }
      const char c = text[++i];
      constexpr std::string_view kNames = "ntrabfv\\'\"";
      constexpr std::string_view kMeanings = "\n\t\r\a\b\f\v\\'\"";
      if (const size_t simple = kNames.find(c); simple != std::string_view::npos) {
        out += kMeanings[simple];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        i += append_code(text.substr(i + 1), c == 'x' ? 2 : c == 'u' ? 4 : 8, out);
      } else if (c >= '0' && c <= '7') {
        uint32_t code = 0;
        size_t digits = 0;
        for (; digits < 3 && i < text.size() && text[i] >= '0' && text[i] <= '7'; ++digits, ++i) {
          code = code * 8 + static_cast<uint32_t>(text[i] - '0');
        }
        --i;
        append_utf8(code, out);
      } else if (c != '\n') {  // a backslash at the end of a line joins it with the next
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  size_t append_code(std::string_view text, size_t digits, std::string& out) const {
    uint32_t code = 0;
    for (size_t i = 0; i < digits; ++i) {
      const char c = i < text.size() ? text[i] : '\0';
      const char lower = static_cast<char>(c | 0x20);
      const bool is_letter = lower >= 'a' && lower <= 'f';
      if (!is_digit(c) && !is_letter) error(line_, "an escape in a string lacks digits");
      code = code * 16 + static_cast<uint32_t>(is_letter ? lower - 'a' + 10 : c - '0');
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) error(line_, "an escape in a string is no character");
    append_utf8(code, out);
    return digits;
  }

  const std::string& name_;
  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source, const std::string& name) {
  if (valid_utf8_prefix(source) != source.size()) {
    fail(ErrorCode::kBadFile, "{}: byte {} is not valid UTF-8", name, valid_utf8_prefix(source));
  }
  return Lexer(source, name).run();
}

}  // namespace witan::jinja
