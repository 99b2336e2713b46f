#include "kv/policy/query_window.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace witan {
namespace {

TEST(QueryWindow, ThatFollowsATextHasTheQueriesOfItsLastTokens) {
  constexpr int32_t kLayers = 2;
  constexpr int32_t kHeads = 2;
  constexpr int32_t kDim = 3;
  constexpr int32_t kMost = 4;
  MemoryPool pool(size_t{1} << 24);
  QueryWindow window(pool, kLayers, kHeads, kDim, 0, kMost);
  for (int32_t token = 0; token < 19; ++token) {
    const int32_t first = std::max(0, token + 1 - kMost);
    window.move_to(first, token + 1 - first);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      std::fill_n(window.queries(layer, token), kHeads * kDim, static_cast<float>(100 * layer + token));
    }
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      for (int32_t t = first; t <= token; ++t) {
        for (int32_t i = 0; i < kHeads * kDim; ++i) {
          EXPECT_EQ(window.queries(layer, t)[i], static_cast<float>(100 * layer + t)) << token;
        }
      }
    }
    EXPECT_EQ(window.has(first - 1), false);
    EXPECT_EQ(window.has(token + 1), false);
  }
  window.move_to(18, 1);  // judged before: shorter
  EXPECT_FALSE(window.has(17));
  EXPECT_EQ(window.queries(1, 18)[0], 118.0f);
}

}  // namespace
}  // namespace witan
