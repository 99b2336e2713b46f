#include "io/gguf_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "io/gguf_reader.h"
#include "support/expect_error.h"
#include "support/goldens.h"

namespace witan {
namespace {

namespace fs = std::filesystem;
using test::expect_error;

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

class GgufWriterTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    directory_ = fs::path(testing::TempDir()) / (std::string("gguf_writer_") + test->name());
    fs::remove_all(directory_);
    fs::create_directories(directory_);
    path_ = directory_ / "model.gguf";
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::set<std::string> files() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(directory_)) names.insert(entry.path().filename());
    return names;
  }

  fs::path directory_;
  fs::path path_;
};

template <typename T>
void expect_scalar(const GgufFile& file, std::string_view key, GgufType type, T value) {
  const GgufValue* found = file.find(key);
  ASSERT_NE(found, nullptr) << key;
  EXPECT_EQ(found->type, type) << key;
  EXPECT_FALSE(found->is_array) << key;
  ASSERT_EQ(found->bytes.size(), sizeof(value)) << key;
  EXPECT_EQ(std::memcmp(found->bytes.data(), &value, sizeof(value)), 0) << key;
}

template <typename T>
void expect_array(const GgufFile& file, std::string_view key, GgufType type, const std::vector<T>& values) {
  const GgufValue* found = file.find(key);
  ASSERT_NE(found, nullptr) << key;
  EXPECT_EQ(found->type, type) << key;
  EXPECT_TRUE(found->is_array) << key;
  EXPECT_EQ(found->count, values.size()) << key;
  ASSERT_EQ(found->bytes.size(), values.size() * sizeof(T)) << key;
  const auto expected = std::as_bytes(std::span(values));
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), found->bytes.begin())) << key;
}

TEST_F(GgufWriterTest, EveryMetadataTypeReadsBackAsItWasSet) {
  const std::vector<float> floats = {1.5f, -0.0f, std::numeric_limits<float>::infinity()};
  const std::vector<int32_t> ints = {-1, 0, 7};
  const std::vector<uint8_t> no_bytes;
  const std::vector<std::string> texts = {"a", "", "▁é"};
  GgufMetadata metadata;
  metadata.set("u8", uint8_t{255});
  metadata.set("i8", int8_t{-128});
  metadata.set("u16", uint16_t{65535});
  metadata.set("i16", int16_t{-32768});
  metadata.set("u32", uint32_t{4294967295u});
  metadata.set("i32", int32_t{-7});
  metadata.set("f32", 0.0707f);
  metadata.set("bool", true);
  metadata.set("u64", std::numeric_limits<uint64_t>::max());
  metadata.set("i64", std::numeric_limits<int64_t>::min());
  metadata.set("f64", 1e300);
  metadata.set("text", "yarn");
  metadata.set("empty", std::string());
  metadata.set_array("floats", std::span<const float>(floats));
  metadata.set_array("ints", std::span<const int32_t>(ints));
  metadata.set_array("no_bytes", std::span<const uint8_t>(no_bytes));
  metadata.set_array("texts", std::span<const std::string>(texts));
  EXPECT_EQ(metadata.num_entries(), 17u);
  GgufWriter(path_, metadata, {}).finish();

  const std::string bytes = test::read_file(path_);
  const GgufFile file = parse_gguf(bytes_of(bytes), path_);
  EXPECT_EQ(file.version, 3u);
  EXPECT_EQ(file.metadata.size(), 17u);
  expect_scalar(file, "u8", GgufType::kUint8, uint8_t{255});
  expect_scalar(file, "i8", GgufType::kInt8, int8_t{-128});
  expect_scalar(file, "u16", GgufType::kUint16, uint16_t{65535});
  expect_scalar(file, "i16", GgufType::kInt16, int16_t{-32768});
  expect_scalar(file, "u32", GgufType::kUint32, uint32_t{4294967295u});
  expect_scalar(file, "i32", GgufType::kInt32, int32_t{-7});
  expect_scalar(file, "f32", GgufType::kFloat32, 0.0707f);
  expect_scalar(file, "bool", GgufType::kBool, true);
  expect_scalar(file, "u64", GgufType::kUint64, std::numeric_limits<uint64_t>::max());
  expect_scalar(file, "i64", GgufType::kInt64, std::numeric_limits<int64_t>::min());
  expect_scalar(file, "f64", GgufType::kFloat64, 1e300);
  expect_array(file, "floats", GgufType::kFloat32, floats);
  expect_array(file, "ints", GgufType::kInt32, ints);
  expect_array(file, "no_bytes", GgufType::kUint8, no_bytes);
  EXPECT_THAT(file.find("text")->strings, testing::ElementsAre("yarn"));
  EXPECT_THAT(file.find("empty")->strings, testing::ElementsAre(""));
  EXPECT_THAT(file.find("texts")->strings, testing::ElementsAre("a", "", "▁é"));
}

