#pragma once

#include <cstdint>

namespace witan {

// Where all entries of a sequence lie that reads some of them, until it is judged again which: set aside.
enum class KvAside : uint8_t {
  kBlocks,  // in blocks, as what is read
  kFile,    // in a file, and out of the memory that blocks may hold
};

}  // namespace witan
