#pragma once

#include <cstdint>

namespace witan {

// How many of some entries stay: `tokens`, or where that is 0 the share `ratio`, but at least `floor` and at least
// one.
struct KvBudget {
  double ratio = 1.0;
  int32_t tokens = 0;
  int32_t floor = 0;

  // At most num_entries.
  int32_t of(int32_t num_entries) const;

  bool operator==(const KvBudget&) const = default;
};

}  // namespace witan
