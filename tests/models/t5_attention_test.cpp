#include "models/t5_attention.h"

#include <gtest/gtest.h>

#include <cmath>

namespace witan {
namespace {

// The published function, relative position by relative position.
int32_t published_bucket(int64_t relative, bool both, int32_t num_buckets, int32_t max_distance) {
  int32_t bucket = 0;
  int64_t n = -relative;
  if (both) {
    num_buckets /= 2;
    if (n < 0) bucket += num_buckets;
    n = std::abs(n);
  } else {
    n = std::max<int64_t>(n, 0);
  }
  const int32_t exact = num_buckets / 2;
  if (n < exact) return bucket + static_cast<int32_t>(n);
  const double log_ratio =
      std::log(static_cast<double>(n) / exact) / std::log(static_cast<double>(max_distance) / exact);
  return bucket + std::min(exact + static_cast<int32_t>(log_ratio * (num_buckets - exact)), num_buckets - 1);
}

TEST(T5AttentionTest, BucketsFollowThePublishedFunction) {
  const T5AttentionConfig config{.num_heads = 1, .head_dim = 1, .model_dim = 1, .num_buckets = 32, .max_distance = 128};
  for (int64_t relative = -400; relative <= 400; ++relative) {
    EXPECT_EQ(t5_bucket(config, T5Direction::kBoth, 1000 + relative, 1000), published_bucket(relative, true, 32, 128));
    EXPECT_EQ(t5_bucket(config, T5Direction::kBack, 1000 + relative, 1000), published_bucket(relative, false, 32, 128));
  }
  EXPECT_EQ(t5_bucket(config, T5Direction::kBoth, 11, 10), 17);
  EXPECT_EQ(t5_bucket(config, T5Direction::kBack, 11, 10), 0);
  EXPECT_EQ(t5_bucket(config, T5Direction::kBack, 0, 5000), 31);
}

}  // namespace
}  // namespace witan