// Tensors of every type and of 1 to 4 dimensions, with bytes that tell them apart.
std::vector<GgufTensorHeader> example_tensors() {
  return {{.name = "norm", .dtype = DType::kF32, .shape = {3}},
          {.name = "f16", .dtype = DType::kF16, .shape = {5, 7}},
          {.name = "bf16", .dtype = DType::kBF16, .shape = {2, 3, 4}},
          {.name = "q8_0", .dtype = DType::kQ8_0, .shape = {3, 64}},
          {.name = "q4_k", .dtype = DType::kQ4_K, .shape = {2, 2, 512}},
          {.name = "q6_k", .dtype = DType::kQ6_K, .shape = {2, 1, 3, 256}}};
}

std::vector<std::byte> example_data(const GgufTensorHeader& tensor, size_t index) {
  std::vector<std::byte> data(static_cast<size_t>(tensor.num_bytes()));
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 7 + index * 31 + 1);
  return data;
}

void expect_example(const fs::path& path, uint64_t alignment) {
  const std::string bytes = test::read_file(path);
  const GgufFile file = parse_gguf(bytes_of(bytes), path);
  const auto tensors = example_tensors();
  ASSERT_EQ(file.tensors.size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_EQ(file.tensors[i].name, tensors[i].name);
    EXPECT_EQ(file.tensors[i].dtype, tensors[i].dtype);
    EXPECT_EQ(file.tensors[i].shape, tensors[i].shape);
    const std::vector<std::byte> expected = example_data(tensors[i], i);
    EXPECT_TRUE(std::equal(file.tensors[i].data.begin(), file.tensors[i].data.end(), expected.begin(), expected.end()))
        << tensors[i].name;
    EXPECT_EQ(static_cast<size_t>(file.tensors[i].data.data() - bytes_of(bytes).data()) % alignment, 0u);
  }
}

TEST_F(GgufWriterTest, TensorsReadBackAlignedWithTheirShapesAndBytes) {
  for (const uint32_t alignment : {0u, 8u, 64u, 4096u}) {  // 0: not set, 32
    GgufMetadata metadata;
    metadata.set("general.architecture", "llama");
    if (alignment > 0) metadata.set("general.alignment", alignment);
    GgufWriter writer(path_, metadata, example_tensors());
    for (size_t i = 0; i < writer.tensors().size(); ++i) writer.write(i, 0, example_data(writer.tensors()[i], i));
    const int64_t file_bytes = writer.file_bytes();
    writer.finish();
    EXPECT_EQ(static_cast<int64_t>(fs::file_size(path_)), file_bytes);
    expect_example(path_, alignment > 0 ? alignment : 32);
  }
}

TEST_F(GgufWriterTest, PiecesMayComeInAnyOrderAndFromSeveralThreads) {
  GgufWriter writer(path_, GgufMetadata(), example_tensors());
  auto write_every_other = [&writer](size_t remainder) {
    for (size_t i = writer.tensors().size(); i-- > 0;) {
      const std::vector<std::byte> data = example_data(writer.tensors()[i], i);
      constexpr size_t kPiece = 5;
      for (size_t begin = remainder * kPiece; begin < data.size(); begin += 2 * kPiece) {
        const auto piece = std::span<const std::byte>(data).subspan(begin, std::min(kPiece, data.size() - begin));
        writer.write(i, static_cast<int64_t>(begin), piece);
      }
    }
  };
  std::thread other(write_every_other, 1);
  write_every_other(0);
  other.join();
  writer.finish();
  expect_example(path_, 32);
}

TEST_F(GgufWriterTest, FileTakesItsNameOnlyWhenFinished) {
  std::ofstream(path_) << "old";
  GgufWriter writer(path_, GgufMetadata(), example_tensors());
  for (size_t i = 0; i < writer.tensors().size(); ++i) writer.write(i, 0, example_data(writer.tensors()[i], i));
  EXPECT_EQ(test::read_file(path_), "old");
  writer.finish();
  expect_example(path_, 32);
  EXPECT_THAT(files(), testing::ElementsAre("model.gguf"));
}

TEST_F(GgufWriterTest, UnfinishedFileLeavesNothing) {
  {
    GgufWriter writer(path_, GgufMetadata(), example_tensors());
    writer.write(0, 0, example_data(writer.tensors()[0], 0));
    EXPECT_FALSE(fs::exists(path_));
  }
  EXPECT_TRUE(files().empty());
}

TEST_F(GgufWriterTest, TwoWritersOfOnePathDoNotDisturbEachOther) {
  GgufWriter first(path_, GgufMetadata(), {});
  {
    GgufWriter second(path_, GgufMetadata(), example_tensors());
    second.write(0, 0, example_data(second.tensors()[0], 0));
  }
  first.finish();
  EXPECT_EQ(fs::file_size(path_), static_cast<uintmax_t>(first.file_bytes()));
  EXPECT_THAT(files(), testing::ElementsAre("model.gguf"));
}

