#include "text/unigram_model.h"

#include <algorithm>

#include "base/check.h"
#include "text/unicode.h"

namespace witan {
namespace {

constexpr double kUnknownPenalty = 10.0;

uint64_t edge_key(uint64_t node, char byte) { return node << 8 | static_cast<uint8_t>(byte); }

// The best way to cut the text up to some place.
struct Step {
  double score = 0.0;
  size_t begin = SIZE_MAX;  // of its last piece; SIZE_MAX: no way found
  TokenId token = -1;       // -1: an unknown character
};

}  // namespace

void UnigramModel::add(std::string_view piece, TokenId id, double score) {
  WITAN_CHECK(!piece.empty() && piece.size() <= kMaxPieceBytes, "{}", piece.size());
  uint64_t node = 0;
  for (const char byte : piece) {
    if (edges_.insert(edge_key(node, byte), nodes_.size())) nodes_.emplace_back();
    node = *edges_.find(edge_key(node, byte));
  }
  nodes_[node] = {id, score};
  min_score_ = std::min(min_score_, score);
}

void UnigramModel::encode(std::string_view text, const std::array<TokenId, 256>& byte_tokens,
                          std::optional<TokenId> unknown, std::vector<TokenId>& out) const {
  std::vector<Step> best(text.size() + 1);
  best[0].begin = 0;
  const auto offer = [&](size_t begin, size_t end, double score, TokenId token) {
    const double total = best[begin].score + score;
    if (best[end].begin == SIZE_MAX || total > best[end].score) best[end] = {total, begin, token};
  };
  for (size_t begin = 0; begin < text.size();) {
    const size_t character = next_utf8(text, begin).size;
    bool is_covered = false;
    uint64_t node = 0;
    for (size_t end = begin; end < text.size();) {
      const uint64_t* next = edges_.find(edge_key(node, text[end]));
      if (next == nullptr) break;
      node = *next;
      ++end;
      if (nodes_[node].token < 0) continue;
      offer(begin, end, nodes_[node].score, nodes_[node].token);
      is_covered = is_covered || end == begin + character;
    }
    if (!is_covered) offer(begin, begin + character, min_score_ - kUnknownPenalty, -1);
    begin += character;
  }

  std::vector<size_t> ends;  // of the pieces, last first
  for (size_t end = text.size(); end > 0; end = best[end].begin) ends.push_back(end);
  bool after_unknown = false;
  for (auto end = ends.rbegin(); end != ends.rend(); ++end) {
    const Step& step = best[*end];
    if (step.token >= 0) {
      out.push_back(step.token);
      after_unknown = false;
      continue;
    }
    const std::string_view bytes = text.substr(step.begin, *end - step.begin);
    const auto token_of = [&](char byte) { return byte_tokens[static_cast<uint8_t>(byte)]; };
    if (std::ranges::all_of(bytes, [&](char byte) { return token_of(byte) >= 0; })) {
      for (const char byte : bytes) out.push_back(token_of(byte));
    } else if (unknown && !after_unknown) {
      out.push_back(*unknown);
      after_unknown = true;
    }
  }
}

}  // namespace witan
