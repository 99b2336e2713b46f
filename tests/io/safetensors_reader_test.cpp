#include "io/safetensors_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "io/byte_builder.h"
#include "support/expect_error.h"

namespace witan {
namespace {

using test::as_bytes;
using test::Bytes;
using test::exact_copy;
using test::safetensors_file;
using testing::ElementsAre;

std::string small_file() {
  return safetensors_file(R"({"__metadata__":{"format":"pt"},
      "b":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},
      "a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},
      "ids":{"dtype":"I64","shape":[1,1],"data_offsets":[14,22]},
      "mask":{"dtype":"BOOL","shape":[1,1,1,1,2],"data_offsets":[12,14]},
      "s":{"dtype":"F16","shape":[],"data_offsets":[22,24]}}   )",
                          "aaaabbbbBBBBmmiiiiiiiiss");
}

TEST(SafetensorsReader, ReadsTensorsInTheOrderOfTheirData) {
  const std::string file = small_file();
  const std::vector<SafetensorsTensor> tensors = parse_safetensors(as_bytes(file), "m.safetensors");
  ASSERT_EQ(tensors.size(), 5u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].dtype, DType::kBF16);
  EXPECT_THAT(tensors[0].data, ElementsAre(std::byte{'a'}, std::byte{'a'}, std::byte{'a'}, std::byte{'a'}));
  EXPECT_EQ(tensors[1].name, "b");
  EXPECT_THAT(tensors[1].shape, ElementsAre(2, 1));
  EXPECT_EQ(tensors[1].data.size(), 8u);
  EXPECT_EQ(tensors[4].name, "s");
  EXPECT_TRUE(tensors[4].shape.empty());
}

TEST(SafetensorsReader, ListsIndexAndMaskBuffersWithoutADtype) {
  const std::string file = small_file();
  const std::vector<SafetensorsTensor> tensors = parse_safetensors(as_bytes(file), "m.safetensors");
  EXPECT_EQ(tensors[2].name, "mask");
  EXPECT_FALSE(tensors[2].dtype);
  EXPECT_EQ(tensors[3].name, "ids");
  EXPECT_FALSE(tensors[3].dtype);
}

TEST(SafetensorsReader, AcceptsAFileWithoutTensors) {
  const std::string file = safetensors_file("{}", "");
  EXPECT_TRUE(parse_safetensors(as_bytes(file), "m.safetensors").empty());
}

TEST(SafetensorsReader, EveryTruncationIsAnError) {
  const std::string file = small_file();
  for (size_t size = 0; size < file.size(); ++size) {
    const std::vector<std::byte> prefix = exact_copy(std::string_view(file).substr(0, size));
    EXPECT_THROW(parse_safetensors(prefix, "m.safetensors"), Error) << size;
  }
}

TEST(SafetensorsReader, EveryFlippedByteIsAnErrorOrHarmless) {
  const std::string file = small_file();
  for (size_t i = 0; i < file.size(); ++i) {
    for (const unsigned change : {0x01u, 0x02u, 0x80u, 0xFFu}) {
      std::vector<std::byte> changed = exact_copy(file);
      changed[i] ^= static_cast<std::byte>(change);
      try {
        for (const SafetensorsTensor& tensor : parse_safetensors(changed, "m.safetensors")) {
          EXPECT_GE(tensor.data.data(), changed.data());
          EXPECT_LE(tensor.data.data() + tensor.data.size(), changed.data() + changed.size());
        }
      } catch (const Error&) {
      }
    }
  }
}

struct BadFile {
  std::string name;
  std::string file;
  std::vector<std::string> fragments;
  ErrorCode code = ErrorCode::kBadFile;
};

class MalformedSafetensors : public testing::TestWithParam<BadFile> {};

TEST_P(MalformedSafetensors, IsRefusedWithWhatWasExpectedAndFound) {
  const std::vector<std::byte> file = exact_copy(GetParam().file);
  std::vector<std::string> fragments = GetParam().fragments;
  fragments.push_back("m.safetensors: ");
  test::expect_error(GetParam().code, fragments, [&] { parse_safetensors(file, "m.safetensors"); });
}

// A file of one tensor "w" with this description, and 8 bytes of data.
std::string one_tensor(std::string_view description) {
  return safetensors_file("{\"w\":" + std::string(description) + "}", "12345678");
}

