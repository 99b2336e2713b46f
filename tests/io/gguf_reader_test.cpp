#include "io/gguf_reader.h"

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
using test::GgufBuilder;
using testing::ElementsAre;

constexpr uint32_t kF32 = 0;
constexpr uint32_t kF16 = 1;
constexpr uint32_t kQ8_0 = 8;
constexpr uint32_t kIQ2_S = 22;
constexpr uint32_t kQ4_K = 12;
constexpr uint32_t kI32 = 26;
constexpr uint64_t kHuge = uint64_t{1} << 60;

std::string small_model(uint32_t version = 3) {
  return GgufBuilder()
      .version(version)
      .text("general.architecture", "llama")
      .uint32("llama.block_count", 2)
      .texts("tokenizer.ggml.tokens", {"a", "", "c"})
      .array<float>("scores", GgufType::kFloat32, {0.5f, -1.0f})
      .tensor("a", {3, 2}, kF32, 32)
      .tensor("b", {32}, kQ8_0, 64)
      .tensor("c", {2}, kF16, 0)
      .data(std::string(32, 'c') + std::string(32, 'a') + std::string(34, 'b'))
      .build();
}

TEST(GgufReader, ReadsMetadataOfBothVersions) {
  for (const uint32_t version : {2u, 3u}) {
    const std::string file = small_model(version);
    const GgufFile gguf = parse_gguf(as_bytes(file), "m.gguf");
    EXPECT_EQ(gguf.version, version);
    EXPECT_EQ(gguf.metadata.size(), 4u);
    ASSERT_NE(gguf.find("tokenizer.ggml.tokens"), nullptr);
    EXPECT_THAT(gguf.find("tokenizer.ggml.tokens")->strings, ElementsAre("a", "", "c"));
    EXPECT_EQ(gguf.find("scores")->count, 2u);
    EXPECT_EQ(gguf.find("scores")->bytes.size(), 8u);
    EXPECT_EQ(gguf.find("absent"), nullptr);
  }
}

TEST(GgufReader, StringsPointIntoTheFile) {
  const std::string file = small_model();
  const GgufFile gguf = parse_gguf(as_bytes(file), "m.gguf");
  const std::string_view token = gguf.find("tokenizer.ggml.tokens")->strings[2];
  EXPECT_GE(token.data(), file.data());
  EXPECT_LT(token.data(), file.data() + file.size());
}

TEST(GgufReader, PlacesTensorsAndReversesShapes) {
  const std::string file = small_model();
  const GgufFile gguf = parse_gguf(as_bytes(file), "m.gguf");
  ASSERT_EQ(gguf.tensors.size(), 3u);
  EXPECT_EQ(gguf.tensors[0].name, "a");
  EXPECT_THAT(gguf.tensors[0].shape, ElementsAre(2, 3));
  EXPECT_EQ(gguf.tensors[0].data.size(), 24u);
  EXPECT_EQ(gguf.tensors[0].data[0], std::byte{'a'});
  EXPECT_EQ(gguf.tensors[1].dtype, DType::kQ8_0);
  EXPECT_EQ(gguf.tensors[1].data.size(), 34u);
  EXPECT_EQ(gguf.tensors[1].data[0], std::byte{'b'});
  EXPECT_EQ(gguf.tensors[2].data.size(), 4u);
  EXPECT_EQ(gguf.tensors[2].data[0], std::byte{'c'});
}

TEST(GgufReader, AcceptsAFileWithoutTensors) {
  const std::string file = GgufBuilder().text("general.architecture", "llama").build();
  EXPECT_TRUE(parse_gguf(as_bytes(file), "m.gguf").tensors.empty());
}

TEST(GgufReader, AcceptsAScalarTensor) {
  const std::string file = GgufBuilder().tensor("a", {}, kF32, 0).data("1234").build();
  const GgufFile gguf = parse_gguf(as_bytes(file), "m.gguf");
  EXPECT_TRUE(gguf.tensors[0].shape.empty());
  EXPECT_EQ(gguf.tensors[0].data.size(), 4u);
}

TEST(GgufReader, AcceptsBytesAfterTheLastTensor) {
  const std::string file = small_model() + "trailing";
  EXPECT_EQ(parse_gguf(as_bytes(file), "m.gguf").tensors.size(), 3u);
}

TEST(GgufReader, HonoursTheAlignmentThatTheFileStates) {
  const std::string file =
      GgufBuilder().alignment(8).tensor("a", {1}, kF32, 0).tensor("b", {1}, kF32, 8).data("aaaa....bbbb").build();
  const GgufFile gguf = parse_gguf(as_bytes(file), "m.gguf");
  EXPECT_EQ(gguf.tensors[0].data[3], std::byte{'a'});
  EXPECT_EQ(gguf.tensors[1].data[0], std::byte{'b'});
}

