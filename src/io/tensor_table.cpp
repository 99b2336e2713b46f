#include "io/tensor_table.h"

#include <utility>

#include "base/error.h"
#include "base/printable.h"

namespace witan {

void TensorTable::add(TensorEntry entry) {
  const auto [found, inserted] = index_of_.emplace(entry.name, tensors_.size());
  if (!inserted) {
    fail(ErrorCode::kBadFile, "{}: tensor {} is in {} too, expected it in one file", entry.file, printable(entry.name),
         tensors_[found->second].file);
  }
  tensors_.push_back(std::move(entry));
}

const TensorEntry* TensorTable::find(std::string_view name) const {
  const auto found = index_of_.find(std::string(name));
  return found == index_of_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace witan
