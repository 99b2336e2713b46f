#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "io/checkpoint.h"
#include "support/expect_error.h"
#include "support/goldens.h"

namespace witan {
namespace {

using testing::ElementsAre;

void expect_same(const TensorEntry* gguf, const TensorEntry* huggingface, const std::string& name) {
  ASSERT_NE(gguf, nullptr) << name;
  ASSERT_NE(huggingface, nullptr) << name;
  EXPECT_EQ(gguf->shape, huggingface->shape) << name;
  EXPECT_EQ(gguf->dtype, huggingface->dtype) << name;
  EXPECT_TRUE(std::equal(gguf->data.begin(), gguf->data.end(), huggingface->data.begin(), huggingface->data.end()))
      << name;
}

struct Model {
  std::string folder;
  std::string gguf_architecture;
  std::string model_type;
};

class GoldenModel : public testing::TestWithParam<Model> {};

TEST_P(GoldenModel, GgufOpensWithConsistentShapes) {
  WITAN_GOLDEN_OR_SKIP(path, GetParam().folder + "/model.gguf");
  const auto checkpoint = Checkpoint::open(path);
  EXPECT_EQ(checkpoint->architecture(), GetParam().gguf_architecture);
  const CheckpointConfig& config = checkpoint->config();
  const std::string prefix = checkpoint->architecture() + ".";
  const int64_t model_dim = config.get_int(prefix + "embedding_length");
  const TensorEntry* embedding = checkpoint->find("token_embd.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_THAT(embedding->shape, ElementsAre(config.get_int(prefix + "vocab_size"), model_dim));
  ASSERT_NE(checkpoint->find("output_norm.weight"), nullptr);
  EXPECT_THAT(checkpoint->find("output_norm.weight")->shape, ElementsAre(model_dim));
  for (const TensorEntry& tensor : checkpoint->tensors()) {
    EXPECT_EQ(std::ssize(tensor.data), quant_type(tensor.dtype).row_bytes(tensor.num_elements())) << tensor.name;
    EXPECT_EQ(checkpoint->find(tensor.name), &tensor);
  }
  const int64_t num_experts = config.get_int(prefix + "expert_count", 0);
  const int64_t last_layer = config.get_int(prefix + "block_count") - 1;
  const TensorEntry* down = checkpoint->find(fmt::format("blk.{}.ffn_down_exps.weight", last_layer));
  EXPECT_EQ(down != nullptr, num_experts > 0);
  if (down != nullptr) {
    EXPECT_EQ(down->shape[0], num_experts);
    EXPECT_EQ(down->shape[1], model_dim);
  }
}

TEST_P(GoldenModel, HuggingFaceDirectoryOpens) {
  WITAN_GOLDEN_OR_SKIP(path, GetParam().folder + "/hf");
  const auto checkpoint = Checkpoint::open(path);
  EXPECT_EQ(checkpoint->architecture(), GetParam().model_type);
  const CheckpointConfig& config = checkpoint->config();
  const TensorEntry* embedding = checkpoint->find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_THAT(embedding->shape, ElementsAre(config.get_int("vocab_size"), config.get_int("hidden_size")));
  EXPECT_FALSE(checkpoint->end_of_generation_tokens().empty());
}

TEST_P(GoldenModel, BothFormatsCarryTheSameBytes) {
  WITAN_GOLDEN_OR_SKIP(gguf_path, GetParam().folder + "/model.gguf");
  WITAN_GOLDEN_OR_SKIP(hf_path, GetParam().folder + "/hf");
  const auto gguf = Checkpoint::open(gguf_path);
  const auto huggingface = Checkpoint::open(hf_path);
  const std::pair<const char*, const char*> kNames[] = {
      {"token_embd.weight", "model.embed_tokens.weight"},
      {"output_norm.weight", "model.norm.weight"},
      {"blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"},
      {"blk.1.attn_output.weight", "model.layers.1.self_attn.o_proj.weight"}};
  for (const auto& [in_gguf, in_hf] : kNames) expect_same(gguf->find(in_gguf), huggingface->find(in_hf), in_gguf);
}

std::string test_name(const testing::TestParamInfo<Model>& test) {
  std::string name = test.param.folder;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(
    Goldens, GoldenModel,
    testing::Values(Model{"mixtral", "llama", "mixtral"}, Model{"qwen2moe", "qwen2moe", "qwen2_moe"},
                    Model{"qwen3moe", "qwen3moe", "qwen3_moe"}, Model{"olmoe", "olmoe", "olmoe"},
                    Model{"deepseek2-v2lite", "deepseek2", "deepseek_v2"},
                    Model{"deepseek2-v3", "deepseek2", "deepseek_v3"}, Model{"gpt-oss", "gpt-oss", "gpt_oss"},
                    Model{"glm4moe", "glm4moe", "glm4_moe"}, Model{"llama-dense", "llama", "llama"},
                    Model{"qwen3-dense", "qwen3", "qwen3"}),
    test_name);

TEST(CheckpointGoldens, StackedExpertsAreTheSeparateOnesInOrder) {
  WITAN_GOLDEN_OR_SKIP(gguf_path, "mixtral/model.gguf");
  WITAN_GOLDEN_OR_SKIP(hf_path, "mixtral/hf");
  const auto gguf = Checkpoint::open(gguf_path);
  const auto huggingface = Checkpoint::open(hf_path);
  const TensorEntry* stacked = gguf->find("blk.1.ffn_down_exps.weight");
  ASSERT_NE(stacked, nullptr);
  const size_t expert_bytes = stacked->data.size() / 8;
  for (size_t e = 0; e < 8; ++e) {
    const TensorEntry* one = huggingface->find(fmt::format("model.layers.1.block_sparse_moe.experts.{}.w2.weight", e));
    ASSERT_NE(one, nullptr);
    EXPECT_THAT(one->shape, ElementsAre(stacked->shape[1], stacked->shape[2]));
    const auto slice = stacked->data.subspan(e * expert_bytes, expert_bytes);
    EXPECT_TRUE(std::equal(slice.begin(), slice.end(), one->data.begin(), one->data.end())) << e;
  }
}

TEST(CheckpointGoldens, QuantisedTypesOpen) {
  WITAN_GOLDEN_OR_SKIP(path, "qwen3moe-quant/Q4_K_M/model.gguf");
  const auto checkpoint = Checkpoint::open(path);
  std::vector<bool> seen(kNumDTypes);
  for (const TensorEntry& tensor : checkpoint->tensors()) seen[static_cast<size_t>(tensor.dtype)] = true;
  EXPECT_TRUE(seen[static_cast<size_t>(DType::kF32)]);
  EXPECT_TRUE(seen[static_cast<size_t>(DType::kQ4_K)]);
  EXPECT_TRUE(seen[static_cast<size_t>(DType::kQ6_K)]);
}

TEST(CheckpointGoldens, PartsOfBlockQuantisedWeightsAreMarked) {
  struct Case {
    std::string path;
    std::string tensor;
    DType whole;
  };
  const Case kCases[] = {{"gpt-oss-mxfp4/hf", "model.layers.0.mlp.experts.gate_up_proj_blocks", DType::kMXFP4},
                         {"gpt-oss-mxfp4/hf", "model.layers.0.mlp.experts.gate_up_proj_scales", DType::kMXFP4},
                         {"deepseek2-v3-fp8/hf", "model.layers.0.self_attn.o_proj.weight", DType::kF8_E4M3}};
  for (const Case& c : kCases) {
    WITAN_GOLDEN_OR_SKIP(path, c.path);
    const auto checkpoint = Checkpoint::open(path);
    const TensorEntry* tensor = checkpoint->find(c.tensor);
    ASSERT_NE(tensor, nullptr) << c.tensor;
    EXPECT_TRUE(tensor->is_part);
    EXPECT_EQ(tensor->dtype, c.whole);
    EXPECT_EQ(std::ssize(tensor->data), tensor->num_elements());
  }
}

TEST(CheckpointGoldens, ATokenizerIsLoadedFromGguf) {
  WITAN_GOLDEN_OR_SKIP(path, "e2e-bytes/model.gguf");
  const auto checkpoint = Checkpoint::open(path);
  EXPECT_THAT(checkpoint->end_of_generation_tokens(), ElementsAre(2));
  const std::unique_ptr<Tokenizer> tokenizer = checkpoint->load_tokenizer();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->vocab_size(), 320);
  EXPECT_EQ(tokenizer->bos(), 1);
  EXPECT_EQ(tokenizer->eos(), 2);
}

TEST(CheckpointGoldens, VocabularyFilesOpenWithoutTensors) {
  struct Case {
    std::string name;
    int32_t vocab_size;
    TokenId end;
  };
  for (const Case& c :
       {Case{"qwen2", 151936, 151643}, Case{"llama-spm", 32000, 2}, Case{"llama-bpe", 128256, 128001}}) {
    WITAN_GOLDEN_OR_SKIP(path, "tokenizers/ggml-vocab-" + c.name + ".gguf");
    const auto checkpoint = Checkpoint::open(path);
    EXPECT_TRUE(checkpoint->tensors().empty());
    EXPECT_EQ(checkpoint->end_of_generation_tokens().front(), c.end) << c.name;
    const std::unique_ptr<Tokenizer> tokenizer = checkpoint->load_tokenizer();
    ASSERT_NE(tokenizer, nullptr);
    EXPECT_EQ(tokenizer->vocab_size(), c.vocab_size);
  }
}

}  // namespace
}  // namespace witan
