#include "text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "text/unicode.h"

namespace witan {

namespace {

// NFKC turns one character into at most 18; anything beyond twice that is a list of replacements gone wild.
constexpr size_t kMaxGrowth = 36;
constexpr size_t kMaxGrowthBytes = 4096;

int combining_class(utf8proc_int32_t code_point) {
  return static_cast<int>(utf8proc_get_property(code_point)->combining_class);
}

bool is_composing(Normalizer::Form form) { return form == Normalizer::Form::kNfc || form == Normalizer::Form::kNfkc; }
bool is_compatibility(Normalizer::Form form) {
  return form == Normalizer::Form::kNfkc || form == Normalizer::Form::kNfkd;
}

// The part of `text` that no form changes and nothing after it can combine with.
size_t inert_prefix(std::string_view text, Normalizer::Form form) {
  // Below U+0300 everything is in NFC, below U+0080 in the other forms too. The last character before the first other
  // one may combine with it.
  const char32_t limit = form == Normalizer::Form::kNfc ? 0x300 : 0x80;
  size_t last = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = next_utf8(text, at);
    if (c.code_point >= limit) return last;
    last = at;
    at += c.size;
  }
  return text.size();
}

std::vector<utf8proc_int32_t> decompose(std::string_view text, Normalizer::Form form) {
  const auto options =
      static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | (is_compatibility(form) ? UTF8PROC_COMPAT : 0));
  std::vector<utf8proc_int32_t> code_points;
  code_points.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = next_utf8(text, at);
    at += c.size;
    constexpr int kMaxDecomposition = 32;  // the longest has 18
    utf8proc_int32_t parts[kMaxDecomposition];
    int boundary_class = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.code_point), parts,
                                                           kMaxDecomposition, options, &boundary_class);
    WITAN_CHECK(count >= 0 && count <= kMaxDecomposition, "{}", count);
    code_points.insert(code_points.end(), parts, parts + count);
  }
  return code_points;
}

// Canonical ordering: combining marks that follow a starter are sorted by class. utf8proc's own sort is quadratic in
// the number of marks in a row, which a request may choose.
void sort_marks(std::vector<utf8proc_int32_t>& code_points) {
  for (size_t at = 0; at < code_points.size();) {
    if (combining_class(code_points[at]) == 0) {
      ++at;
      continue;
    }
    size_t end = at;
    while (end < code_points.size() && combining_class(code_points[end]) != 0) ++end;
    std::stable_sort(code_points.begin() + at, code_points.begin() + end,
                     [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    at = end;
  }
}

std::string to_form(std::string_view text, Normalizer::Form form) {
  const size_t inert = inert_prefix(text, form);
  std::string out(text.substr(0, inert));
  if (inert == text.size()) return out;
  std::vector<utf8proc_int32_t> code_points = decompose(text.substr(inert), form);
  sort_marks(code_points);
  auto size = static_cast<utf8proc_ssize_t>(code_points.size());
  if (is_composing(form)) {
    const auto options = static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    size = utf8proc_normalize_utf32(code_points.data(), size, options);
    WITAN_CHECK(size >= 0, "{}", size);
  }
  for (utf8proc_ssize_t i = 0; i < size; ++i) append_utf8(static_cast<char32_t>(code_points[i]), out);
  return out;
}

std::string lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = next_utf8(text, at);
    at += c.size;
    append_utf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c.code_point))), out);
    if (c.code_point == 0x130) append_utf8(0x307, out);  // the one character whose lower case has two (SpecialCasing)
  }
  return out;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t at = 0;
  for (size_t found; (found = text.find(from, at)) != std::string_view::npos; at = found + from.size()) {
    out.append(text.substr(at, found - at)).append(to);
  }
  return out.append(text.substr(at));
}

std::string_view strip(std::string_view text, bool left, bool right) {
  size_t begin = 0;
  while (left && begin < text.size()) {
    const Utf8Char c = next_utf8(text, begin);
    if (!is_whitespace(c.code_point)) break;
    begin += c.size;
  }
  size_t end = text.size();
  while (right && end > begin) {
    size_t last = end - 1;
    while ((static_cast<uint8_t>(text[last]) & 0xC0) == 0x80) --last;
    if (!is_whitespace(next_utf8(text, last).code_point)) break;
    end = last;
  }
  return text.substr(begin, end - begin);
}

std::string collapse_spaces(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c != ' ' || (!out.empty() && out.back() != ' ')) out.push_back(c);
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

struct Apply {
  const std::string& text;
  FragmentPart part;
  RegexWorkspace& workspace;

  std::string operator()(const Normalizer::Unicode& step) const { return to_form(text, step.form); }
  std::string operator()(const Normalizer::Lowercase&) const { return lowercase(text); }
  std::string operator()(const Normalizer::Prepend& step) const {
    return text.empty() || part == FragmentPart::kLater ? text : step.prefix + text;
  }
  std::string operator()(const Normalizer::Replace& step) const { return replace_all(text, step.from, step.to); }
  std::string operator()(const Normalizer::ReplaceMatches& step) const {
    std::string out;
    size_t at = 0;
    step.from.for_each_match(text, workspace, [&](size_t begin, size_t end) {
      out.append(text, at, begin - at).append(step.to);
      at = end;
    });
    return out.append(text, at);
  }
  std::string operator()(const Normalizer::Strip& step) const {
    return std::string(strip(text, step.left, step.right));
  }
  std::string operator()(const Normalizer::CollapseSpaces&) const { return collapse_spaces(text); }
  std::string operator()(const Normalizer::Precompiled& step) const { return step.map->normalize(text); }
};

}  // namespace

std::string Normalizer::normalize(std::string_view text, FragmentPart part, RegexWorkspace& workspace) const {
  const size_t limit = kMaxGrowth * text.size() + kMaxGrowthBytes;
  std::string result(text);
  for (const Step& step : steps_) {
    result = std::visit(Apply{result, part, workspace}, step);
    if (result.size() > limit) {
      fail(ErrorCode::kInvalidArgument, "the tokenizer's normalizer turns {} bytes of text into more than {}",
           text.size(), limit);
    }
  }
  return result;
}

}  // namespace witan
