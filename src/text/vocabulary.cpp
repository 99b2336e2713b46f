#include "text/vocabulary.h"

#include <utility>

#include "base/error.h"

namespace witan {

void Vocabulary::set(TokenId id, std::string piece, TokenKind kind, const std::string& source) {
  if (id < 0 || static_cast<size_t>(id) >= id_limit_) {
    fail(ErrorCode::kBadFile, "{}: token \"{}\" has id {}, expected 0 to {}", source, piece, id, id_limit_ - 1);
  }
  if (id >= size()) {
    pieces_.resize(id + 1);
    kinds_.resize(id + 1, TokenKind::kUnused);
  }
  if (!pieces_[id].empty()) {
    fail(ErrorCode::kBadFile, "{}: tokens \"{}\" and \"{}\" have the same id {}", source, pieces_[id], piece, id);
  }
  pieces_[id] = std::move(piece);
  kinds_[id] = kind;
  if (pieces_[id].empty()) return;
  const auto [found, inserted] = ids_.emplace(pieces_[id], id);
  if (!inserted) {
    fail(ErrorCode::kBadFile, "{}: token \"{}\" is there twice, with ids {} and {}", source, pieces_[id], found->second,
         id);
  }
}

std::optional<TokenId> Vocabulary::find(std::string_view piece) const {
  const auto found = ids_.find(piece);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

}  // namespace witan
