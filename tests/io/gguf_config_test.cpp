#include "io/gguf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "io/byte_builder.h"
#include "support/expect_error.h"

namespace witan {
namespace {

using test::as_bytes;
using test::GgufBuilder;
using testing::ElementsAre;
using testing::IsEmpty;

class GgufConfigTest : public testing::Test {
 protected:
  void expect_refused(FunctionRef<void()> action, const std::vector<std::string>& fragments) {
    std::vector<std::string> all = fragments;
    all.push_back("m.gguf: ");
    test::expect_error(ErrorCode::kBadFile, all, action);
  }

  const std::string file_ = GgufBuilder()
                                .scalar<uint8_t>("u8", GgufType::kUint8, 255)
                                .scalar<int8_t>("i8", GgufType::kInt8, -128)
                                .scalar<uint16_t>("u16", GgufType::kUint16, 65535)
                                .scalar<int16_t>("i16", GgufType::kInt16, -32768)
                                .uint32("u32", 4294967295u)
                                .scalar<int32_t>("i32", GgufType::kInt32, -5)
                                .scalar<uint64_t>("u64", GgufType::kUint64, uint64_t{1} << 62)
                                .scalar<uint64_t>("u64_huge", GgufType::kUint64, uint64_t{1} << 63)
                                .scalar<int64_t>("i64", GgufType::kInt64, std::numeric_limits<int64_t>::min())
                                .scalar<float>("f32", GgufType::kFloat32, 0.5f)
                                .scalar<double>("f64", GgufType::kFloat64, 0.1)
                                .scalar<float>("nan", GgufType::kFloat32, std::nanf(""))
                                .scalar<uint8_t>("yes", GgufType::kBool, 1)
                                .text("text", "hello")
                                .array<uint16_t>("ints", GgufType::kUint16, {1, 2, 3})
                                .array<int8_t>("flags", GgufType::kBool, {1, 0})
                                .array<float>("floats", GgufType::kFloat32, {1.5f, -INFINITY})
                                .array<int32_t>("empty", GgufType::kInt32, {})
                                .texts("texts", {"a", "b"})
                                .build();
  const GgufFile gguf_ = parse_gguf(as_bytes(file_), "m.gguf");
  const std::string source_ = "m.gguf";
  const GgufConfig concrete_{gguf_, source_};
  const CheckpointConfig& config_ = concrete_;
};

TEST_F(GgufConfigTest, IntegersOfEveryWidthAreIntegers) {
  EXPECT_EQ(config_.get_int("u8"), 255);
  EXPECT_EQ(config_.get_int("i8"), -128);
  EXPECT_EQ(config_.get_int("u16"), 65535);
  EXPECT_EQ(config_.get_int("i16"), -32768);
  EXPECT_EQ(config_.get_int("u32"), 4294967295);
  EXPECT_EQ(config_.get_int("i32"), -5);
  EXPECT_EQ(config_.get_int("u64"), int64_t{1} << 62);
  EXPECT_EQ(config_.get_int("i64"), std::numeric_limits<int64_t>::min());
}

TEST_F(GgufConfigTest, OtherTypesAreRead) {
  EXPECT_EQ(config_.get_double("f32"), 0.5);
  EXPECT_EQ(config_.get_double("f64"), 0.1);
  EXPECT_EQ(config_.get_double("i32"), -5.0);
  EXPECT_TRUE(config_.get_bool("yes"));
  EXPECT_EQ(config_.get_string("text"), "hello");
  EXPECT_THAT(config_.get_ints("ints"), ElementsAre(1, 2, 3));
  EXPECT_THAT(config_.get_strings("texts"), ElementsAre("a", "b"));
  EXPECT_THAT(concrete_.get_floats("floats"), ElementsAre(1.5f, -INFINITY));
}

TEST_F(GgufConfigTest, AScalarCountsAsAListOfOne) {
  EXPECT_THAT(config_.get_ints("i32"), ElementsAre(-5));
  EXPECT_THAT(config_.get_strings("text"), ElementsAre("hello"));
}

TEST_F(GgufConfigTest, AnEmptyArrayIsAnEmptyListOfAnything) {
  EXPECT_THAT(config_.get_ints("empty"), IsEmpty());
  EXPECT_THAT(config_.get_strings("empty"), IsEmpty());
  EXPECT_THAT(concrete_.get_floats("empty"), IsEmpty());
}

TEST_F(GgufConfigTest, FallbacksAreForAbsentKeysOnly) {
  EXPECT_EQ(config_.get_int("absent", 7), 7);
  EXPECT_EQ(config_.get_int("i32", 7), -5);
  EXPECT_EQ(config_.get_string("absent", "x"), "x");
  expect_refused([&] { config_.get_int("text", 7); }, {"text is the string \"hello\", expected an integer"});
}

TEST_F(GgufConfigTest, AnAbsentKeyIsNamed) {
  expect_refused([&] { config_.get_int("absent"); }, {"key absent is missing, expected an integer"});
  expect_refused([&] { config_.get_double("absent"); }, {"key absent is missing, expected a finite number"});
  expect_refused([&] { config_.get_bool("absent"); }, {"key absent is missing, expected a bool"});
  expect_refused([&] { config_.get_string("absent"); }, {"key absent is missing, expected a string"});
  expect_refused([&] { config_.get_ints("absent"); }, {"key absent is missing, expected integers"});
  expect_refused([&] { config_.get_strings("absent"); }, {"key absent is missing, expected strings"});
}

TEST_F(GgufConfigTest, AWrongTypeIsNamedWithItsValue) {
  expect_refused([&] { config_.get_int("f32"); }, {"f32 is the float32 0.5, expected an integer"});
  expect_refused([&] { config_.get_int("yes"); }, {"yes is the bool true, expected an integer"});
  expect_refused([&] { config_.get_int("ints"); }, {"ints is an array of 3 uint16, expected an integer"});
  expect_refused([&] { config_.get_int("u64_huge"); }, {"u64_huge holds 9223372036854775808"});
  expect_refused([&] { config_.get_double("nan"); }, {"nan is the float32 nan, expected a finite number"});
  expect_refused([&] { config_.get_double("text"); }, {"text is the string \"hello\", expected a finite number"});
  expect_refused([&] { config_.get_bool("u8"); }, {"u8 is the uint8 255, expected a bool"});
  expect_refused([&] { config_.get_string("u8"); }, {"u8 is the uint8 255, expected a string"});
  expect_refused([&] { config_.get_string("texts"); }, {"texts is an array of 2 string, expected a string"});
  expect_refused([&] { config_.get_ints("flags"); }, {"flags is an array of 2 bool, expected integers"});
  expect_refused([&] { config_.get_ints("texts"); }, {"texts is an array of 2 string, expected integers"});
  expect_refused([&] { config_.get_ints("floats"); }, {"floats is an array of 2 float32, expected integers"});
  expect_refused([&] { config_.get_strings("ints"); }, {"ints is an array of 3 uint16, expected strings"});
  expect_refused([&] { concrete_.get_floats("ints"); }, {"ints is an array of 3 uint16, expected an array of float32"});
  expect_refused([&] { concrete_.get_floats("f32"); }, {"f32 is the float32 0.5, expected an array of float32"});
}

}  // namespace
}  // namespace witan
