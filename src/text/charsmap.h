#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace witan {

// SentencePiece's precompiled_charsmap: what becomes of sequences of characters before a text is cut into pieces.
// Format: the trie's size in bytes (uint32), a double-array trie of uint32 units (darts-clone), and the replacements,
// each ended by a zero byte, which the trie's values are places in. Little-endian throughout.
class Charsmap {
 public:
  // Throws Error(kBadFile), naming `source`, for what cannot be one.
  Charsmap(std::string_view bytes, const std::string& source);

  // Replaces from left to right, the longest sequence first. `text` must be valid UTF-8; a replacement that is not is
  // left out.
  std::string normalize(std::string_view text) const;

 private:
  struct Match {
    size_t size = 0;  // bytes of the text; 0: none
    uint32_t value = 0;
  };
  Match longest_match(std::string_view text) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace witan
