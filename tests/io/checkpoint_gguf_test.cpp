#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/byte_builder.h"
#include "io/checkpoint.h"
#include "io/temp_dir.h"
#include "support/expect_error.h"

namespace witan {
namespace {

using test::expect_error;
using test::GgufBuilder;
using test::TempDir;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint32_t kF32 = 0;
constexpr int32_t kNormal = 1;
constexpr int32_t kControl = 3;

struct SplitKeys {
  uint16_t no;
  uint16_t count;
  int32_t num_tensors = 3;
};

GgufBuilder part(const SplitKeys& keys) {
  return GgufBuilder()
      .scalar<uint16_t>("split.no", GgufType::kUint16, keys.no)
      .scalar<uint16_t>("split.count", GgufType::kUint16, keys.count)
      .scalar<int32_t>("split.tensors.count", GgufType::kInt32, keys.num_tensors);
}

// A model of three tensors in three parts; the metadata is in the first.
class SplitGguf : public testing::Test {
 protected:
  void write(int number, const std::string& content) {
    paths_[number] = dir_.write(fmt::format("m-{:05}-of-00003.gguf", number + 1), content);
  }
  void SetUp() override {
    write(0, part({0, 3}).text("general.architecture", "llama").tensor("a", {1}, kF32, 0).data("aaaa").build());
    write(1, part({1, 3}).tensor("b", {1}, kF32, 0).data("bbbb").build());
    write(2, part({2, 3}).tensor("c", {2, 1}, kF32, 0).data("ccccCCCC").build());
  }
  void expect_refused(ErrorCode code, const std::vector<std::string>& fragments) {
    expect_error(code, fragments, [&] { Checkpoint::open(paths_[0]); });
  }

  TempDir dir_;
  std::string paths_[3];
};

TEST_F(SplitGguf, OpensFromAnyPart) {
  for (const std::string& path : paths_) {
    const auto checkpoint = Checkpoint::open(path);
    EXPECT_EQ(checkpoint->architecture(), "llama");
    EXPECT_EQ(checkpoint->path(), path);
    ASSERT_EQ(checkpoint->tensors().size(), 3u);
    EXPECT_EQ(checkpoint->tensors()[0].name, "a");
    const TensorEntry* last = checkpoint->find("c");
    ASSERT_NE(last, nullptr);
    EXPECT_EQ(last->file, paths_[2]);
    EXPECT_EQ(last->data[4], std::byte{'C'});
    EXPECT_EQ(last->num_elements(), 2);
  }
}

TEST_F(SplitGguf, AMissingPartIsNamed) {
  std::filesystem::remove(paths_[1]);
  expect_refused(ErrorCode::kIo, {paths_[1], "not found", "part 2 of 3", paths_[0]});
}

TEST_F(SplitGguf, APartOfAnotherSplitIsRefused) {
  write(1, part({1, 4}).tensor("b", {1}, kF32, 0).data("bbbb").build());
  expect_refused(ErrorCode::kBadFile, {paths_[1], "split.count is 4, expected 3", paths_[0]});
}

TEST_F(SplitGguf, AWholeModelAmongThePartsIsRefused) {
  write(1, GgufBuilder().tensor("b", {1}, kF32, 0).data("bbbb").build());
  expect_refused(ErrorCode::kBadFile, {paths_[1], "split.count is missing, expected 3"});
}

TEST_F(SplitGguf, ARenamedPartIsRefused) {
  write(1, part({2, 3}).tensor("b", {1}, kF32, 0).data("bbbb").build());
  expect_refused(ErrorCode::kBadFile, {paths_[1], "split.no is 2, expected 1 by the file's name"});
}

TEST_F(SplitGguf, APartWithAnotherNameSaysWhichOneItNeeds) {
  const std::string path = dir_.path() + "/renamed.gguf";
  std::filesystem::rename(paths_[1], path);
  expect_error(ErrorCode::kBadFile, {path, "part 2 of 3", "expected its name to end in -00002-of-00003.gguf"},
               [&] { Checkpoint::open(path); });
}

TEST_F(SplitGguf, AWrongNumberOfTensorsIsRefused) {
  write(0, part({0, 3, 4}).text("general.architecture", "llama").tensor("a", {1}, kF32, 0).data("aaaa").build());
  expect_refused(ErrorCode::kBadFile, {paths_[0], "split.tensors.count is 4, but the 3 parts hold 3 tensors"});
}

TEST_F(SplitGguf, ATensorInTwoPartsIsRefused) {
  write(2, part({2, 3}).tensor("b", {1}, kF32, 0).data("bbbb").build());
  expect_refused(ErrorCode::kBadFile, {paths_[2], "tensor \"b\"", paths_[1]});
}

TEST_F(SplitGguf, ADamagedPartIsNamed) {
  write(2, "GGUF");
  expect_refused(ErrorCode::kBadFile, {paths_[2], "ends in the version"});
}

TEST_F(SplitGguf, APartNumberBeyondTheCountIsRefused) {
  write(0, part({3, 3}).text("general.architecture", "llama").build());
  expect_refused(ErrorCode::kBadFile, {paths_[0], "split.no is 3, expected 0 to 2"});
}

TEST_F(SplitGguf, ASplitOfNoPartsIsRefused) {
  write(0, part({0, 0}).text("general.architecture", "llama").build());
  expect_refused(ErrorCode::kBadFile, {paths_[0], "split.count is 0, expected 1 to 65535"});
}

TEST_F(SplitGguf, ASplitOfOnePartIsAWholeModelOfAnyName) {
  const std::string path = dir_.write("one.gguf", part({0, 1, 0}).text("general.architecture", "llama").build());
  EXPECT_TRUE(Checkpoint::open(path)->tensors().empty());
}

class GgufVocabulary : public testing::Test {
 protected:
  std::unique_ptr<Checkpoint> open(GgufBuilder builder) {
    return Checkpoint::open(dir_.write("m.gguf", builder.text("general.architecture", "llama").build()));
  }
  void expect_refused(const GgufBuilder& builder, const std::vector<std::string>& fragments) {
    expect_error(ErrorCode::kBadFile, fragments, [&] { open(builder); });
  }
  static GgufBuilder vocabulary(const std::vector<std::string>& pieces, const std::vector<int32_t>& types) {
    return GgufBuilder()
        .texts("tokenizer.ggml.tokens", pieces)
        .array("tokenizer.ggml.token_type", GgufType::kInt32, types);
  }

