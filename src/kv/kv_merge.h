#pragma once

#include <cstdint>
#include <vector>

namespace witan {

// How the values of entries that a table drops go on in those that it keeps, k_0 < k_1 < ... Dropped entries are in
// groups, one for each kept entry, which may be empty:
//
//   S_j          = sum of weights[i] * value of sources[i], over i of group j
//   value of k_j = own[j] * value of k_j + S_(j - reach + 1) + ... + S_j
//
// in float32 and in this order. Keys stay as they are, and so do values that get nothing.
struct KvMerge {
  int32_t reach = 1;
  std::vector<float> own = {};           // [kept entries]
  std::vector<int32_t> group_ends = {};  // [kept entries] group j: i from group_ends[j - 1], or 0, to group_ends[j]
  std::vector<int32_t> sources = {};     // dropped entries, group by group
  std::vector<float> weights = {};       // [sources]

  bool empty() const { return sources.empty(); }
};

}  // namespace witan