std::vector<BadFile> bad_headers() {
  const std::string deep(100'000, '[');
  return {
      {"Empty", "", {"the header's length", "expected 8 bytes at offset 0, found 0"}},
      {"SevenBytes", "1234567", {"expected 8 bytes at offset 0, found 7"}},
      {"HeaderLongerThanFile", Bytes().u64(3).raw("{}").str(), {"the header claims 3 bytes, expected at most 2"}},
      {"HeaderLengthWraps", Bytes().u64(~uint64_t{0}).raw("{}").str(), {"claims 18446744073709551615 bytes"}},
      {"HeaderEmpty", safetensors_file("", ""), {"header: not valid JSON: error at byte 0"}},
      {"NotJson", safetensors_file("hello", ""), {"header: not valid JSON: error at byte 1 (line 1)"}},
      {"JsonCutShort", safetensors_file("{\"a\":\n{", ""), {"not valid JSON", "(line 2)"}},
      {"JsonTwice", safetensors_file("{}{}", ""), {"not valid JSON: error at byte 3"}},
      {"InvalidUtf8", safetensors_file("{\"\xff\":1}", ""), {"not valid JSON"}},
      {"NumberTooLarge", safetensors_file("{\"a\":1e999}", ""), {"not valid JSON: a number too large"}},
      {"ArrayAtTheTop", safetensors_file("[]", ""), {"header: holds an array of 0, expected a JSON object"}},
      {"NestedTooDeep", safetensors_file("{\"a\":" + deep, ""), {"nested deeper than 64 levels"}},
      {"NestedObjectsTooDeep",
       safetensors_file(
           [] {
             std::string text;
             for (int i = 0; i < 1000; ++i) text += "{\"a\":";
             return text;
           }(),
           ""),
       {"nested deeper than 64 levels"}},
      {"MetadataNotAnObject", safetensors_file(R"({"__metadata__":"pt"})", ""), {"__metadata__ is the string \"pt\""}},
      {"NameTwice",
       safetensors_file(R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                            "w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                        "12345678"),
       {"key \"w\" is there twice"}},
      {"NameTwiceByEscape",
       safetensors_file(R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                            "\u0077":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                        "12345678"),
       {"key \"w\" is there twice"}},
      {"NameEmpty",
       safetensors_file(R"({"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "1234"),
       {"a tensor without a name"}},
  };
}

std::vector<BadFile> bad_tensors() {
  return {
      {"NotAnObject", one_tensor("5"), {"tensor \"w\": is the number 5, expected an object"}},
      {"NoDtype", one_tensor(R"({"shape":[2],"data_offsets":[0,8]})"), {"tensor \"w\": dtype is missing"}},
      {"NoShape", one_tensor(R"({"dtype":"F32","data_offsets":[0,8]})"), {"tensor \"w\": shape is missing"}},
      {"NoOffsets", one_tensor(R"({"dtype":"F32","shape":[2]})"), {"tensor \"w\": data_offsets is missing"}},
      {"DtypeNumber", one_tensor(R"({"dtype":1,"shape":[2],"data_offsets":[0,8]})"), {"dtype is the number 1"}},
      {"DtypeNotRead",
       one_tensor(R"({"dtype":"F8_E5M2","shape":[8],"data_offsets":[0,8]})"),
       {"tensor \"w\": dtype is \"F8_E5M2\", expected one of F32, F16, BF16, F8_E4M3, U8"},
       ErrorCode::kUnsupported},
      {"DtypePackedWeights",
       one_tensor(R"({"dtype":"I32","shape":[2],"data_offsets":[0,8]})"),
       {"dtype is \"I32\""},
       ErrorCode::kUnsupported},
      {"DtypeUnknown",
       one_tensor(R"({"dtype":"","shape":[2],"data_offsets":[0,8]})"),
       {"dtype is \"\""},
       ErrorCode::kUnsupported},
      {"ShapeNumber", one_tensor(R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})"), {"shape is the number 2"}},
      {"DimNegative",
       one_tensor(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"),
       {"shape holds the number -2"}},
      {"DimZero", one_tensor(R"({"dtype":"F32","shape":[0],"data_offsets":[0,0]})"), {"shape holds the number 0"}},
      {"DimFraction", one_tensor(R"({"dtype":"F32","shape":[2.5],"data_offsets":[0,8]})"), {"the number 2.5"}},
      {"DimText", one_tensor(R"({"dtype":"F32","shape":["2"],"data_offsets":[0,8]})"), {"the string \"2\""}},
      {"DimTooLarge",
       one_tensor(R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]})"),
       {"the number 9223372036854775808"}},
      {"FiveDims",
       one_tensor(R"({"dtype":"F32","shape":[1,1,1,1,2],"data_offsets":[0,8]})"),
       {"shape has 5 dimensions, expected 4 at most"},
       ErrorCode::kUnsupported},
      {"ElementsOverflow",
       one_tensor(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})"),
       {"span 0 bytes, expected more than 2^63 - 1"}},
      {"BytesOverflow",
       one_tensor(R"({"dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8]})"),
       {"span 8 bytes, expected more than 2^63 - 1"}},
      {"SizeTooSmall",
       one_tensor(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"),
       {"data_offsets span 8 bytes, expected 12"}},
      {"SizeTooLarge",
       one_tensor(R"({"dtype":"F16","shape":[3],"data_offsets":[0,8]})"),
       {"data_offsets span 8 bytes, expected 6"}},
      {"OffsetsText",
       one_tensor(R"({"dtype":"F32","shape":[2],"data_offsets":"0-8"})"),
       {"data_offsets is the string \"0-8\", expected two integers"}},
      {"OneOffset", one_tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[8]})"), {"data_offsets is an array of 1"}},
      {"OffsetNegative", one_tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})"), {"expected two integers"}},
      {"BeginAfterEnd", one_tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"), {"data_offsets are 8 to 0"}},
      {"EndBeyondTheFile",
       one_tensor(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16]})"),
       {"data_offsets are 0 to 16, expected a range within the file's 8 bytes"}},
      {"OffsetsHuge",
       one_tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,18446744073709551615]})"),
       {"expected a range within"}},
      {"GapAtTheStart",
       one_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})"),
       {"4 bytes before tensor \"w\" belong to no tensor"}},
      {"BytesAfterTheLast",
       one_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})"),
       {"the last 4 bytes belong to no tensor"}},
      {"DataWithoutTensors", safetensors_file("{}", "x"), {"the last 1 bytes belong to no tensor"}},
      {"Overlap",
       safetensors_file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                            "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                        "12345678"),
       {"tensor \"b\" overlaps tensor \"a\" by 4 bytes"}},
      {"GapInTheMiddle",
       safetensors_file(R"({"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},
                            "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                        "12345678"),
       {"2 bytes before tensor \"b\" belong to no tensor"}},
  };
}

std::string case_name(const testing::TestParamInfo<BadFile>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Header, MalformedSafetensors, testing::ValuesIn(bad_headers()), case_name);
INSTANTIATE_TEST_SUITE_P(Tensors, MalformedSafetensors, testing::ValuesIn(bad_tensors()), case_name);

}  // namespace
}  // namespace witan
