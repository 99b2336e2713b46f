#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/function_ref.h"
#include "base/types.h"
#include "text/flat_map.h"
#include "text/tokenizer.h"

namespace witan {

enum class SpaceAround : uint8_t { kKept, kTaken };       // kTaken: whitespace on that side belongs to the token
enum class MatchInWord : uint8_t { kAllowed, kRefused };  // kRefused: no match next to a letter or digit

// A token that is found in the text before it is cut into pieces.
struct AddedToken {
  TokenId id;
  std::string content;                     // not empty
  ParseSpecial needs = ParseSpecial::kNo;  // kYes: found only where special tokens are parsed
  SpaceAround left = SpaceAround::kKept;
  SpaceAround right = SpaceAround::kKept;
  MatchInWord in_word = MatchInWord::kAllowed;
};

// Finds added tokens in a text: leftmost first, and the longest of those that begin in one place. Time and memory are
// linear in the text, whatever the tokens are: an Aho-Corasick automaton of the reversed contents runs over the text
// from its end, so that it knows in each place the longest token that begins there.
class AddedTokens {
 public:
  AddedTokens() = default;
  // Throws Error(kUnsupported), naming `source`, when the contents hold too many bytes.
  AddedTokens(std::vector<AddedToken> tokens, const std::string& source);

  bool empty() const { return tokens_.empty(); }

  struct Fragment {
    std::string_view text;
    const AddedToken* token;  // nullptr: plain text between tokens, not empty
  };
  // Calls on_fragment for every part of `text` from left to right. Whitespace that a token takes is in no fragment.
  void split(std::string_view text, ParseSpecial parse_special, FunctionRef<void(const Fragment&)> on_fragment) const;

 private:
  struct Node {
    int32_t suffix_link = 0;
    std::array<int32_t, 2> longest = {-1, -1};  // the longest token that ends here, by ParseSpecial
  };
  struct Match {
    size_t begin;
    int32_t token;
  };

  void link(const std::vector<std::vector<uint64_t>>& edges_by_depth);
  int32_t child(int32_t node, uint8_t byte) const;
  std::vector<Match> longest_matches(std::string_view text, ParseSpecial parse_special) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  FlatMap edges_;  // node * 256 + byte -> node
  std::array<int32_t, 256> root_children_{};
};

}  // namespace witan
