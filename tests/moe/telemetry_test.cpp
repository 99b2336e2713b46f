#include "moe/telemetry.h"

#include <gtest/gtest.h>

namespace witan {
namespace {

TEST(RouterTelemetryTest, CountsChoicesWeightsStepsAndDistinctExperts) {
  RouterTelemetry telemetry(2, 4, 2);
  telemetry.begin_step();
  telemetry.record(0, std::vector<int32_t>{1, 3, 1, 0}, std::vector<float>{0.5f, 0.25f, 0.75f, 0.125f});
  telemetry.record(1, std::vector<int32_t>{2, 0, 2, 0}, std::vector<float>{1, 1, 1, 1});
  EXPECT_EQ(telemetry.distinct_in_last_step(), 5);
  telemetry.begin_step();
  telemetry.record(0, std::vector<int32_t>{1, 2}, std::vector<float>{0.5f, 0.5f});

  EXPECT_EQ(telemetry.num_steps(), 2);
  EXPECT_EQ(telemetry.count(0, 1), 3);
  EXPECT_DOUBLE_EQ(telemetry.weight_sum(0, 1), 1.75);
  EXPECT_EQ(telemetry.last_step(0, 1), 2);
  EXPECT_EQ(telemetry.last_step(0, 3), 1);
  EXPECT_EQ(telemetry.last_step(1, 1), 0);
  EXPECT_EQ(telemetry.distinct_in_last_step(), 2);
  EXPECT_EQ(telemetry.distinct_ever(), 6);
  EXPECT_EQ(std::vector<int32_t>(telemetry.last_experts(0).begin(), telemetry.last_experts(0).end()),
            (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(std::vector<float>(telemetry.last_weights(0).begin(), telemetry.last_weights(0).end()),
            (std::vector<float>{0.5f, 0.5f}));
  EXPECT_TRUE(telemetry.last_experts(1).empty());
  EXPECT_TRUE(telemetry.last_weights(1).empty());
}

TEST(RouteOverlapTest, IsTheShareOfTheExpertsOfEitherThatBothChose) {
  const auto overlap = [](const std::vector<int32_t>& experts, const std::vector<int32_t>& others) {
    EXPECT_EQ(route_overlap(experts, others), route_overlap(others, experts));
    return route_overlap(experts, others);
  };
  EXPECT_EQ(overlap({4, 1}, {1, 4}), 1.0) << "in any order";
  EXPECT_DOUBLE_EQ(overlap({4, 1}, {1, 2}), 1.0 / 3);
  EXPECT_DOUBLE_EQ(overlap({4, 1, 0, 7}, {1, 4, 7, 5}), 3.0 / 5);
  EXPECT_EQ(overlap({4, 1}, {2, 3}), 0.0);
  EXPECT_DOUBLE_EQ(overlap({4, kNoExpert}, {1, 4}), 0.5);
  EXPECT_EQ(overlap({kNoExpert}, {1}), 0.0);
  EXPECT_EQ(overlap({kNoExpert}, {kNoExpert}), 1.0);
}

}  // namespace
}  // namespace witan
