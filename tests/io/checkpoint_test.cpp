#include "io/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "io/byte_builder.h"
#include "io/temp_dir.h"
#include "support/expect_error.h"

namespace witan {
namespace {

using test::expect_error;
using test::TempDir;
using testing::ElementsAre;

const std::string kTinyGguf = std::string(WITAN_TEST_DATA) + "/io/tiny.gguf";
const std::string kTinyDirectory = std::string(WITAN_TEST_DATA) + "/io/tiny-hf";

TEST(Checkpoint, ReadsAStoredGgufFileWithEveryValueType) {
  const auto checkpoint = Checkpoint::open(kTinyGguf);
  EXPECT_EQ(checkpoint->format(), CheckpointFormat::kGguf);
  EXPECT_EQ(checkpoint->architecture(), "llama");
  const CheckpointConfig& config = checkpoint->config();
  EXPECT_EQ(config.get_int("llama.block_count"), 1);
  EXPECT_EQ(config.get_int("test.u8"), 200);
  EXPECT_EQ(config.get_int("test.i8"), -100);
  EXPECT_EQ(config.get_int("test.u16"), 60000);
  EXPECT_EQ(config.get_int("test.i16"), -30000);
  EXPECT_EQ(config.get_int("test.i32"), -2000000000);
  EXPECT_EQ(config.get_int("test.u64"), int64_t{1} << 40);
  EXPECT_EQ(config.get_int("test.i64"), -(int64_t{1} << 40));
  EXPECT_EQ(config.get_double("test.f32"), 0.25);
  EXPECT_EQ(config.get_double("test.f64"), 0.1);
  EXPECT_TRUE(config.get_bool("test.bool"));
  EXPECT_THAT(config.get_ints("test.ints"), ElementsAre(1, -2, 3));
  EXPECT_THAT(checkpoint->end_of_generation_tokens(), ElementsAre(2, 5));
}

TEST(Checkpoint, BothFormatsGiveTheSameTensorsTheSameWay) {
  const auto gguf = Checkpoint::open(kTinyGguf);
  const auto directory = Checkpoint::open(kTinyDirectory);
  EXPECT_THAT(directory->end_of_generation_tokens(), ElementsAre(5, 2));
  ASSERT_EQ(gguf->tensors().size(), 4u);
  ASSERT_EQ(directory->tensors().size(), 4u);
  const char* kNames[] = {"model.embed_tokens.weight", "model.norm.weight",
                          "model.layers.0.block_sparse_moe.gate.weight", "lm_head.weight"};
  for (size_t i = 0; i < 4; ++i) {
    const TensorEntry& a = gguf->tensors()[i];
    const TensorEntry* b = directory->find(kNames[i]);
    ASSERT_NE(b, nullptr) << kNames[i];
    EXPECT_EQ(a.dtype, b->dtype) << a.name;
    EXPECT_EQ(a.shape, b->shape) << a.name;
    EXPECT_TRUE(std::equal(a.data.begin(), a.data.end(), b->data.begin(), b->data.end())) << a.name;
  }
}

TEST(Checkpoint, ANonexistentPathIsNamed) {
  expect_error(ErrorCode::kIo,
               {"/nonexistent/model.gguf: No such file", "expected a GGUF file or a directory with config.json"},
               [] { Checkpoint::open("/nonexistent/model.gguf"); });
  expect_error(ErrorCode::kIo, {"(empty path)"}, [] { Checkpoint::open(""); });
}

TEST(Checkpoint, ADirectoryWithoutAConfigIsNamed) {
  const TempDir dir;
  expect_error(ErrorCode::kBadFile,
               {dir.path() + ": a directory without config.json, expected a Hugging Face model directory or a GGUF"},
               [&] { Checkpoint::open(dir.path()); });
}

TEST(Checkpoint, ADirectoryOfGgufFilesSaysWhichToPass) {
  const TempDir dir;
  dir.write("b.gguf", "");
  dir.write("a.gguf", "");
  expect_error(ErrorCode::kBadFile, {"did you mean \"a.gguf\" in it?"}, [&] { Checkpoint::open(dir.path()); });
}

TEST(Checkpoint, ADirectoryNamedLikeAFileIsADirectory) {
  const TempDir dir;
  const std::string path = dir.path() + "/model.gguf";
  std::filesystem::create_directory(path);
  expect_error(ErrorCode::kBadFile, {path, "a directory without config.json"}, [&] { Checkpoint::open(path); });
}

TEST(Checkpoint, AnEmptyFileIsNamed) {
  const TempDir dir;
  const std::string path = dir.write("model.gguf", "");
  expect_error(ErrorCode::kBadFile, {path, "\"GGUF\"", "an empty file"}, [&] { Checkpoint::open(path); });
}

TEST(Checkpoint, AFileOfAnotherKindIsNamed) {
  const TempDir dir;
  const std::string path = dir.write("notes.txt", "Dear diary");
  expect_error(ErrorCode::kBadFile, {path, "expected it to begin with \"GGUF\"", "\"Dear\""},
               [&] { Checkpoint::open(path); });
}

TEST(Checkpoint, AFileOfADirectorySaysToPassTheDirectory) {
  for (const std::string name : {"config.json", "model.safetensors"}) {
    expect_error(ErrorCode::kBadFile, {"one file of a Hugging Face model, pass its directory"},
                 [&] { Checkpoint::open(kTinyDirectory + "/" + name); });
  }
}

TEST(Checkpoint, AnUnreadableKindOfFileIsNamed) {
  const TempDir dir;
  const std::string path = dir.path() + "/pipe";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  expect_error(ErrorCode::kIo, {path, "expected a regular file"}, [&] { Checkpoint::open(path); });
}

}  // namespace
}  // namespace witan
