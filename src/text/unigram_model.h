#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/types.h"
#include "text/flat_map.h"

namespace witan {

// A unigram language model over pieces: a text is cut into those whose scores (log probabilities) add up to the most.
//
// Source: Kudo, "Subword Regularization" (arXiv 1804.10959), section 3.2, with SentencePiece's rules for what no piece
// covers: a character alone, at the lowest score minus 10; of several ways to the same sum, the one found first by
// ascending begin and length.
class UnigramModel {
 public:
  // Pieces longer than this would make encoding quadratic; SentencePiece's own are 16 characters at most.
  static constexpr size_t kMaxPieceBytes = 512;

  // `piece` is not empty and has at most kMaxPieceBytes.
  void add(std::string_view piece, TokenId id, double score);

  // Appends the tokens of `text` (valid UTF-8). Unknown characters become their bytes' tokens where all of them have
  // one, else one `unknown` token for those in a row; without that they are left out.
  void encode(std::string_view text, const std::array<TokenId, 256>& byte_tokens, std::optional<TokenId> unknown,
              std::vector<TokenId>& out) const;

 private:
  struct Node {
    TokenId token = -1;
    double score = 0.0;
  };

  std::vector<Node> nodes_{1};
  FlatMap edges_;  // node * 256 + byte -> node
  double min_score_ = 0.0;
};

}  // namespace witan
