#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/byte_builder.h"
#include "io/checkpoint.h"
#include "io/temp_dir.h"
#include "support/expect_error.h"

namespace witan {
namespace {

using test::expect_error;
using test::safetensors_file;
using test::TempDir;
using testing::ElementsAre;
using testing::IsEmpty;

std::string one_tensor_file(const std::string& name, const std::string& four_bytes) {
  return safetensors_file("{\"" + name + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", four_bytes);
}

class HuggingFaceDirectory : public testing::Test {
 protected:
  void SetUp() override { dir_.write("config.json", R"({"model_type":"mixtral"})"); }
  std::unique_ptr<Checkpoint> open() { return Checkpoint::open(dir_.path()); }
  void expect_refused(const std::vector<std::string>& fragments, ErrorCode code = ErrorCode::kBadFile) {
    std::vector<std::string> all = fragments;
    all.push_back(dir_.path());
    expect_error(code, all, [&] { open(); });
  }
  void write_weights() { dir_.write("model.safetensors", one_tensor_file("w", "wwww")); }
  void write_index(const std::string& weight_map) {
    dir_.write("model.safetensors.index.json", R"({"metadata":{"total_size":8},"weight_map":)" + weight_map + "}");
  }

  TempDir dir_;
};

TEST_F(HuggingFaceDirectory, OpensOneFile) {
  write_weights();
  const auto checkpoint = open();
  EXPECT_EQ(checkpoint->format(), CheckpointFormat::kHuggingFace);
  EXPECT_EQ(checkpoint->path(), dir_.path());
  EXPECT_EQ(checkpoint->architecture(), "mixtral");
  ASSERT_NE(checkpoint->find("w"), nullptr);
  EXPECT_EQ(checkpoint->find("w")->file, dir_.path() + "/model.safetensors");
  EXPECT_EQ(checkpoint->find("absent"), nullptr);
  EXPECT_EQ(checkpoint->load_tokenizer(), nullptr);
}

TEST_F(HuggingFaceDirectory, OpensShards) {
  dir_.write("model-00001-of-00002.safetensors", one_tensor_file("a", "aaaa"));
  dir_.write("model-00002-of-00002.safetensors", one_tensor_file("b", "bbbb"));
  write_index(R"({"b":"model-00002-of-00002.safetensors","a":"model-00001-of-00002.safetensors"})");
  const auto checkpoint = open();
  ASSERT_EQ(checkpoint->tensors().size(), 2u);
  EXPECT_EQ(checkpoint->tensors()[0].name, "a");
  EXPECT_EQ(checkpoint->tensors()[1].data[0], std::byte{'b'});
  EXPECT_EQ(checkpoint->tensors()[1].file, dir_.path() + "/model-00002-of-00002.safetensors");
}

TEST_F(HuggingFaceDirectory, OneFileIsPreferredToAnIndex) {
  write_weights();
  write_index(R"({"b":"absent.safetensors"})");
  EXPECT_NE(open()->find("w"), nullptr);
}

TEST_F(HuggingFaceDirectory, IndexAndMaskBuffersAreLeftOut) {
  dir_.write("s.safetensors", safetensors_file(R"({"position_ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},
                                                   "w":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
                                               "iiiiiiiiwwww"));
  write_index(R"({"position_ids":"s.safetensors","w":"s.safetensors"})");
  const auto checkpoint = open();
  ASSERT_EQ(checkpoint->tensors().size(), 1u);
  EXPECT_EQ(checkpoint->tensors()[0].name, "w");
}

TEST_F(HuggingFaceDirectory, AMissingShardIsNamed) {
  write_index(R"({"w":"absent.safetensors"})");
  expect_refused({"index.json: names the shard \"absent.safetensors\", which is not there"});
}

TEST_F(HuggingFaceDirectory, ATensorThatItsShardLacksIsNamed) {
  dir_.write("s.safetensors", one_tensor_file("a", "aaaa"));
  write_index(R"({"a":"s.safetensors","b":"s.safetensors"})");
  expect_refused({"s.safetensors: tensor \"b\" is missing, expected by", "index.json"});
}

TEST_F(HuggingFaceDirectory, ATensorInTwoShardsIsNamed) {
  dir_.write("1.safetensors", one_tensor_file("a", "aaaa"));
  dir_.write("2.safetensors", safetensors_file(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                                                   "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                                               "aaaabbbb"));
  write_index(R"({"a":"1.safetensors","b":"2.safetensors"})");
  expect_refused({"2.safetensors: tensor \"a\" is in", "1.safetensors too"});
}

TEST_F(HuggingFaceDirectory, AShardElsewhereIsRefused) {
  for (const std::string shard : {"\"../w.safetensors\"", "\"/etc/passwd\"", "\"a/b\"", "\"..\"", "\"\"", "5"}) {
    write_index("{\"w\":" + shard + "}");
    expect_refused({"weight_map puts tensor \"w\" in", "expected the name of a file beside it"});
  }
}

TEST_F(HuggingFaceDirectory, ABadIndexIsNamed) {
  write_index("[]");
  expect_refused({"index.json: weight_map is an array of 0, expected an object"});
  write_index("{}");
  expect_refused({"index.json: weight_map is empty"});
  dir_.write("model.safetensors.index.json", "{}");
  expect_refused({"index.json: weight_map is missing"});
}

TEST_F(HuggingFaceDirectory, ADamagedFileIsNamed) {
  dir_.write("model.safetensors", "short");
  expect_refused({"model.safetensors: the file ends in the header's length"});
}

TEST_F(HuggingFaceDirectory, WithoutWeightsWhatWasExpectedIsNamed) {
  expect_refused({"expected model.safetensors or model.safetensors.index.json, found neither"});
  dir_.write("pytorch_model.bin", "x");
  expect_refused({"\"pytorch_model.bin\" is of a format that Witan does not read"});
}

TEST_F(HuggingFaceDirectory, ABadConfigIsNamed) {
  write_weights();
  dir_.write("config.json", "{");
  expect_refused({"config.json: not valid JSON"});
  dir_.write("config.json", "");
  expect_refused({"config.json: not valid JSON"});
  dir_.write("config.json", "[1]");
  expect_refused({"config.json: holds an array of 1, expected a JSON object"});
  dir_.write("config.json", "{}");
  expect_refused({"config.json: key model_type is missing, expected a string"});
  dir_.write("config.json", R"({"model_type":5})");
  expect_refused({"config.json: model_type is the number 5, expected a string"});
  dir_.write("config.json", std::string(100'000, '['));
  expect_refused({"config.json: JSON nested deeper than 64 levels"});
}

TEST_F(HuggingFaceDirectory, AConfigThatCannotBeOneIsNotRead) {
  std::filesystem::resize_file(dir_.path() + "/config.json", (64 << 20) + 1);  // sparse
  expect_refused({"config.json: has 67108865 bytes, expected 67108864 at most"});
}

TEST_F(HuggingFaceDirectory, ADirectoryInPlaceOfAFileIsNamed) {
  std::filesystem::create_directory(dir_.path() + "/model.safetensors");
  expect_refused({"model.safetensors: expected a regular file"}, ErrorCode::kIo);
}

TEST_F(HuggingFaceDirectory, EndsComeFromBothConfigs) {
  write_weights();
  EXPECT_THAT(open()->end_of_generation_tokens(), IsEmpty());
  dir_.write("config.json", R"({"model_type":"mixtral","eos_token_id":2})");
  EXPECT_THAT(open()->end_of_generation_tokens(), ElementsAre(2));
  dir_.write("generation_config.json", R"({"eos_token_id":[7,2,9]})");
  EXPECT_THAT(open()->end_of_generation_tokens(), ElementsAre(7, 2, 9));
  dir_.write("generation_config.json", R"({"eos_token_id":null})");
  EXPECT_THAT(open()->end_of_generation_tokens(), ElementsAre(2));
}

TEST_F(HuggingFaceDirectory, BadEndsAreNamed) {
  write_weights();
  dir_.write("generation_config.json", R"({"eos_token_id":[2,4294967296]})");
  expect_refused({"generation_config.json: eos_token_id holds 4294967296, expected tokens from 0 to 2^31 - 1"});
  dir_.write("generation_config.json", R"({"eos_token_id":"</s>"})");
  expect_refused({"generation_config.json: eos_token_id is the string \"</s>\", expected an integer"});
  dir_.write("generation_config.json", "{");
  expect_refused({"generation_config.json: not valid JSON"});
}

TEST_F(HuggingFaceDirectory, ABadTokenizerIsNamed) {
  write_weights();
  dir_.write("tokenizer.json", "{");
  expect_error(ErrorCode::kBadFile, {dir_.path() + "/tokenizer.json"}, [&] { open()->load_tokenizer(); });
}

}  // namespace
}  // namespace witan
