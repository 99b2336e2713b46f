#pragma once

#include <cstdint>

namespace witan {

// Where the entries of a sequence lie that it does not read for now: set aside.
enum class KvAside : uint8_t {
  kBlocks,  // in blocks, as what is read
  kFile,    // in a file, and out of the memory that blocks may hold
};

}  // namespace witan
