#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/regex.h"

namespace witan {

// What becomes of the text that a splitting pattern matches, with "-" matched in "a--b":
enum class SplitBehavior : uint8_t {
  kRemoved,             // a b
  kIsolated,            // a - - b
  kMergedWithPrevious,  // a- - b
  kMergedWithNext,      // a - -b
  kContiguous,          // a -- b
};

enum class SplitInvert : uint8_t { kNo, kYes };  // kYes: the pattern matches the pieces, not what divides them
enum class PrependScheme : uint8_t { kNever, kFirst, kAlways };  // kFirst: only at the very start of the text
enum class TextPlace : uint8_t { kStart, kInside };

// Cuts normalised text into the pieces that merges do not cross: a list of steps, each cutting the pieces of the one
// before.
class PreTokenizer {
 public:
  struct Split {
    Regex pattern;
    SplitBehavior behavior = SplitBehavior::kIsolated;
    SplitInvert invert = SplitInvert::kNo;
  };
  struct PrefixSpace {};  // a space before each piece that does not begin with one
  struct Metaspace {
    std::string replacement;  // for every space
    PrependScheme prepend = PrependScheme::kAlways;
    bool split = true;  // before each replacement
  };
  using Step = std::variant<Split, PrefixSpace, Metaspace>;

  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<Step> steps) : steps_(std::move(steps)) {}

  // Calls on_piece for every piece from left to right; none is empty. `text` must be valid UTF-8. Errors: see Regex.
  void split(std::string_view text, TextPlace place, RegexWorkspace& workspace,
             FunctionRef<void(std::string_view piece)> on_piece) const;

 private:
  std::vector<Step> steps_;
};

}  // namespace witan
