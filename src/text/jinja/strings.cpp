#include "text/jinja/strings.h"

#include <utf8proc.h>

#include <algorithm>

#include "text/unicode.h"

namespace witan::jinja {
namespace {

char32_t upper(char32_t c) { return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))); }
char32_t lower(char32_t c) { return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))); }
char32_t title(char32_t c) { return static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))); }

void append_upper(char32_t c, std::string& out) {
  if (c == 0xDF) {
    out += "SS";  // the sharp s has no capital of one character
  } else {
    append_utf8(upper(c), out);
  }
}
void append_lower(char32_t c, std::string& out) {
  append_utf8(lower(c), out);
  if (c == 0x130) append_utf8(0x307, out);
}
void append_title(char32_t c, std::string& out) {
  if (c == 0xDF) {
    out += "Ss";
  } else {
    append_utf8(title(c), out);
  }
}

bool has_case(char32_t c) { return upper(c) != c || lower(c) != c || c == 0xDF; }

// str.isspace() has four separators that the Unicode property lacks.
bool is_space(char32_t c) { return is_whitespace(c) || (c >= 0x1C && c <= 0x1F); }

template <typename Append>
std::string mapped(std::string_view text, Append append) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = next_utf8(text, at);
    append(c.code_point, out);
    at += c.size;
  }
  return out;
}

size_t previous(std::string_view text, size_t end) {
  --end;
  while (end > 0 && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80) --end;
  return end;
}

}  // namespace

size_t num_characters(std::string_view text) {
  return static_cast<size_t>(
      std::ranges::count_if(text, [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

std::vector<size_t> character_starts(std::string_view text) {
  std::vector<size_t> starts;
  starts.reserve(text.size() + 1);
  for (size_t at = 0; at < text.size(); at += next_utf8(text, at).size) starts.push_back(at);
  starts.push_back(text.size());
  return starts;
}

std::string html_escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string upper_case(std::string_view text) { return mapped(text, append_upper); }
std::string lower_case(std::string_view text) { return mapped(text, append_lower); }

std::string capitalized(std::string_view text) {
  bool first = true;
  return mapped(text, [&](char32_t c, std::string& out) {
    first ? append_title(c, out) : append_lower(c, out);
    first = false;
  });
}

std::string title_case(std::string_view text) {
  bool in_word = false;
  return mapped(text, [&](char32_t c, std::string& out) {
    in_word ? append_lower(c, out) : append_title(c, out);
    in_word = has_case(c);
  });
}

std::string filter_title(std::string_view text) {
  bool in_word = false;
  return mapped(text, [&](char32_t c, std::string& out) {
    if (is_space(c) || std::u32string_view(U"-({[<").find(c) != std::u32string_view::npos) {
      append_utf8(c, out);
      in_word = false;
    } else {
      in_word ? append_lower(c, out) : append_upper(c, out);
      in_word = true;
    }
  });
}

bool is_cased(std::string_view text, bool is_upper) {
  bool any = false;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = next_utf8(text, at);
    at += c.size;
    if (!has_case(c.code_point)) continue;
    const bool matches =
        is_upper ? upper(c.code_point) == c.code_point && c.code_point != 0xDF : lower(c.code_point) == c.code_point;
    if (!matches) return false;
    any = true;
  }
  return any;
}

std::string_view stripped(std::string_view text, const std::string_view* set, Side side) {
  const auto taken = [&](size_t at) {
    const Utf8Char c = next_utf8(text, at);
    return set == nullptr ? is_space(c.code_point) : set->find(text.substr(at, c.size)) != std::string_view::npos;
  };
  size_t begin = 0;
  size_t end = text.size();
  while (side != Side::kRight && begin < end && taken(begin)) begin += next_utf8(text, begin).size;
  while (side != Side::kLeft && end > begin && taken(previous(text, end))) end = previous(text, end);
  return text.substr(begin, end - begin);
}

std::vector<std::string> split_at_space(std::string_view text, int64_t max_splits) {
  std::vector<std::string> parts;
  text = stripped(text, nullptr, Side::kLeft);
  while (!text.empty()) {
    if (max_splits >= 0 && std::ssize(parts) == max_splits) {
      parts.emplace_back(stripped(text, nullptr, Side::kRight));
      break;
    }
    size_t end = 0;
    while (end < text.size() && !is_space(next_utf8(text, end).code_point)) end += next_utf8(text, end).size;
    parts.emplace_back(text.substr(0, end));
    text = stripped(text.substr(end), nullptr, Side::kLeft);
  }
  return parts;
}

std::vector<std::string> split(std::string_view text, std::string_view separator, int64_t max_splits) {
  std::vector<std::string> parts;
  for (;;) {
    const size_t end =
        max_splits >= 0 && std::ssize(parts) == max_splits ? std::string_view::npos : text.find(separator);
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + separator.size());
  }
}

std::vector<std::string> split_from_end(std::string_view text, std::string_view separator, int64_t max_splits) {
  std::vector<std::string> parts;
  for (;;) {
    size_t begin = text.size() < separator.size() ? std::string_view::npos : text.rfind(separator);
    if (max_splits >= 0 && std::ssize(parts) == max_splits) begin = std::string_view::npos;
    if (begin == std::string_view::npos) break;
    parts.emplace_back(text.substr(begin + separator.size()));
    text = text.substr(0, begin);
  }
  parts.emplace_back(text);
  std::ranges::reverse(parts);
  return parts;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = next_utf8(text, at);
    const char32_t code = c.code_point;
    const bool ends = (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) || code == 0x85 ||
                      code == 0x2028 || code == 0x2029;
    size_t next = at + c.size;
    if (ends) {
      if (code == '\r' && next < text.size() && text[next] == '\n') ++next;
      lines.push_back(text.substr(begin, (keep_ends ? next : at) - begin));
      begin = next;
    }
    at = next;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::string replaced(std::string_view text, std::string_view from, std::string_view to, int64_t count) {
  std::string out;
  size_t at = 0;
  for (int64_t done = 0; count < 0 || done < count; ++done) {
    if (from.empty()) {
      if (at > text.size() || (at == text.size() && done > 0 && text.empty())) break;
      out += to;
      if (at == text.size()) return out;
      const size_t size = next_utf8(text, at).size;
      out += text.substr(at, size);
      at += size;
      continue;
    }
    const size_t found = text.find(from, at);
    if (found == std::string_view::npos) break;
    out.append(text.substr(at, found - at)).append(to);
    at = found + from.size();
  }
  return out.append(text.substr(std::min(at, text.size())));
}

size_t replaced_bytes(std::string_view text, std::string_view from, std::string_view to) {
  const size_t places = from.empty() ? text.size() + 1 : text.size() / from.size();
  size_t bytes = 0;
  if (to.size() <= from.size()) return text.size();
  if (__builtin_mul_overflow(places, to.size(), &bytes) || __builtin_add_overflow(bytes, text.size(), &bytes)) {
    return SIZE_MAX;
  }
  return bytes;
}

}  // namespace witan::jinja
