#pragma once

#include <vector>

#include "base/isa.h"

namespace witan::test {

// The instruction sets that this machine can run, the reference first.
inline std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (Isa isa : kAllIsas) {
    if (cpu_supports(isa)) isas.push_back(isa);
  }
  return isas;
}

}  // namespace witan::test
