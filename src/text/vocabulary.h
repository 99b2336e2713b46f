#pragma once

#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/types.h"
#include "text/tokenizer.h"

namespace witan {

// The pieces of a tokenizer with their kinds, both ways. Ids need not be dense while it is filled; those never set are
// empty pieces of kind kUnused. An empty piece is found by no text.
class Vocabulary {
 public:
  // `num_entries` is what the file lists; ids may run this far past it. It bounds what a hostile id can allocate.
  explicit Vocabulary(size_t num_entries) : id_limit_(num_entries + kMaxHoles) {}
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  // Throws Error(kBadFile), naming `source`, for an id that is out of range or taken and a piece that is there already.
  void set(TokenId id, std::string piece, TokenKind kind, const std::string& source);
  void set_kind(TokenId id, TokenKind kind) { kinds_[id] = kind; }

  int32_t size() const { return static_cast<int32_t>(pieces_.size()); }
  const std::string& piece(TokenId id) const { return pieces_[id]; }
  TokenKind kind(TokenId id) const { return kinds_[id]; }
  std::optional<TokenId> find(std::string_view piece) const;

 private:
  static constexpr size_t kMaxHoles = 65536;

  size_t id_limit_;
  std::deque<std::string> pieces_;  // a deque, because ids_ points into it while it grows
  std::vector<TokenKind> kinds_;
  std::unordered_map<std::string_view, TokenId> ids_;
};

}  // namespace witan
