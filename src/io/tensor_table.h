#pragma once

#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/checkpoint.h"

namespace witan {

// A checkpoint's tensors in file order, and where each name is.
class TensorTable {
 public:
  // Throws Error(kBadFile) naming both files when a tensor of that name is there already.
  void add(TensorEntry entry);

  std::span<const TensorEntry> tensors() const { return tensors_; }
  const TensorEntry* find(std::string_view name) const;

 private:
  std::vector<TensorEntry> tensors_;
  std::unordered_map<std::string, size_t> index_of_;
};

}  // namespace witan