TEST_F(GgufWriterTest, FileCreatedHasTheUsersPermissions) {
  GgufWriter(path_, GgufMetadata(), {}).finish();
  std::ofstream(directory_ / "other") << "";
  EXPECT_EQ(fs::status(path_).permissions(), fs::status(directory_ / "other").permissions());
}

TEST_F(GgufWriterTest, PathThatCannotBeWrittenIsRefusedByName) {
  fs::create_directory(directory_ / "folder");
  for (const fs::path& path : {directory_ / "missing" / "model.gguf", directory_ / "folder", fs::path("/dev/null")}) {
    expect_error(ErrorCode::kIo, {path}, [&] { GgufWriter(path, GgufMetadata(), {}).finish(); });
  }
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST_F(GgufWriterTest, FileLargerThanTheFreeSpaceIsRefusedBeforeAnythingIsWritten) {
  const std::vector<GgufTensorHeader> tensors = {
      {.name = "huge", .dtype = DType::kF32, .shape = {int64_t{1} << 30, 1 << 20}}};
  expect_error(ErrorCode::kIo, {path_, "45035996273"},
               [&] { GgufWriter(path_, GgufMetadata(), tensors); });  // of 2^52 bytes and the header
  EXPECT_TRUE(files().empty());
}

TEST_F(GgufWriterTest, WriteThatTheSystemRefusesNamesThePathAndLeavesNothing) {
  const auto previous_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit previous;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &previous), 0);
  const std::vector<GgufTensorHeader> tensors = {{.name = "data", .dtype = DType::kF32, .shape = {1 << 16}}};
  {
    GgufWriter writer(path_, GgufMetadata(), tensors);
    rlimit limit = previous;
    limit.rlim_cur = 1 << 16;
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    expect_error(ErrorCode::kIo, {path_}, [&] { writer.write(0, 0, std::vector<std::byte>(1 << 18)); });
    expect_error(ErrorCode::kIo, {"other.gguf"},
                 [&] { GgufWriter(directory_ / "other.gguf", GgufMetadata(), tensors); });
  }
  setrlimit(RLIMIT_FSIZE, &previous);
  std::signal(SIGXFSZ, previous_handler);
  EXPECT_TRUE(files().empty());
}

TEST_F(GgufWriterTest, CopyOfAFileReadsTheSame) {
  WITAN_GOLDEN_OR_SKIP(source_path, "e2e-bytes/model.gguf");
  const std::string source_bytes = test::read_file(source_path);
  const GgufFile source = parse_gguf(bytes_of(source_bytes), source_path);
  GgufMetadata metadata;
  for (const auto& [key, value] : source.metadata) metadata.copy(key, value);
  std::vector<GgufTensorHeader> tensors;
  for (const GgufTensor& tensor : source.tensors) {
    tensors.push_back({.name = std::string(tensor.name), .dtype = tensor.dtype, .shape = tensor.shape});
  }
  GgufWriter writer(path_, metadata, tensors);
  for (size_t i = 0; i < source.tensors.size(); ++i) writer.write(i, 0, source.tensors[i].data);
  writer.finish();

  const std::string bytes = test::read_file(path_);
  EXPECT_EQ(bytes.size(), source_bytes.size());
  const GgufFile file = parse_gguf(bytes_of(bytes), path_);
  ASSERT_EQ(file.metadata.size(), source.metadata.size());
  for (const auto& [key, value] : source.metadata) {
    const GgufValue* found = file.find(key);
    ASSERT_NE(found, nullptr) << key;
    EXPECT_EQ(found->type, value.type) << key;
    EXPECT_EQ(found->is_array, value.is_array) << key;
    EXPECT_EQ(found->count, value.count) << key;
    EXPECT_EQ(found->strings, value.strings) << key;
    EXPECT_TRUE(std::equal(found->bytes.begin(), found->bytes.end(), value.bytes.begin(), value.bytes.end())) << key;
  }
  ASSERT_EQ(file.tensors.size(), source.tensors.size());
  for (size_t i = 0; i < source.tensors.size(); ++i) {
    const auto data = file.tensors[i].data;
    const auto expected = source.tensors[i].data;
    EXPECT_TRUE(std::equal(data.begin(), data.end(), expected.begin(), expected.end())) << file.tensors[i].name;
  }
}

TEST_F(GgufWriterTest, MisuseIsABug) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(
      {
        GgufMetadata metadata;
        metadata.set("a", true);
        metadata.set("a", false);
      },
      "set twice");
  EXPECT_DEATH(GgufWriter(path_, GgufMetadata(), {{.name = "x", .dtype = DType::kQ4_K, .shape = {2, 128}}}), "blocks");
  EXPECT_DEATH(GgufWriter(path_, GgufMetadata(), {{.name = "x", .shape = {1}}, {.name = "x", .shape = {1}}}), "twice");
  EXPECT_DEATH(GgufWriter(path_, GgufMetadata(), {{.name = "x", .shape = {1}}}).finish(), "0 of 4 bytes");
}

}  // namespace
}  // namespace witan
