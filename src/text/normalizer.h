#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "text/charsmap.h"
#include "text/regex.h"

namespace witan {

// The text in a fragment's first place gets a prefix; what follows an invalid byte inside a fragment does not.
enum class FragmentPart : uint8_t { kFirst, kLater };

// Rewrites text before it is split: a list of steps, applied in order.
class Normalizer {
 public:
  enum class Form : uint8_t { kNfc, kNfd, kNfkc, kNfkd };
  struct Unicode {
    Form form;
  };
  struct Lowercase {};
  struct Prepend {
    std::string prefix;  // not put before an empty text
  };
  struct Replace {
    std::string from;  // literal, not empty
    std::string to;
  };
  struct ReplaceMatches {
    Regex from;
    std::string to;  // literal
  };
  struct Strip {
    bool left;
    bool right;
  };
  // SentencePiece's remove_extra_whitespaces: none at the ends, single ones in between.
  struct CollapseSpaces {};
  struct Precompiled {
    std::shared_ptr<const Charsmap> map;
  };
  using Step = std::variant<Unicode, Lowercase, Prepend, Replace, ReplaceMatches, Strip, CollapseSpaces, Precompiled>;

  Normalizer() = default;
  explicit Normalizer(std::vector<Step> steps) : steps_(std::move(steps)) {}

  bool empty() const { return steps_.empty(); }

  // `text` must be valid UTF-8. Throws Error(kInvalidArgument) when the result grows out of proportion, as it can with
  // steps made for that.
  std::string normalize(std::string_view text, FragmentPart part, RegexWorkspace& workspace) const;

 private:
  std::vector<Step> steps_;
};

}  // namespace witan