TEST(GgufReader, EveryTruncationIsAnError) {
  const std::string file = small_model();
  for (size_t size = 0; size < file.size(); ++size) {
    const std::vector<std::byte> prefix = exact_copy(std::string_view(file).substr(0, size));
    EXPECT_THROW(parse_gguf(prefix, "m.gguf"), Error) << size;
  }
}

TEST(GgufReader, EveryFlippedByteIsAnErrorOrHarmless) {
  const std::string file = small_model();
  for (size_t i = 0; i < file.size(); ++i) {
    for (const unsigned change : {0x01u, 0x80u, 0xFFu}) {
      std::vector<std::byte> changed = exact_copy(file);
      changed[i] ^= static_cast<std::byte>(change);
      try {
        for (const GgufTensor& tensor : parse_gguf(changed, "m.gguf").tensors) {
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

class MalformedGguf : public testing::TestWithParam<BadFile> {};

TEST_P(MalformedGguf, IsRefusedWithWhatWasExpectedAndFound) {
  const std::vector<std::byte> file = exact_copy(GetParam().file);
  std::vector<std::string> fragments = GetParam().fragments;
  fragments.push_back("m.gguf: ");
  test::expect_error(GetParam().code, fragments, [&] { parse_gguf(file, "m.gguf"); });
}

GgufBuilder one_tensor(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
  return GgufBuilder().tensor(name, dims, type, offset).data(std::string(256, 'x'));
}

GgufBuilder one_entry(std::string_view key, const Bytes& value) { return GgufBuilder().entry(key, value); }

Bytes array_start(GgufType type, uint64_t count) { return Bytes().type(GgufType::kArray).type(type).u64(count); }

std::vector<BadFile> bad_preambles() {
  return {
      {"Empty", "", {"begin with \"GGUF\"", "an empty file"}},
      {"ThreeBytes", "GGU", {"begin with \"GGUF\"", "\"GGU\""}},
      {"OtherMagic", GgufBuilder().magic("ggjt").build(), {"not a GGUF file", "\"ggjt\""}},
      {"BinaryMagic", GgufBuilder().magic(std::string("\x7f\x00\x01\xff", 4)).build(), {"\"\\x7f\\x00\\x01\\xff\""}},
      {"OnlyMagic", "GGUF", {"ends in the version", "expected 4 bytes at offset 4, found 0"}},
      {"Version0", GgufBuilder().version(0).build(), {"version 0, expected 2 or 3"}},
      {"Version1", GgufBuilder().version(1).build(), {"version 1, expected 2 or 3"}, ErrorCode::kUnsupported},
      {"Version4", GgufBuilder().version(4).build(), {"version 4, expected 2 or 3"}, ErrorCode::kUnsupported},
      {"BigEndian",
       GgufBuilder().version(0x03000000).build(),
       {"big-endian", "version 3", "expected a little-endian"},
       ErrorCode::kUnsupported},
      {"NoCounts", Bytes().raw("GGUF").u32(3).str(), {"the number of tensors"}},
      {"NoMetadataCount", Bytes().raw("GGUF").u32(3).u64(0).str(), {"the number of metadata entries"}},
      {"TensorCountHuge", GgufBuilder().claim_tensors(kHuge).build(), {"claims 1152921504606846976 tensors"}},
      {"TensorCountAllocates2GB",
       GgufBuilder().claim_tensors(1 << 24).text("k", std::string(200, 'x')).build(),
       {"claims 16777216 tensors", "hold 8 at most"}},
      {"TensorCountNegative", GgufBuilder().claim_tensors(~uint64_t{0}).build(), {"claims 18446744073709551615"}},
      {"MetadataCountHuge", GgufBuilder().claim_metadata(kHuge).build(), {"claims 1152921504606846976 metadata"}},
      {"MetadataCountOneMore",
       GgufBuilder().uint32("k", 1).claim_metadata(2).build(),
       {"claims 2 metadata entries", "hold 1 at most"}},
      {"TensorCountOneMore",
       GgufBuilder().tensor("aaaa", {1}, kF32, 0).claim_tensors(2).build(),
       {"claims 2 tensors", "hold 1 at most"}},
  };
}

std::vector<BadFile> bad_metadata() {
  return {
      {"KeyLengthHuge",
       one_entry("k", {}).claim_metadata(1).build().replace(24, 8, std::string(7, '\0') + "\x10") +
           std::string(20, 'x'),
       {"metadata entry 0: the file ends in a key", "expected 1152921504606846976 bytes"}},
      {"KeyEmpty", one_entry("", Bytes().type(GgufType::kUint32).u32(1)).build(), {"a key has 0 bytes"}},
      {"KeyTooLong",
       one_entry(std::string(65536, 'k'), Bytes().type(GgufType::kUint8).u8(1)).build(),
       {"a key has 65536 bytes, expected 1 to 65535"}},
      {"KeyTwice",
       GgufBuilder().uint32("one", 1).uint32("two", 2).uint32("one", 3).build(),
       {"metadata entry 2: key \"one\" is there twice"}},
      {"ValueTypeUnknown",
       one_entry("k", Bytes().u32(13).u64(0)).build(),
       {"\"k\" has value type 13, expected 0 to 12"}},
      {"ValueTypeHuge", one_entry("k", Bytes().u32(0xFFFFFFFF).u64(0)).build(), {"value type 4294967295"}},
      {"ScalarTruncated",
       one_entry("key", Bytes().type(GgufType::kUint64).u32(1)).build(),
       {"ends in a value", "expected 8 bytes", "found 4"}},
      {"StringLengthHuge",
       one_entry("k", Bytes().type(GgufType::kString).u64(kHuge)).build(),
       {"ends in a string", "expected 1152921504606846976 bytes"}},
      {"StringLengthWraps",
       one_entry("k", Bytes().type(GgufType::kString).u64(~uint64_t{0})).build(),
       {"expected 18446744073709551615 bytes"}},
      {"BoolNeither0Nor1",
       one_entry("flag", Bytes().type(GgufType::kBool).u8(2)).build(),
       {"\"flag\" holds the bool 2"}},
      {"BoolInArray",
       one_entry("flags", array_start(GgufType::kBool, 3).u8(1).u8(0).u8(255)).build(),
       {"\"flags\" holds the bool 255, expected 0 or 1"}},
      {"ArrayOfStringsHuge",
       one_entry("k", array_start(GgufType::kString, uint64_t{1} << 27).text("x")).build(),
       {"array of 134217728 string", "hold 1 at most"}},
      {"ArrayOfNumbersHuge",
       one_entry("k", array_start(GgufType::kUint32, kHuge).u64(0)).build(),
       {"array of 1152921504606846976 uint32", "the 8 bytes after it hold 2 at most"}},
      {"ArraySizeWraps",
       one_entry("k", array_start(GgufType::kFloat64, (uint64_t{1} << 61) + 1).u64(0)).build(),
       {"array of 2305843009213693953 float64"}},
      {"ArrayOneShort",
       one_entry("k", array_start(GgufType::kUint16, 3).u16(1).u16(2)).build(),
       {"array of 3 uint16", "hold 2 at most"}},
      {"ArrayStringTruncated",
       one_entry("k", array_start(GgufType::kString, 2).text("x").u64(100)).build(),
       {"ends in a string", "expected 100 bytes", "found 0"}},
      {"ArrayElementTypeUnknown",
       one_entry("k", Bytes().type(GgufType::kArray).u32(77).u64(1).u64(0)).build(),
       {"\"k\" has value type 77"}},
      {"ArrayOfArrays",
       one_entry("deep", array_start(GgufType::kArray, 1).type(GgufType::kUint8).u64(1).u8(0)).build(),
       {"\"deep\" is an array of arrays"},
       ErrorCode::kUnsupported},
      {"AlignmentZero", GgufBuilder().uint32("general.alignment", 0).build(), {"general.alignment is 0"}},
      {"AlignmentNotAPower", GgufBuilder().uint32("general.alignment", 48).build(), {"is 48, expected a power of two"}},
      {"AlignmentTooSmall", GgufBuilder().uint32("general.alignment", 4).build(), {"is 4", "from 8 to 1048576"}},
      {"AlignmentTooLarge", GgufBuilder().uint32("general.alignment", 1u << 31).build(), {"is 2147483648"}},
      {"AlignmentText", GgufBuilder().text("general.alignment", "32").build(), {"is string, expected uint32"}},
      {"AlignmentArray",
       GgufBuilder().array<uint32_t>("general.alignment", GgufType::kUint32, {}).build(),
       {"is an array of uint32, expected uint32"}},
  };
}

std::vector<BadFile> bad_tensors() {
  constexpr uint64_t k2To32 = uint64_t{1} << 32;
  return {
      {"NameEmpty", one_tensor("", {1}, kF32, 0).build(), {"tensor 0: a tensor's name has 0 bytes"}},
      {"NameTwice",
       GgufBuilder().tensor("w", {1}, kF32, 0).tensor("w", {1}, kF32, 32).data(std::string(64, 'x')).build(),
       {"tensor 1: tensor \"w\" is there twice"}},
      {"NameBinary", one_tensor("a\n\xff", {0}, kF32, 0).build(), {"tensor \"a\\x0a\\xff\""}},
      {"NameLongIsCut", one_tensor(std::string(500, 'n'), {0}, kF32, 0).build(), {"nnn\"... (500 bytes)"}},
      {"FiveDims", one_tensor("w", {1, 1, 1, 1, 1}, kF32, 0).build(), {"\"w\" has 5 dimensions, expected 4 at most"}},
      {"DimsHuge",
       GgufBuilder().claim_tensors(1).build() + Bytes().text("w").u32(0xFFFFFFFF).u64(0).u64(0).str(),
       {"4294967295 dimensions"}},
      {"DimZero", one_tensor("w", {4, 0}, kF32, 0).build(), {"\"w\" has a dimension of 0"}},
      {"DimNegative", one_tensor("w", {~uint64_t{0}}, kF32, 0).build(), {"a dimension of 18446744073709551615"}},
      {"ElementsOverflow",
       one_tensor("w", {k2To32, k2To32, k2To32, k2To32}, kF32, 0).build(),
       {"\"w\" is larger than 2^63 - 1 bytes"}},
      {"ElementsWrapToSmall", one_tensor("w", {k2To32, k2To32}, kF32, 0).build(), {"larger than 2^63 - 1 bytes"}},
      {"BytesOverflow", one_tensor("w", {uint64_t{1} << 62}, kF32, 0).build(), {"larger than 2^63 - 1 bytes"}},
      {"RowsNotWholeBlocks",
       one_tensor("w", {48, 2}, kQ8_0, 0).build(),
       {"\"w\" of type Q8_0 has rows of 48 elements, expected a multiple of 32"}},
      {"ElementsButNotRowsWholeBlocks",
       one_tensor("w", {128, 2}, kQ4_K, 0).build(),
       {"rows of 128 elements, expected a multiple of 256"}},
      {"TypeNotRead",
       one_tensor("w", {256}, kIQ2_S, 0).build(),
       {"\"w\" has type IQ2_S, expected one of F32, F16, BF16, Q8_0"},
       ErrorCode::kUnsupported},
      {"TypeInteger", one_tensor("w", {1}, kI32, 0).build(), {"\"w\" has type I32"}, ErrorCode::kUnsupported},
      {"TypeUnknown", one_tensor("w", {1}, 9999, 0).build(), {"type unknown (9999)"}, ErrorCode::kUnsupported},
      {"TypeRetired", one_tensor("w", {1}, 4, 0).build(), {"type unknown (4)"}, ErrorCode::kUnsupported},
      {"OffsetUnaligned",
       one_tensor("w", {1}, kF32, 4).build(),
       {"is at offset 4 of the data, expected a multiple of 32"}},
      {"OffsetBeyondTheFile", one_tensor("w", {1}, kF32, 512).build(), {"at offset 512", "has 256 bytes of data"}},
      {"OffsetWraps",
       one_tensor("w", {64}, kF32, ~uint64_t{0} - 31).build(),
       {"at offset 18446744073709551584", "reaches beyond the file"}},
      {"SizeBeyondTheFile", one_tensor("w", {65}, kF32, 0).build(), {"of 260 bytes at offset 0", "256 bytes of data"}},
      {"NoDataAtAll", GgufBuilder().tensor("w", {1}, kF32, 0).build(), {"reaches beyond the file, which has 0 bytes"}},
      {"Overlap",
       GgufBuilder().tensor("a", {16}, kF32, 0).tensor("b", {1}, kF32, 32).data(std::string(64, 'x')).build(),
       {"tensor \"b\" at offset 32 overlaps tensor \"a\" of 64 bytes at offset 0"}},
      {"SamePlace",
       GgufBuilder().tensor("a", {1}, kF32, 0).tensor("b", {1}, kF32, 0).data(std::string(64, 'x')).build(),
       {"overlaps"}},
      {"OverlapOutOfOrder",
       GgufBuilder().tensor("a", {1}, kF32, 32).tensor("b", {16}, kF32, 0).data(std::string(64, 'x')).build(),
       {"tensor \"a\" at offset 32 overlaps tensor \"b\""}},
      {"InfoTruncated",
       GgufBuilder().claim_tensors(1).build() + Bytes().text("w").u32(3).u64(1).u64(1).str(),
       {"tensor 0: the file ends in a dimension", "found 0"}},
  };
}

std::string case_name(const testing::TestParamInfo<BadFile>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Preamble, MalformedGguf, testing::ValuesIn(bad_preambles()), case_name);
INSTANTIATE_TEST_SUITE_P(Metadata, MalformedGguf, testing::ValuesIn(bad_metadata()), case_name);
INSTANTIATE_TEST_SUITE_P(Tensors, MalformedGguf, testing::ValuesIn(bad_tensors()), case_name);

}  // namespace
}  // namespace witan
