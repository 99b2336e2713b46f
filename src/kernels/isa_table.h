#pragma once

#include <array>
#include <cstddef>

#include "base/isa.h"

namespace witan {

// The variants of one op, listed in the order of Isa. An instruction set without its own (nullptr, or left out at the
// end) uses the next weaker one's.
template <typename Function>
class IsaTable {
 public:
  constexpr explicit IsaTable(const std::array<Function, kAllIsas.size()>& variants) : variants_(variants) {
    for (size_t i = 1; i < variants_.size(); ++i) {
      if (variants_[i] == nullptr) variants_[i] = variants_[i - 1];
    }
  }

  constexpr Function operator[](Isa isa) const { return variants_[static_cast<size_t>(isa)]; }

 private:
  std::array<Function, kAllIsas.size()> variants_;
};

}  // namespace witan
