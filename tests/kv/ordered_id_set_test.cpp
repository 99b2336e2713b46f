#include "kv/ordered_id_set.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace witan {
namespace {

TEST(OrderedIdSetTest, AgreesWithASortedSet) {
  std::mt19937 random(5);
  for (int32_t range : {1, 63, 64, 65, 5000, 300000, 20000000}) {
    OrderedIdSet ids;
    std::set<int32_t> expected;
    EXPECT_EQ(ids.first(), -1);
    for (int step = 0; step < 3000; ++step) {
      const auto id = static_cast<int32_t>(random() % static_cast<uint32_t>(range));
      if (random() % 2 == 0) {
        ids.insert(id);
        expected.insert(id);
      } else {
        const int32_t gone = random() % 2 == 0 && !expected.empty() ? *expected.begin() : id;
        ids.erase(gone);
        expected.erase(gone);
      }
      ASSERT_EQ(ids.first(), expected.empty() ? -1 : *expected.begin()) << range;
      ASSERT_EQ(ids.contains(id), expected.contains(id));
    }
  }
}

TEST(OrderedIdSetTest, TheHighestIdIsFound) {
  OrderedIdSet ids;
  ids.insert((1 << 30) - 1);
  EXPECT_EQ(ids.first(), (1 << 30) - 1);
  ids.erase((1 << 30) - 1);
  EXPECT_EQ(ids.first(), -1);
}

}  // namespace
}  // namespace witan
