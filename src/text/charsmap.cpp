#include "text/charsmap.h"

#include <cstring>

#include "base/error.h"
#include "text/unicode.h"

namespace witan {
namespace {

// The fields of a unit (darts-clone, "Double-ARray Trie System").
uint32_t offset(uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); }
bool has_value(uint32_t unit) { return ((unit >> 8) & 1) != 0; }
uint32_t label(uint32_t unit) { return unit & (1u << 31 | 0xFF); }
uint32_t value(uint32_t unit) { return unit & ((1u << 31) - 1); }

}  // namespace

Charsmap::Charsmap(std::string_view bytes, const std::string& source) {
  uint32_t trie_bytes = 0;
  if (bytes.empty()) return;
  if (bytes.size() >= sizeof(trie_bytes)) std::memcpy(&trie_bytes, bytes.data(), sizeof(trie_bytes));
  if (bytes.size() < sizeof(trie_bytes) || trie_bytes % sizeof(uint32_t) != 0 ||
      trie_bytes > bytes.size() - sizeof(trie_bytes)) {
    fail(ErrorCode::kBadFile, "{}: precompiled_charsmap of {} bytes says that its trie has {}", source, bytes.size(),
         trie_bytes);
  }
  bytes.remove_prefix(sizeof(trie_bytes));
  units_.resize(trie_bytes / sizeof(uint32_t));
  if (trie_bytes > 0) std::memcpy(units_.data(), bytes.data(), trie_bytes);
  replacements_ = bytes.substr(trie_bytes);
  if (!replacements_.empty() && replacements_.back() != '\0') {
    fail(ErrorCode::kBadFile, "{}: precompiled_charsmap ends inside a replacement", source);
  }
}

Charsmap::Match Charsmap::longest_match(std::string_view text) const {
  Match match;
  if (units_.empty()) return match;
  uint32_t node = offset(units_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const uint32_t byte = static_cast<uint8_t>(text[i]);
    node ^= byte;
    if (byte == 0 || node >= units_.size() || label(units_[node]) != byte) break;
    const uint32_t unit = units_[node];
    node ^= offset(unit);
    if (!has_value(unit)) continue;
    if (node >= units_.size()) break;
    match = {i + 1, value(units_[node])};
  }
  return match;
}

std::string Charsmap::normalize(std::string_view text) const {
  // A trie that loops could match a whole text from every place in it; real sequences have a few characters.
  constexpr size_t kMaxMatchBytes = 64;
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Match match = longest_match(text.substr(at, kMaxMatchBytes));
    const bool ends_between =
        at + match.size >= text.size() || (static_cast<uint8_t>(text[at + match.size]) & 0xC0) != 0x80;
    if (match.size > 0 && match.value < replacements_.size() && ends_between) {
      const std::string_view replacement(replacements_.c_str() + match.value);
      if (valid_utf8_prefix(replacement) == replacement.size()) out += replacement;
      at += match.size;
    } else {
      const size_t size = next_utf8(text, at).size;
      out += text.substr(at, size);
      at += size;
    }
  }
  return out;
}

}  // namespace witan
