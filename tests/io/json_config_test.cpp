#include "io/json_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "text/json_text.h"

namespace witan {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class JsonConfigTest : public testing::Test {
 protected:
  void expect_refused(FunctionRef<void()> action, const std::vector<std::string>& fragments) {
    std::vector<std::string> all = fragments;
    all.push_back("config.json: ");
    test::expect_error(ErrorCode::kBadFile, all, action);
  }

  const std::string source_ = "config.json";
  const nlohmann::json root_ = parse_json_object(R"({
      "layers": 32, "theta": 1e6, "whole": 4096.0, "fraction": 0.5, "negative": -3,
      "huge": 9223372036854775808, "huge_float": 1e300, "tie": true, "name": "mixtral",
      "nothing": null, "ints": [1, 2.0, -3], "mixed": [1, "x"], "texts": ["a", "b"], "empty": [],
      "rope_scaling": {"factor": 4.0, "inner": {"deep": 1}, "nothing": null}})",
                                                 source_);
  const JsonConfig concrete_{root_, source_};
  const CheckpointConfig& config_ = concrete_;
};

TEST_F(JsonConfigTest, ReadsEveryType) {
  EXPECT_EQ(config_.get_int("layers"), 32);
  EXPECT_EQ(config_.get_int("negative"), -3);
  EXPECT_EQ(config_.get_double("layers"), 32.0);
  EXPECT_EQ(config_.get_double("huge_float"), 1e300);
  EXPECT_TRUE(config_.get_bool("tie"));
  EXPECT_EQ(config_.get_string("name"), "mixtral");
  EXPECT_THAT(config_.get_ints("ints"), ElementsAre(1, 2, -3));
  EXPECT_THAT(config_.get_ints("layers"), ElementsAre(32));
  EXPECT_THAT(config_.get_strings("texts"), ElementsAre("a", "b"));
  EXPECT_THAT(config_.get_strings("name"), ElementsAre("mixtral"));
  EXPECT_THAT(config_.get_ints("empty"), IsEmpty());
}

TEST_F(JsonConfigTest, AWholeNumberWrittenAsAFractionIsAnInteger) {
  EXPECT_EQ(config_.get_int("whole"), 4096);
  EXPECT_EQ(config_.get_int("theta"), 1000000);
}

TEST_F(JsonConfigTest, ADotWalksIntoObjects) {
  EXPECT_EQ(config_.get_double("rope_scaling.factor"), 4.0);
  EXPECT_EQ(config_.get_int("rope_scaling.inner.deep"), 1);
  EXPECT_TRUE(config_.has("rope_scaling"));
  EXPECT_FALSE(config_.has("rope_scaling.absent"));
  EXPECT_FALSE(config_.has("absent.factor"));
}

TEST_F(JsonConfigTest, NullCountsAsAbsent) {
  EXPECT_FALSE(config_.has("nothing"));
  EXPECT_FALSE(config_.has("nothing.inner"));
  EXPECT_FALSE(config_.has("rope_scaling.nothing"));
  EXPECT_EQ(config_.get_int("nothing", 9), 9);
  expect_refused([&] { config_.get_int("nothing"); }, {"key nothing is missing, expected an integer"});
}

TEST_F(JsonConfigTest, WalkingIntoSomethingElseIsAnError) {
  expect_refused([&] { (void)config_.has("layers.inner"); }, {"layers is the number 32, expected an object"});
  expect_refused([&] { config_.get_int("rope_scaling.factor.x"); }, {"rope_scaling.factor is the number 4.0"});
}

TEST_F(JsonConfigTest, AWrongTypeIsNamedWithItsValue) {
  expect_refused([&] { config_.get_int("fraction"); }, {"fraction is the number 0.5, expected an integer"});
  expect_refused([&] { config_.get_int("huge"); }, {"huge is the number 9223372036854775808"});
  expect_refused([&] { config_.get_int("huge_float"); }, {"huge_float is the number 1e+300"});
  expect_refused([&] { config_.get_int("tie"); }, {"tie is the bool true, expected an integer"});
  expect_refused([&] { config_.get_int("name"); }, {"name is the string \"mixtral\""});
  expect_refused([&] { config_.get_double("name"); }, {"name is the string \"mixtral\", expected a number"});
  expect_refused([&] { config_.get_bool("layers"); }, {"layers is the number 32, expected a bool"});
  expect_refused([&] { config_.get_string("rope_scaling"); }, {"rope_scaling is an object, expected a string"});
  expect_refused([&] { config_.get_ints("mixed"); }, {"mixed is the string \"x\", expected an integer"});
  expect_refused([&] { config_.get_strings("mixed"); }, {"mixed is the number 1, expected a string"});
  expect_refused([&] { config_.get_string("absent"); }, {"key absent is missing, expected a string"});
}

}  // namespace
}  // namespace witan
