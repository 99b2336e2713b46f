#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace witan {

// A set of ids in [0, 2^30) that finds its lowest member in a few steps: a bitmap, with a bitmap over its non-zero
// words, and so on up. Constant time; bytes in proportion to the highest id.
class OrderedIdSet {
 public:
  void insert(int32_t id) {
    for (auto& level : levels_) {
      const auto word = static_cast<size_t>(id) / 64;
      if (word >= level.size()) level.resize(word + 1);
      const bool was_empty = level[word] == 0;
      level[word] |= bit_of(id);
      if (!was_empty) return;
      id = static_cast<int32_t>(word);
    }
  }

  void erase(int32_t id) {
    for (auto& level : levels_) {
      const auto word = static_cast<size_t>(id) / 64;
      if (word >= level.size()) return;
      level[word] &= ~bit_of(id);
      if (level[word] != 0) return;
      id = static_cast<int32_t>(word);
    }
  }

  bool contains(int32_t id) const {
    const auto word = static_cast<size_t>(id) / 64;
    return word < levels_[0].size() && (levels_[0][word] & bit_of(id)) != 0;
  }

  // The lowest member, or -1.
  int32_t first() const {
    if (levels_.back().empty() || levels_.back()[0] == 0) return -1;
    size_t id = 0;
    for (auto level = levels_.rbegin(); level != levels_.rend(); ++level) {
      id = id * 64 + static_cast<size_t>(std::countr_zero((*level)[id]));
    }
    return static_cast<int32_t>(id);
  }

 private:
  static uint64_t bit_of(int32_t id) { return uint64_t{1} << (static_cast<uint32_t>(id) % 64); }

  std::array<std::vector<uint64_t>, 5> levels_;  // bits of ids first, one word last
};

}  // namespace witan
