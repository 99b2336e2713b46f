#pragma once

#include <array>
#include <cstddef>

#include "base/isa.h"

namespace witan {

// The variants of one op in the order of Isa. An instruction set without its own (nullptr, or left out at the end) uses
// the next weaker one's; the reference must be there.
template <typename Function>
struct IsaTable {
  std::array<Function, kAllIsas.size()> variants;

  Function operator[](Isa isa) const {
    auto index = static_cast<size_t>(isa);
    while (variants[index] == nullptr) --index;
    return variants[index];
  }
};

}  // namespace witan