  TempDir dir_;
};

TEST_F(GgufVocabulary, EndsAreTheNamedTokensFirstAndOnce) {
  const auto checkpoint = open(vocabulary({"a", "b", "<|im_end|>", "d"}, {kNormal, kNormal, kControl, kNormal})
                                   .uint32("tokenizer.ggml.eos_token_id", 3)
                                   .uint32("tokenizer.ggml.eot_token_id", 2)
                                   .uint32("tokenizer.ggml.eom_token_id", 3));
  EXPECT_THAT(checkpoint->end_of_generation_tokens(), ElementsAre(3, 2));
}

TEST_F(GgufVocabulary, OnlyControlTokensEndByTheirPiece) {
  const auto checkpoint = open(vocabulary({"<|eot_id|>", "<|im_end|>", "<|other|>"}, {kControl, kNormal, kControl}));
  EXPECT_THAT(checkpoint->end_of_generation_tokens(), ElementsAre(0));
}

TEST_F(GgufVocabulary, EndOfMessageDoesNotEndTheTurnOfAHarmonyModel) {
  EXPECT_THAT(open(vocabulary({"<|end|>", "x"}, {kControl, kNormal}))->end_of_generation_tokens(), ElementsAre(0));
  EXPECT_THAT(open(vocabulary({"<|end|>", "<|return|>", "<|call|>"}, {kControl, kControl, kControl}))
                  ->end_of_generation_tokens(),
              ElementsAre(1, 2));
}

TEST_F(GgufVocabulary, WithoutAVocabularyThereMayBeAnEnd) {
  EXPECT_THAT(open(GgufBuilder())->end_of_generation_tokens(), IsEmpty());
  EXPECT_THAT(open(GgufBuilder().uint32("tokenizer.ggml.eos_token_id", 2))->end_of_generation_tokens(), ElementsAre(2));
}

TEST_F(GgufVocabulary, AnEndOutsideTheVocabularyIsRefused) {
  expect_refused(vocabulary({"a"}, {kNormal}).uint32("tokenizer.ggml.eot_token_id", 1),
                 {"tokenizer.ggml.eot_token_id is 1, expected a token below 1"});
  expect_refused(GgufBuilder().scalar<int64_t>("tokenizer.ggml.eos_token_id", GgufType::kInt64, -1),
                 {"tokenizer.ggml.eos_token_id is -1"});
}

TEST_F(GgufVocabulary, TokenTypesMustMatchTheTokens) {
  expect_refused(vocabulary({"a", "b"}, {kNormal}), {"token_type has 1 elements, expected 2"});
}

TEST_F(GgufVocabulary, NoTokenizerIsNotAnError) {
  EXPECT_EQ(open(GgufBuilder())->load_tokenizer(), nullptr);
  EXPECT_EQ(open(GgufBuilder().text("tokenizer.ggml.model", "none"))->load_tokenizer(), nullptr);
}

TEST_F(GgufVocabulary, TokensWithoutAModelAreAnError) {
  const auto checkpoint = open(vocabulary({"a"}, {kNormal}));
  expect_error(ErrorCode::kBadFile, {"key tokenizer.ggml.model is missing, expected a string"},
               [&] { checkpoint->load_tokenizer(); });
}

TEST_F(GgufVocabulary, TokenizerKeysOfAnotherTypeAreNamed) {
  const auto merges =
      open(vocabulary({"a"}, {kNormal}).text("tokenizer.ggml.model", "gpt2").uint32("tokenizer.ggml.merges", 5));
  expect_error(ErrorCode::kBadFile, {"tokenizer.ggml.merges is the uint32 5, expected strings"},
               [&] { merges->load_tokenizer(); });
  const auto scores = open(vocabulary({"a"}, {kNormal})
                               .text("tokenizer.ggml.model", "llama")
                               .array<double>("tokenizer.ggml.scores", GgufType::kFloat64, {0.0}));
  expect_error(ErrorCode::kBadFile, {"tokenizer.ggml.scores is an array of 1 float64, expected an array of float32"},
               [&] { scores->load_tokenizer(); });
}

TEST_F(GgufVocabulary, AnArchitectureIsRequired) {
  const std::string path = dir_.write("m.gguf", GgufBuilder().uint32("x", 1).build());
  expect_error(ErrorCode::kBadFile, {path, "key general.architecture is missing, expected a string"},
               [&] { Checkpoint::open(path); });
}

TEST(GgufCheckpoint, HasItsChatTemplatesAndSpecialTokens) {
  TempDir dir;
  const std::string file = GgufBuilder()
                               .text("general.architecture", "llama")
                               .text("tokenizer.chat_template", "plain {{ bos_token }}{{ eos_token is defined }}")
                               .text("tokenizer.chat_template.tool_use", "tools")
                               .texts("tokenizer.chat_templates", {"default", "tool_use"})
                               .texts("tokenizer.ggml.tokens", {"<s>", "a"})
                               .scalar<uint32_t>("tokenizer.ggml.bos_token_id", GgufType::kUint32, 0)
                               .tensor("a", {1}, kF32, 0)
                               .data("aaaa")
                               .build();
  const auto checkpoint = Checkpoint::open(dir.write("m.gguf", file));
  ChatInput input;
  input.messages = jinja::Value::list({});
  EXPECT_EQ(checkpoint->load_chat_template()->render(input), "plain <s>False");
  EXPECT_EQ(checkpoint->load_chat_template({}, true)->render(input), "tools");
  EXPECT_EQ(checkpoint->load_chat_template("tool_use")->render(input), "tools");
  EXPECT_FALSE(checkpoint->generation_defaults().do_sample);
  expect_error(ErrorCode::kInvalidArgument, std::vector<std::string>{"named 'rag'", "default, tool_use"},
               [&] { checkpoint->load_chat_template("rag"); });
}

}  // namespace
}  // namespace witan
